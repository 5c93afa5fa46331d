"""The entry of a layer's directory that says "deleted below".

Overlayfs's own, a character device 0/0, can be made by anybody, but not everywhere: overlayfs itself refuses it, and that is
what the root of a container usually is. There a socket without any permission stands for it: archives cannot hold sockets,
so no image has one. A kernel does not understand it, so such layers are never mounted as an overlay, only read and copied.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

__all__ = ["is_whiteout", "make_whiteout", "takes_whiteouts"]

_PROBE = ".whiteout-probe"


def is_whiteout(st: os.stat_result) -> bool:
    """Whether an entry says "deleted"."""
    mode = st.st_mode
    return mode == stat.S_IFSOCK or (stat.S_ISCHR(mode) and st.st_rdev == 0)


def make_whiteout(path: str | bytes, *, dir_fd: int | None = None) -> None:
    """Make such an entry, where nothing is. Raises: OSError."""
    try:
        os.mknod(path, stat.S_IFCHR, os.makedev(0, 0), dir_fd=dir_fd)
    except PermissionError:
        os.mknod(path, stat.S_IFSOCK, dir_fd=dir_fd)


def takes_whiteouts(folder: str | os.PathLike[str]) -> bool:
    """Whether the file system of ``folder`` takes overlayfs's own. Raises: OSError for other trouble."""
    path = os.path.join(folder, f"{_PROBE}-{os.urandom(4).hex()}")
    try:
        os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))
    except PermissionError:
        return False
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)
    return True
