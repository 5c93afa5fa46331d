"""Files that appear whole or not at all: written beside their place, then renamed into it."""

from __future__ import annotations

import os
import stat
from contextlib import suppress

__all__ = ["replaceable", "temporary_name", "write_whole"]


def replaceable(path: str) -> bool:
    """Whether ``path`` is a file, or nothing yet; not a pipe, a device or a link to one, such as ``/dev/stdout``."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except FileNotFoundError:
        return True


def temporary_name(path: str) -> str:
    """Return a name beside ``path`` for its unfinished form.

    Random, since a process id tells processes apart in one PID namespace only, and every build has its own.
    """
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name[:200]}.{os.urandom(6).hex()}.tmp")


def write_whole(
    path: str, data: bytes, *, mode: int = 0o600, folder: str = "", durable: bool = False
) -> None:
    """Write a file, or replace one, in one step; nothing is left when that fails.

    ``mode`` is for a new file, before the umask. ``folder``, on the same file system, holds the unfinished file instead
    of the file's own; ``durable`` waits until the data is on disk. Raises: OSError.
    """
    temporary = temporary_name(os.path.join(folder, os.path.basename(path)) if folder else path)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(fd)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
