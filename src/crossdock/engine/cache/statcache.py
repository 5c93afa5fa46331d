"""Remembers the sha256 of files by their stat, so that unchanged trees are not read again.

A file is believed unchanged when inode, size, mtime and ctime are the same. An entry is written only when the file had
been left alone for a while before it was read: a change within the clock's granularity would not show (git's "racy"
entries). ctime cannot be set, so a restored mtime is still noticed.

File format: magic, count, then ``paths joined by NUL`` and packed records, closed by a sha256 of all before it; a file
that does not verify is as good as none.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Known", "StatCache"]

_MAGIC = b"crossdock-stat-1\n"
_RECORD = struct.Struct("<QQqq?32s")
_COUNT = struct.Struct("<QQ")
#: kernels stamp files with a clock that ticks every 1 to 10 ms
_TICK_NS = 100_000_000
#: file systems with whole seconds or worse (FAT: two)
_COARSE_NS = 2_100_000_000
#: entries kept in one file
_MAX_ENTRIES = 1_000_000


class Known(NamedTuple):
    """What was true of a file when it was read."""

    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int
    #: whether it has extended attributes worth reading
    has_xattrs: bool
    sha256: bytes


class StatCache:
    """One tree's entries, by path below its root. Reads are safe from any thread; :meth:`put` is too."""

    __slots__ = ("_changed", "_entries", "_file")

    def __init__(self, file: Path) -> None:
        self._file = file
        self._entries: dict[str, tuple[int, int, int, int, bool, bytes]] = _load(file)
        self._changed = False

    def get(self, path: str, st: os.stat_result) -> Known | None:
        """Return what is known of ``path`` if it still is the same file."""
        entry = self._entries.get(path)
        if (
            entry is None
            or entry[2] != st.st_mtime_ns
            or entry[3] != st.st_ctime_ns
            or entry[0] != st.st_ino
            or entry[1] != st.st_size
        ):
            return None
        return Known._make(entry)

    def put(self, path: str, known: Known, read_at_ns: int) -> None:
        """Remember a file whose reading began at ``read_at_ns``; a racy one is not remembered."""
        quiet_ns = read_at_ns - max(known.mtime_ns, known.ctime_ns)
        coarse = known.mtime_ns % 1_000_000_000 == 0 and known.ctime_ns % 1_000_000_000 == 0
        if quiet_ns > (_COARSE_NS if coarse else _TICK_NS):
            self._entries[path] = (*known,)
            self._changed = True

    def save(self) -> None:
        """Write the entries if there are new ones. Losing them costs time only, so a failure is not an error."""
        if not self._changed:
            return
        self._changed = False
        entries = dict(list(self._entries.items())[-_MAX_ENTRIES:])
        names = b"\0".join(os.fsencode(path) for path in entries)
        body = b"".join(
            (
                _MAGIC,
                _COUNT.pack(len(entries), len(names)),
                names,
                *(_RECORD.pack(*e) for e in entries.values()),
            )
        )
        temporary = self._file.with_name(f"{self._file.name}.{os.getpid()}.{time.monotonic_ns()}")
        try:
            temporary.write_bytes(body + hashlib.sha256(body).digest())
            os.replace(temporary, self._file)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()


def _load(file: Path) -> dict[str, tuple[int, int, int, int, bool, bytes]]:
    try:
        raw = file.read_bytes()
    except OSError:
        return {}
    body, seal = memoryview(raw)[:-32], raw[-32:]
    if not raw.startswith(_MAGIC) or hashlib.sha256(body).digest() != seal:
        return {}
    at = len(_MAGIC)
    count, length = _COUNT.unpack_from(body, at)
    at += _COUNT.size
    if not count:
        return {}
    names = os.fsdecode(bytes(body[at : at + length])).split("\0")
    return dict(zip(names, _RECORD.iter_unpack(body[at + length :]), strict=True))
