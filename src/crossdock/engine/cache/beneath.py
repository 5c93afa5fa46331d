"""Open files below a directory such that no symbolic link is followed, at any component.

Spec: openat2(2), Linux 5.6; older kernels walk component by component.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

__all__ = ["open_beneath"]

_SYS_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 0x02, 0x04, 0x08
_RESOLVE = _RESOLVE_NO_MAGICLINKS | _RESOLVE_NO_SYMLINKS | _RESOLVE_BENEATH
_HOW = struct.Struct("=QQQ")

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)

_missing = False


def open_beneath(root: int, path: str, flags: int) -> int:
    """Open the relative ``path`` below the directory handle ``root``; the caller closes the result.

    Raises: OSError, with ELOOP when a component is a symbolic link. Safe from any thread.
    """
    if not _missing:
        how = _HOW.pack(flags | os.O_CLOEXEC, 0, _RESOLVE)
        fd = int(_syscall(_SYS_OPENAT2, root, os.fsencode(path), how, _HOW.size))
        if fd >= 0:
            return fd
        code = ctypes.get_errno()
        if code not in (errno.ENOSYS, errno.EPERM, errno.EAGAIN):
            raise OSError(code, os.strerror(code), path)
        # ENOSYS: old kernel; EPERM: a seccomp filter that predates the call; EAGAIN: a rename raced with us.
        _note_missing(code)
    return _walk(root, path, flags)


def _note_missing(code: int) -> None:
    global _missing  # noqa: PLW0603 -- a fact about the kernel, learned once
    _missing = _missing or code == errno.ENOSYS


def _walk(root: int, path: str, flags: int) -> int:
    *parents, last = path.split("/")
    at = root
    try:
        for name in parents:
            child = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            if at != root:
                os.close(at)
            at = child
        return os.open(last, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    finally:
        if at != root:
            os.close(at)
