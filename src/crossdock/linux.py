"""Kernel calls that Python's standard library lacks: namespaces, mounts, process control.

Thin: each function is one system call with Python types and ``OSError``. No policy, no fallbacks, no logging.

Spec: mount(2), umount2(2), unshare(2), prctl(2), fsopen(2) and relatives (numbers of the unified table, the same on
every architecture since Linux 5.2).
"""

from __future__ import annotations

import ctypes
import errno
import os

__all__ = [
    "CLONE_NEWIPC",
    "CLONE_NEWNET",
    "CLONE_NEWNS",
    "CLONE_NEWPID",
    "CLONE_NEWUSER",
    "CLONE_NEWUTS",
    "MNT_DETACH",
    "MOUNT_ATTR_RDONLY",
    "MS_BIND",
    "MS_NODEV",
    "MS_NOEXEC",
    "MS_NOSUID",
    "MS_PRIVATE",
    "MS_RDONLY",
    "MS_REC",
    "MS_REMOUNT",
    "MS_SLAVE",
    "bring_loopback_up",
    "filesystem_magic",
    "fsconfig_create",
    "fsconfig_flag",
    "fsconfig_string",
    "fsmount",
    "fsopen",
    "limit_malloc_arenas",
    "mount",
    "mount_setattr_readonly",
    "move_mount",
    "set_child_subreaper",
    "set_parent_death_signal",
    "spread_subdirectories",
    "umount",
    "unshare",
]

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MNT_DETACH = 2

MOUNT_ATTR_RDONLY = 1

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_AT_EMPTY_PATH = 0x1000
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_MOUNT_SETATTR = 442
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.unshare.argtypes = (ctypes.c_int,)
_libc.syscall.restype = ctypes.c_long

_Path = str | bytes | os.PathLike[str]


def _check(result: int, filename: object = None) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), filename)
    return int(result)


def _syscall(number: int, *args: object, filename: object = None) -> int:
    return _check(_libc.syscall(ctypes.c_long(number), *args), filename)


def unshare(flags: int) -> None:
    """Move this process (or, for PIDs, its future children) into new namespaces.

    Raises: OSError; EINVAL for ``CLONE_NEWUSER`` once a second thread exists.
    """
    _check(_libc.unshare(flags))


def mount(
    source: _Path | None,
    target: _Path,
    fstype: str | None = None,
    flags: int = 0,
    data: str | bytes | None = None,
) -> None:
    """Mount; ``data`` is the option string, at most a page long. Raises: OSError naming ``target``."""
    raw = data.encode() if isinstance(data, str) else data
    kind = fstype.encode() if fstype is not None else None
    origin = os.fsencode(source) if source is not None else None
    _check(_libc.mount(origin, os.fsencode(target), kind, flags, raw), target)


def umount(target: _Path, flags: int = 0) -> None:
    """Unmount. Raises: OSError naming ``target``."""
    _check(_libc.umount2(os.fsencode(target), flags), target)


def set_parent_death_signal(signum: int) -> None:
    """Receive ``signum`` when the parent thread dies; survives exec, not fork."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signum), 0, 0, 0))


def set_child_subreaper(*, on: bool) -> None:
    """Become (or stop being) the parent of descendants whose own parent dies."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(int(on)), 0, 0, 0))


def fsopen(fstype: str) -> int:
    """Open a file system configuration context; the caller closes the descriptor."""
    return _syscall(_SYS_FSOPEN, fstype.encode(), ctypes.c_uint(_FSOPEN_CLOEXEC))


def fsconfig_string(fd: int, key: str, value: _Path) -> None:
    """Set one option; a value is at most 255 bytes long and taken as it is (nothing is escaped)."""
    _syscall(
        _SYS_FSCONFIG,
        fd,
        ctypes.c_uint(_FSCONFIG_SET_STRING),
        key.encode(),
        os.fsencode(value),
        0,
        filename=value,
    )


def fsconfig_flag(fd: int, key: str) -> None:
    """Set an option that has no value."""
    _syscall(_SYS_FSCONFIG, fd, ctypes.c_uint(_FSCONFIG_SET_FLAG), key.encode(), None, 0, filename=key)


def fsconfig_create(fd: int) -> None:
    """Create the configured superblock."""
    _syscall(_SYS_FSCONFIG, fd, ctypes.c_uint(_FSCONFIG_CMD_CREATE), None, None, 0)


def fsmount(fd: int, *, attributes: int = 0) -> int:
    """Make a detached mount of the created superblock; the caller closes the descriptor."""
    return _syscall(_SYS_FSMOUNT, fd, ctypes.c_uint(_FSMOUNT_CLOEXEC), ctypes.c_uint(attributes))


def move_mount(fd: int, target: _Path) -> None:
    """Attach a detached mount at ``target``."""
    _syscall(
        _SYS_MOVE_MOUNT,
        fd,
        b"",
        _AT_FDCWD,
        os.fsencode(target),
        ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH),
        filename=target,
    )


def mount_setattr_readonly(target: _Path, *, recursive: bool) -> None:
    """Make a mount, and with ``recursive`` all below it, read-only (Linux ≥ 5.12)."""
    attr = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY)  # attr_set, attr_clr, propagation, userns_fd
    _syscall(
        _SYS_MOUNT_SETATTR,
        _AT_FDCWD,
        os.fsencode(target),
        ctypes.c_uint(_AT_RECURSIVE if recursive else 0),
        ctypes.byref(attr),
        ctypes.c_size_t(ctypes.sizeof(attr)),
        filename=target,
    )


def filesystem_magic(path: _Path) -> int:
    """Return ``f_type`` of statfs(2): which kind of file system holds ``path``."""
    buffer = (ctypes.c_long * 32)()
    _check(_libc.statfs(ctypes.c_char_p(os.fsencode(path)), buffer), path)
    return int(buffer[0]) & 0xFFFFFFFF


def spread_subdirectories(directory: _Path) -> None:
    """Set ``FS_TOPDIR_FL`` (``chattr +T``): ext2, 3 and 4 then place new subdirectories far from each other.

    Raises: OSError where the file system has no such flag, or where its number is not known (ppc, mips, sparc).
    """
    import fcntl
    import struct

    if os.uname().machine.startswith(("ppc", "mips", "sparc")):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), directory)
    getflags, setflags, topdir = 0x80086601, 0x40086602, 0x20000
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        (flags,) = struct.unpack("l", fcntl.ioctl(fd, getflags, bytes(struct.calcsize("l"))))
        fcntl.ioctl(fd, setflags, struct.pack("l", flags | topdir))
    finally:
        os.close(fd)


def bring_loopback_up() -> None:
    """Set ``lo`` of this network namespace up."""
    import fcntl
    import socket
    import struct

    siocsifflags, iff_up = 0x8914, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, siocsifflags, struct.pack("16sh14x", b"lo", iff_up))


_M_ARENA_MAX = -8


def limit_malloc_arenas(count: int) -> None:
    """Have the C library serve all threads from ``count`` arenas; call it before there are threads.

    With one arena for each of many short-lived threads, freed memory stays scattered among them and the process grows.
    Does nothing with C libraries other than glibc.
    Spec: mallopt(3), M_ARENA_MAX.
    """
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, count)
