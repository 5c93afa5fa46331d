"""Sealed copies of programs in memory, for a runtime that would make one of itself each time it starts.

crun and runc run only from a file that no container can write to (CVE-2019-5736): where they find themselves on a disk
they copy themselves into a sealed ``memfd`` and start again, which is a quarter of what a small step costs. One copy
serves all steps of a worker: it is the seals that make it safe. Scripts, such as wrappers around a runtime, are left
alone: their interpreter could not open them.

Source: ``is_self_cloned`` in crun's and runc's ``cloned_binary.c``; memfd_create(2).
"""

from __future__ import annotations

import fcntl
import os
import threading
from contextlib import suppress

from crossdock.record import NamedTuple

__all__ = ["sealed_copy"]

#: not in Python's os; kernels before 6.3 refuse it, and allow what it allows
_MFD_EXEC = 0x10
_ELF = b"\x7fELF"
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class _Copy(NamedTuple):
    """A copy, or -1 for what is not copied; and the file that it was made of."""

    fd: int
    device: int
    inode: int
    mtime_ns: int
    size: int


_lock = threading.Lock()
_copies: dict[str, _Copy] = {}


def sealed_copy(path: str) -> str:
    """Return a path that runs a sealed copy of ``path`` in this process and its children, or ``path`` where none can be made.

    The copy is made once and again when the file has changed. It is closed on exec, which an executable does not mind.
    """
    try:
        found = os.stat(path)
        with _lock:
            copy = _copies.get(path)
            if copy is None or copy[1:] != _identity(found):
                # One of a file that was replaced stays open: who was told of it may be about to run it.
                copy = _copies[path] = _Copy(_copy(path), *_identity(found))
    except OSError:
        return path
    return path if copy.fd < 0 else f"/proc/self/fd/{copy.fd}"


def _identity(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _copy(path: str) -> int:
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.pread(source, len(_ELF), 0) != _ELF:
            return -1
        made = _memory(os.path.basename(path))
        try:
            while os.sendfile(made, source, None, 1 << 30):
                pass
            fcntl.fcntl(made, fcntl.F_ADD_SEALS, _SEALS)
            # What is open for writing cannot be executed.
            return os.open(f"/proc/self/fd/{made}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(made)
    finally:
        os.close(source)


def _memory(name: str) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    with suppress(OSError):
        return os.memfd_create(name, flags | _MFD_EXEC)
    return os.memfd_create(name, flags)
