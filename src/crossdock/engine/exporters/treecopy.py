"""Copy a mounted result into a directory of the user: files belong to whoever runs the build.

Files appear whole (written beside, then renamed). No link in the destination is followed: where the
result has a directory and the destination a link, the link goes.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from crossdock.engine.exporters.destination import export_error
from crossdock.errors import ExportError
from crossdock.whiteouts import is_whiteout
from crossdock.wholefile import temporary_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from crossdock.cancel import CancelToken

__all__ = ["TreeCopy", "check_overlap"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 4 << 20
_SECOND_NS = 1_000_000_000
#: copy_file_range cannot, but read and write can
_NO_RANGE = frozenset((errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM))


def check_overlap(roots: Sequence[Path], owners: Sequence[str]) -> None:
    """Check that results for several platforms share no file when they go into one directory.

    Raises: ExportError.
    """
    seen: dict[str, str] = {}
    for root, owner in zip(roots, owners, strict=True):
        for path in _files(os.fspath(root), ""):
            other = seen.setdefault(path, owner)
            if other != owner:
                summary = f"cannot overwrite {path} from {other} with {owner} when split option is disabled"
                raise ExportError(summary, hint="leave out platform-split=false")


def _files(folder: str, prefix: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            path = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path, path + "/")
            else:
                yield path


class TreeCopy:
    """One export into ``dest``. A context manager; holds handles of the directories it is in."""

    def __init__(self, dest: Path, epoch_s: int | None, cancel: CancelToken) -> None:
        self._dest = dest
        self._fixed_ns = None if epoch_s is None else epoch_s * _SECOND_NS
        self._cancel = cancel
        self._root = -1
        #: every path written, relative to the destination
        self._written: set[str] = set()
        #: mode and time of directories, set when nothing is created in them any more
        self._directories: dict[str, tuple[int, int]] = {}
        self._links: dict[tuple[int, int], str] = {}
        self._bytes = 0
        self.skipped: list[str] = []

    def __enter__(self) -> TreeCopy:
        try:
            self._dest.mkdir(parents=True, exist_ok=True)
            self._root = os.open(self._dest, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            raise export_error(exc, self._dest) from exc
        return self

    def __exit__(self, *_exc: object) -> None:
        os.close(self._root)

    def add(self, source: Path, folder: str, progress: Callable[[int], None]) -> None:
        """Copy what is in ``source`` into ``folder`` of the destination (empty: the destination itself).

        ``progress`` gets the bytes copied so far.
        Raises: ExportError, StoreFull, naming the file; the token's cause.
        """
        self._links.clear()
        self._bytes = 0
        prefix = ""
        target = os.dup(self._root)
        try:
            if folder:
                prefix = folder + "/"
                made = self._make_directory(target, folder, folder)
                os.close(target)
                target = made
                mtime_ns = self._fixed_ns if self._fixed_ns is not None else -1
                self._directories[folder] = (0o755, mtime_ns)
            handle = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._copy_entries(handle, target, prefix, progress)
            finally:
                os.close(handle)
        except OSError as exc:
            raise export_error(exc, self._dest / prefix) from exc
        finally:
            os.close(target)

    def delete_others(self) -> None:
        """Remove everything in the destination that was not written.

        Raises: ExportError, naming the file.
        """
        self._delete_in(self._root, "")

    def finish(self) -> None:
        """Set modes and times of directories, deepest first.

        Raises: ExportError.
        """
        for path in sorted(self._directories, reverse=True):
            mode, mtime_ns = self._directories[path]
            try:
                handle = self._open_below(path)
                try:
                    os.fchmod(handle, mode)
                    if mtime_ns >= 0:
                        os.utime(handle, ns=(mtime_ns, mtime_ns))
                finally:
                    os.close(handle)
            except OSError as exc:
                raise export_error(exc, self._dest / path) from exc

    def _copy_entries(self, source: int, target: int, prefix: str, progress: Callable[[int], None]) -> None:
        with os.scandir(source) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            self._cancel.check()
            path = prefix + entry.name
            status = entry.stat(follow_symlinks=False)
            try:
                if stat.S_ISDIR(status.st_mode):
                    self._copy_directory(source, target, entry.name, path, status, progress)
                else:
                    self._copy_other(source, target, entry.name, path, status)
                    progress(self._bytes)
            except OSError as exc:
                raise export_error(exc, self._dest / path) from exc

    def _copy_directory(
        self,
        source: int,
        target: int,
        name: str,
        path: str,
        status: os.stat_result,
        progress: Callable[[int], None],
    ) -> None:
        child = os.open(name, _DIRECTORY, dir_fd=source)
        try:
            made = self._make_directory(target, name, path)
            try:
                self._directories[path] = (status.st_mode & 0o7777, self._mtime(status))
                self._copy_entries(child, made, path + "/", progress)
            finally:
                os.close(made)
        finally:
            os.close(child)

    def _make_directory(self, target: int, name: str, path: str) -> int:
        self._written.add(path)
        try:
            os.mkdir(name, 0o700, dir_fd=target)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=target, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=target)
                os.mkdir(name, 0o700, dir_fd=target)
        return os.open(name, _DIRECTORY, dir_fd=target)

    def _copy_other(self, source: int, target: int, name: str, path: str, status: os.stat_result) -> None:
        kind = stat.S_IFMT(status.st_mode)
        if kind not in (stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO):
            if not is_whiteout(status):  # of one means that nothing is there
                self.skipped.append(path)
            return
        temporary = temporary_name(name)
        mtime_ns = self._mtime(status)
        try:
            if kind == stat.S_IFLNK:
                os.symlink(os.readlink(name, dir_fd=source), temporary, dir_fd=target)
                os.utime(temporary, ns=(mtime_ns, mtime_ns), dir_fd=target, follow_symlinks=False)
            elif kind == stat.S_IFIFO:
                os.mkfifo(temporary, status.st_mode & 0o777, dir_fd=target)
            elif not self._linked(target, temporary, path, status):
                self._copy_file(source, target, name, temporary, status)
            self._rename(temporary, name, target)
        except BaseException:
            _unlink(temporary, target)
            raise
        self._written.add(path)

    def _linked(self, target: int, temporary: str, path: str, status: os.stat_result) -> bool:
        """Make a hard link to an earlier copy of the same file, if there is one."""
        if status.st_nlink == 1:
            return False
        first = self._links.setdefault((status.st_dev, status.st_ino), path)
        if first == path:
            return False
        folder, _, name = first.rpartition("/")
        handle = self._open_below(folder)
        try:
            os.link(name, temporary, src_dir_fd=handle, dst_dir_fd=target, follow_symlinks=False)
        finally:
            os.close(handle)
        return True

    def _copy_file(self, source: int, target: int, name: str, temporary: str, status: os.stat_result) -> None:
        reading = os.open(name, _READ, dir_fd=source)
        try:
            writing = os.open(temporary, _CREATE, 0o600, dir_fd=target)
            try:
                self._copy_data(reading, writing)
                _copy_attributes(reading, writing)
                os.fchmod(writing, status.st_mode & 0o7777)
                mtime_ns = self._mtime(status)
                os.utime(writing, ns=(mtime_ns, mtime_ns))
            finally:
                os.close(writing)
        finally:
            os.close(reading)

    def _copy_data(self, reading: int, writing: int) -> None:
        in_kernel = True
        while True:
            self._cancel.check()
            try:
                if in_kernel:
                    count = os.copy_file_range(reading, writing, _CHUNK)
                else:
                    block = memoryview(os.read(reading, _CHUNK))
                    count = len(block)
                    while block:
                        block = block[os.write(writing, block) :]
            except OSError as exc:
                if not in_kernel or exc.errno not in _NO_RANGE:
                    raise
                in_kernel = False
                continue
            if count == 0:
                return
            self._bytes += count

    def _rename(self, temporary: str, name: str, target: int) -> None:
        try:
            os.rename(temporary, name, src_dir_fd=target, dst_dir_fd=target)
        except IsADirectoryError:
            _remove_tree(name, target)
            os.rename(temporary, name, src_dir_fd=target, dst_dir_fd=target)
        # Renaming one hard link over another of the same file does nothing.
        _unlink(temporary, target)

    def _mtime(self, status: os.stat_result) -> int:
        return status.st_mtime_ns if self._fixed_ns is None else self._fixed_ns

    def _open_below(self, path: str) -> int:
        handle = os.dup(self._root)
        for part in path.split("/") if path else ():
            try:
                child = os.open(part, _DIRECTORY, dir_fd=handle)
            finally:
                os.close(handle)
            handle = child
        return handle

    def _delete_in(self, handle: int, prefix: str) -> None:
        with os.scandir(handle) as found:
            entries = list(found)
        for entry in entries:
            path = prefix + entry.name
            try:
                if path not in self._written:
                    if entry.is_dir(follow_symlinks=False):
                        _remove_tree(entry.name, handle)
                    else:
                        os.unlink(entry.name, dir_fd=handle)
                elif entry.is_dir(follow_symlinks=False):
                    child = os.open(entry.name, _DIRECTORY, dir_fd=handle)
                    try:
                        self._delete_in(child, path + "/")
                    finally:
                        os.close(child)
            except OSError as exc:
                raise export_error(exc, self._dest / path) from exc


def _copy_attributes(reading: int, writing: int) -> None:
    """Copy ``user.*`` attributes, where the destination has such."""
    for name in os.listxattr(reading):
        if not name.startswith("user.") or name.startswith("user.overlay."):
            continue
        try:
            os.setxattr(writing, name, os.getxattr(reading, name))
        except OSError as exc:
            if exc.errno != errno.ENOTSUP:
                raise
            return


def _unlink(name: str, target: int) -> None:
    try:
        os.unlink(name, dir_fd=target)
    except FileNotFoundError:
        return


def _remove_tree(name: str, handle: int) -> None:
    import shutil

    shutil.rmtree(name, dir_fd=handle)
