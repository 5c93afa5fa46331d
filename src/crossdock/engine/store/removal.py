"""Deleting in two steps: rename into ``trash/`` (atomic), then delete at leisure. Safe at any depth of tree."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from crossdock.engine.store import hooks
from crossdock.engine.store.ids import new_id
from crossdock.engine.store.locks import try_flock
from crossdock.engine.store.rim import rim

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Trash", "tree_size"]


class Trash:
    """The ``trash`` folder of a store. Safe from any thread and process."""

    __slots__ = ("_folder", "_lock_path")

    def __init__(self, folder: Path, lock_path: Path) -> None:
        self._folder = os.fspath(folder)
        self._lock_path = lock_path

    def take(self, path: Path | str) -> bool:
        """Move a file or tree into the trash, atomically; False when it is not there. Raises: StoreError."""
        with rim("remove from the store"):
            try:
                os.rename(path, f"{self._folder}/{new_id()}{new_id()}")
            except FileNotFoundError:
                return False
        return True

    def pending(self) -> bool:
        """True when there is something to delete."""
        with rim("read the store"), os.scandir(self._folder) as entries:
            return next(entries, None) is not None

    def empty(self, keep_going: Callable[[], bool] = lambda: True) -> None:
        """Delete what is in the trash; does nothing while another process does so.

        ``keep_going`` is asked between files; what is left is deleted next time. Raises: StoreError, naming
        the first entry that could not be deleted, after trying all.
        """
        fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if try_flock(fd):
                hooks.point("store.trash:before_empty")
                self._empty(keep_going)
        finally:
            os.close(fd)

    def delete(self, path: Path | str) -> None:
        """Remove a file or tree now (through the trash, so that a crash leaves it there); absent is fine.

        Raises: StoreError.
        """
        name = new_id() + new_id()
        with rim("remove from the store"):
            try:
                os.rename(path, f"{self._folder}/{name}")
            except FileNotFoundError:
                return
            self._delete_all(name, lambda: True)

    def _empty(self, keep_going: Callable[[], bool]) -> None:
        failed: OSError | None = None
        for name in os.listdir(self._folder):
            try:
                self._delete_all(name, keep_going)
            except OSError as exc:
                failed = failed or exc
        if failed is not None:
            with rim("empty the store's trash"):
                raise failed

    def _delete_all(self, name: str, keep_going: Callable[[], bool]) -> None:
        pending = [name]
        while pending and keep_going():
            pending += self._delete_one(f"{self._folder}/{pending.pop()}")

    def _delete_one(self, path: str) -> list[str]:
        """Delete a file, or one level of a directory: directories in it move up into the trash and are returned.

        So neither recursion nor path length grows with the depth of the tree. Another process may delete the
        same entry meanwhile.
        """
        moved: list[str] = []
        try:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                os.unlink(path)
                return moved
            for entry in _scan(path):
                if entry.is_dir(follow_symlinks=False):
                    name = new_id() + new_id()
                    if _move_up(entry.path, f"{self._folder}/{name}"):
                        moved.append(name)
                else:
                    os.unlink(entry.path)
            os.rmdir(path)
        except FileNotFoundError:
            return moved
        return moved


def tree_size(path: Path | str) -> int:
    """Return the bytes a tree takes on disk: blocks, hard links once, directories included.

    A tree that changes meanwhile gives an approximation.
    """
    total = 0
    linked: set[int] = set()
    pending = [os.fspath(path)]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    info = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(info.st_mode):
                        pending.append(entry.path)
                    elif info.st_nlink > 1:
                        if info.st_ino in linked:
                            continue
                        linked.add(info.st_ino)
                    total += info.st_blocks
        except FileNotFoundError:
            continue
    return total * 512


def _scan(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except PermissionError:
        os.chmod(path, 0o700)
        with os.scandir(path) as entries:
            return list(entries)


def _move_up(source: str, target: str) -> bool:
    """Rename a directory unless it is empty, then remove it; False when it is gone."""
    try:
        os.rmdir(source)
    except OSError as exc:
        if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    else:
        return False
    try:
        os.rename(source, target)
    except PermissionError:
        # Renaming a directory to another parent writes to it.
        os.chmod(source, 0o700)
        os.rename(source, target)
    return True
