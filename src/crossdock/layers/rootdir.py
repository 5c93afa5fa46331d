"""Directories below a root, by path, such that no path leads out.

Every component is opened from a handle of the one before, never following a link; links are resolved
here, with the root as ``/``. So an archive may replace a directory by a link as often as it likes.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from crossdock.errors import LayerError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RootDir", "split_name"]

_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_DIRECTORY
_MAX_LINKS = 40
_CACHED = 64
_MAX_PATH = 4095
_MAX_DEPTH = 256


def split_name(name: bytes) -> tuple[bytes, bytes]:
    """Return directory and last component of an archive's name, without ``.``, ``..`` and slashes around.

    An absolute name is taken from the root. Both parts are empty for the root itself.
    Raises: LayerError when ``..`` leads out of the root, or the name is longer than a path may be.
    """
    if len(name) > _MAX_PATH or name.count(b"/") > _MAX_DEPTH:
        summary = f"hostile archive: a name of {len(name)} bytes and {name.count(b'/')} directories"
        raise LayerError(summary)
    name = name.strip(b"/")
    if b"./" in name or b"//" in name or name in (b".", b"..") or name.endswith((b"/.", b"/..")):
        parts: list[bytes] = []
        for part in name.split(b"/"):
            if part == b"..":
                if not parts:
                    summary = f"hostile archive: {os.fsdecode(name)!r} leads out of the directory"
                    raise LayerError(summary)
                parts.pop()
            elif part not in (b"", b"."):
                parts.append(part)
        name = b"/".join(parts)
    directory, _, last = name.rpartition(b"/")
    return directory, last


class RootDir:
    """Handles of directories below a root; the latest 64 stay open. One thread.

    ``make`` creates what is missing, or replaces a whiteout: it gets the parent's handle, the name, and
    the full path, and returns False when the thing there is not to be replaced.
    """

    def __init__(self, root: int, make: Callable[[int, bytes, bytes], bool]) -> None:
        self._root = root
        self._make = make
        self._open: dict[bytes, int] = {}
        self._stale: list[int] = []

    def close(self) -> None:
        """Close all handles but the root's."""
        self.forget()
        self.sweep()

    def forget(self) -> None:
        """Drop what is known, since a directory or link was replaced; handles live until :meth:`sweep`."""
        self._stale += self._open.values()
        self._open.clear()

    def sweep(self) -> None:
        """Close handles that are no longer handed out; call it while holding none."""
        if self._stale:
            stale, self._stale = self._stale, []
            for handle in stale:
                os.close(handle)

    def get(self, path: bytes, *, make: bool = True) -> int:
        """Return a handle (path only) of the directory ``path``; ours, valid until :meth:`sweep`.

        Raises: LayerError when a component is no directory; FileNotFoundError or NotADirectoryError
        when ``make`` is False; OSError.
        """
        if not path:
            return self._root
        handle = self._open.get(path)
        if handle is not None:
            return handle
        parent, _, name = path.rpartition(b"/")
        handle = self._child(self.get(parent, make=make), name, path, make)
        if handle is None:
            handle = self._resolve(path, make)
        if len(self._open) >= _CACHED:
            self._stale.append(self._open.pop(next(iter(self._open))))
        self._open[path] = handle
        return handle

    def _child(self, above: int, name: bytes, path: bytes, make: bool) -> int | None:
        """Open a real directory, made when missing; None when it is a link."""
        for attempt in (1, 2):
            try:
                return os.open(name, _FLAGS, dir_fd=above)
            except OSError as exc:
                if exc.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP) or attempt == 2:
                    raise
                if exc.errno != errno.ENOENT and _is_link(name, above):
                    return None
                if not make:
                    raise
                if not self._make(above, name, path):
                    _not_a_directory(path)
        return None

    def _resolve(self, path: bytes, make: bool) -> int:
        """Open ``path`` component by component, links and their ``..`` resolved inside the root."""
        handles = [os.dup(self._root)]
        todo = path.split(b"/")[::-1]
        links = 0
        try:
            while todo:
                name = todo.pop()
                if name in (b"", b"."):
                    continue
                if name == b"..":
                    if len(handles) > 1:
                        os.close(handles.pop())
                    continue
                child = self._child(handles[-1], name, path, make)
                if child is not None:
                    handles.append(child)
                    continue
                links += 1
                if links > _MAX_LINKS:
                    summary = f"hostile archive: too many symbolic links in {os.fsdecode(path)!r}"
                    raise LayerError(summary)
                target = os.readlink(name, dir_fd=handles[-1])
                if target.startswith(b"/"):
                    while len(handles) > 1:
                        os.close(handles.pop())
                todo += target.split(b"/")[::-1]
            return handles.pop()
        finally:
            for handle in handles:
                os.close(handle)


def _is_link(name: bytes, above: int) -> bool:
    return stat.S_ISLNK(os.stat(name, dir_fd=above, follow_symlinks=False).st_mode)


def _not_a_directory(path: bytes) -> None:
    summary = f"invalid archive: {os.fsdecode(path)!r} is used as a directory but is none"
    raise LayerError(summary)
