"""Stat cache: digests of local files that did not change since they were read.

One file per context root, read and written whole: 100,000 entries load in some 30 ms. An entry is believed
when inode, size, mtime and ctime are the same *and* the ctime was already old when the file was read: a file
that is written twice within one tick of the file system's clock has the same times with other content, so
young files are not recorded.
"""

from __future__ import annotations

import os
import struct
import sys
import threading
import time
import zlib
from array import array
from contextlib import suppress
from typing import TYPE_CHECKING

from crossdock.engine.store.locks import try_flock
from crossdock.engine.store.rim import rim
from crossdock.hashing import sha256

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Protocol

    from crossdock.engine.store.layout import Layout

    class StatNumbers(Protocol):
        """What counts of an ``os.stat_result``."""

        @property
        def st_ino(self) -> int: ...
        @property
        def st_size(self) -> int: ...
        @property
        def st_mtime_ns(self) -> int: ...
        @property
        def st_ctime_ns(self) -> int: ...


__all__ = ["WRITING", "StatCache", "StatTable", "margin_ns"]

_MAGIC = b"XDstat1" + (b"<" if sys.byteorder == "little" else b">")
_HEADER = struct.Struct("=8sIIQ")  # magic, CRC-32 of the rest, entries, bytes of the joined paths
_FIELDS = 4  # inode, size, mtime_ns, ctime_ns
_DIGEST_BYTES = 32
#: file systems stamp with the kernel's tick, 1 to 10 ms; twice that and then some
_FINE_MARGIN_NS = 100_000_000
#: a ctime of whole seconds: the file system keeps no more (FAT keeps two)
_COARSE_MARGIN_NS = 2_500_000_000
#: unseen entries are kept (another target may use them) up to this number, or as many as were seen
_KEEP_UNSEEN = 1000


#: a table being written. Left by a writer that died, it is the next one's; so there is never more than one
WRITING = ".new"


class StatCache:
    """The ``stat`` folder of a store."""

    __slots__ = ("_folder",)

    def __init__(self, layout: Layout) -> None:
        self._folder = layout.stat

    def load(self, context: str) -> StatTable:
        """Return the table of a context root (any string that names it, e.g. its real path); empty when unknown or damaged."""
        name = sha256(context.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        return StatTable(self._folder / name)

    def prune(self, unused_for_s: float) -> int:
        """Delete tables not written for so long; returns bytes freed. Raises: StoreError."""
        limit = time.time_ns() - int(unused_for_s * 1e9)
        freed = 0
        for path, info in self._files():
            if info.st_mtime_ns <= limit:
                with rim("prune stat caches"), suppress(FileNotFoundError):
                    os.unlink(path)
                    freed += info.st_size
        return freed

    def size(self) -> int:
        """Return the bytes of all tables."""
        return sum(info.st_size for _, info in self._files())

    def _files(self) -> Iterator[tuple[str, os.stat_result]]:
        with rim("read stat caches"), os.scandir(self._folder) as entries:
            for entry in entries:
                if not entry.name.endswith(WRITING):
                    with suppress(FileNotFoundError):  # removed meanwhile
                        yield entry.path, entry.stat(follow_symlinks=False)


class StatTable:
    """Digests by path for one context root. One user at a time, but threads may ``record`` concurrently.

    The file is read when something is first asked of it: whose context is known otherwise does without.
    """

    __slots__ = ("_digests", "_index", "_lock", "_new", "_numbers", "_path", "_paths", "_seen")

    def __init__(self, path: Path) -> None:
        self._path = path
        #: path -> fields packed, digest: as small as it can be, since there may be very many
        self._new: dict[bytes, bytes] = {}
        self._paths: list[bytes] = []
        self._numbers: array[int] = array("Q")
        self._digests = b""
        self._seen = bytearray()
        # Held while the file is read, once.
        self._lock = threading.Lock()
        #: path -> position; ``None`` before the file was read
        self._index: dict[bytes, int] | None = None

    def __len__(self) -> int:
        return len(self._read())

    def get(self, path: str, info: StatNumbers) -> bytes | None:
        """Return the 32-byte sha256 of a file's content when ``info`` (a fresh ``lstat``) shows it unchanged."""
        index = self._index if self._index is not None else self._read()
        position = index.get(path.encode("utf-8", "surrogateescape"))
        if position is None:
            return None
        start = position * _FIELDS
        if self._numbers[start : start + _FIELDS] != array("Q", _fields(info)):
            return None
        self._seen[position] = 1
        return self._digests[position * _DIGEST_BYTES : (position + 1) * _DIGEST_BYTES]

    def record(self, path: str, info: StatNumbers, digest: bytes, began_ns: int) -> None:
        """Note a file's digest. ``info`` is an ``fstat`` taken after ``began_ns`` (``time.time_ns()``) that still holds after
        the file was read. Files changed shortly before are not noted."""
        if info.st_ctime_ns + margin_ns(info) < began_ns:
            packed = array("Q", _fields(info)).tobytes() + digest
            self._new[path.encode("utf-8", "surrogateescape")] = packed

    def save(self) -> None:
        """Write the table when something was recorded, atomically. Raises: StoreFull, StoreError."""
        if not self._new:
            return
        paths, numbers, digests = self._merged()
        joined = b"\0".join(paths)
        body = joined + numbers.tobytes() + digests
        header = _HEADER.pack(_MAGIC, zlib.crc32(body), len(paths), len(joined))
        with rim("write a stat cache"):
            fd = self._open_new()
            if fd < 0:
                return
            try:
                os.ftruncate(fd, 0)
                for part in (header, body):
                    rest = memoryview(part)
                    while rest:
                        rest = rest[os.write(fd, rest) :]
                os.rename(f"{self._path}{WRITING}", self._path)
            finally:
                os.close(fd)

    def _open_new(self) -> int:
        """Open and lock the file to write; -1 when another build is writing its own: either is right."""
        while True:
            path = f"{self._path}{WRITING}"
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if not try_flock(fd):
                os.close(fd)
                return -1
            # Renamed into place between our open and lock, it is a table now and not ours to overwrite.
            with suppress(FileNotFoundError):
                if os.stat(path).st_ino == os.fstat(fd).st_ino:
                    return fd
            os.close(fd)

    def _merged(self) -> tuple[list[bytes], array[int], bytes]:
        self._read()
        seen = sum(self._seen)
        keep_all = len(self._paths) - seen <= max(seen + len(self._new), _KEEP_UNSEEN)
        paths: list[bytes] = []
        numbers: array[int] = array("Q")
        digests = bytearray()
        for position, path in enumerate(self._paths):
            if path in self._new or not (keep_all or self._seen[position]):
                continue
            paths.append(path)
            numbers += self._numbers[position * _FIELDS : (position + 1) * _FIELDS]
            digests += self._digests[position * _DIGEST_BYTES : (position + 1) * _DIGEST_BYTES]
        for path, packed in self._new.items():
            paths.append(path)
            numbers.frombytes(packed[: _FIELDS * 8])
            digests += packed[_FIELDS * 8 :]
        return paths, numbers, bytes(digests)

    def _read(self) -> dict[bytes, int]:
        with self._lock:
            if self._index is None:
                self._read_file()
                self._seen = bytearray(len(self._paths))
                self._index = dict(zip(self._paths, range(len(self._paths)), strict=True))
            return self._index

    def _read_file(self) -> None:
        try:
            with self._path.open("rb") as file:
                if os.fstat(file.fileno()).st_mtime_ns > time.time_ns():
                    return  # the clock was set back: a file may get times that it had before
                data = file.read()
        except OSError:
            return  # absent, or unreadable: then files are read instead
        if len(data) < _HEADER.size:
            return
        magic, crc, count, joined = _HEADER.unpack_from(data)
        numbers_at = _HEADER.size + joined
        digests_at = numbers_at + count * _FIELDS * 8
        if magic != _MAGIC or len(data) != digests_at + count * _DIGEST_BYTES:
            return
        if zlib.crc32(memoryview(data)[_HEADER.size :]) != crc:
            return
        paths = data[_HEADER.size : numbers_at].split(b"\0") if count else []
        if len(paths) == count:
            self._paths = paths
            self._numbers.frombytes(data[numbers_at:digests_at])
            self._digests = data[digests_at:]


def margin_ns(info: StatNumbers) -> int:
    """Return how old a ctime must be for a later change to show."""
    return _FINE_MARGIN_NS if info.st_ctime_ns % 1_000_000_000 else _COARSE_MARGIN_NS


def _fields(info: StatNumbers) -> tuple[int, int, int, int]:
    # mtime may lie before 1970; the bits are what is compared.
    return (info.st_ino, info.st_size, info.st_mtime_ns & _MASK, info.st_ctime_ns & _MASK)


_MASK = (1 << 64) - 1
