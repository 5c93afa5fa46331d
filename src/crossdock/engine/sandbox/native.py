"""Root file systems by plain copying, for stores whose file system takes no overlay at all.

Slow and always possible: the layers are copied together, the step changes the copy, and what differs afterwards is
moved into the upper directory in overlay form (whiteouts, opaque directories), as if an overlay had been there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from crossdock.engine.store.locks import try_flock
from crossdock.engine.store.unfinished import note_unfinished
from crossdock.record import NamedTuple
from crossdock.whiteouts import is_whiteout, make_whiteout

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["copied", "merge_layers", "move_changes", "scratch_folder"]

_SCRATCH = "crossdock-root-"
#: nanoseconds within which whoever makes a folder has locked it
_FRESH_NS = 60 * 10**9

_OPAQUE = "user.overlay.opaque"
_OVERLAY_PREFIX = "user.overlay."


class _Seen(NamedTuple):
    """An entry as it was before the step: any change of it changes one of these."""

    inode: int
    mode: int
    changed_ns: int


@contextmanager
def scratch_folder(parent: Path | None) -> Iterator[Path]:
    """Hold a folder for a copy that is only read. It is locked, so that what killed workers left is known and removed.

    Raises: OSError.
    """
    from tempfile import mkdtemp

    if parent is not None:
        _sweep(parent)
    scratch = Path(mkdtemp(prefix=_SCRATCH, dir=parent))
    fd = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        note_unfinished(scratch.name)
        yield scratch
    finally:
        shutil.rmtree(scratch)
        os.close(fd)


def _sweep(folder: Path) -> None:
    for entry in folder.glob(f"{_SCRATCH}*"):
        try:
            if time.time_ns() - entry.stat().st_ctime_ns < _FRESH_NS:
                continue
            fd = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            if try_flock(fd):
                shutil.rmtree(entry)
        finally:
            os.close(fd)


@contextmanager
def copied(lowers: Sequence[Path], upper: Path | None, scratch: Path) -> Iterator[Path]:
    """Hold a merged copy in ``scratch/root``; at the end what changed is in ``upper`` (same file system).

    Raises: OSError.
    """
    root = scratch / "root"
    root.mkdir(mode=0o755)
    try:
        layers = [*lowers, *((upper,) if upper is not None else ())]
        merge_layers(layers, root)
        before = _snapshot(root)
        yield root
        if upper is not None:
            move_changes(root, before, upper)
    finally:
        shutil.rmtree(root)


def merge_layers(layers: Sequence[Path], target: Path) -> None:
    """Apply layers in overlay form, bottom first, to the directory ``target``."""
    for layer in layers:
        links: dict[tuple[int, int], str] = {}
        _apply(str(layer), str(target), links)
        _copy_attributes(str(layer), str(target))


def _apply(source: str, target: str, links: dict[tuple[int, int], str]) -> None:
    with os.scandir(source) as entries:
        for entry in entries:
            found = entry.stat(follow_symlinks=False)
            destination = f"{target}/{entry.name}"
            if is_whiteout(found):
                _remove(destination)
            elif stat.S_ISDIR(found.st_mode):
                if _is_opaque(entry.path) or not _is_directory(destination):
                    _remove(destination)
                    os.mkdir(destination)
                _apply(entry.path, destination, links)
                _copy_attributes(entry.path, destination)
            else:
                _remove(destination)
                _copy_entry(entry.path, destination, found, links)


def _copy_entry(source: str, target: str, found: os.stat_result, links: dict[tuple[int, int], str]) -> None:
    key = (found.st_dev, found.st_ino)
    if found.st_nlink > 1 and key in links:
        os.link(links[key], target, follow_symlinks=False)
        return
    if stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(source), target)
    elif stat.S_ISREG(found.st_mode):
        shutil.copyfile(source, target, follow_symlinks=False)
    elif stat.S_ISFIFO(found.st_mode):
        os.mkfifo(target)
    elif stat.S_ISSOCK(found.st_mode):
        os.mknod(target, stat.S_IFSOCK | 0o600)
    else:
        os.mknod(target, found.st_mode, found.st_rdev)
    links[key] = target
    _copy_attributes(source, target)


def _copy_attributes(source: str, target: str) -> None:
    found = os.lstat(source)
    os.chown(target, found.st_uid, found.st_gid, follow_symlinks=False)
    for name in _xattrs(source):
        if not name.startswith(_OVERLAY_PREFIX):
            value = os.getxattr(source, name, follow_symlinks=False)
            os.setxattr(target, name, value, follow_symlinks=False)
    if not stat.S_ISLNK(found.st_mode):
        os.chmod(target, stat.S_IMODE(found.st_mode))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns), follow_symlinks=False)


def _xattrs(path: str) -> list[str]:
    try:
        return os.listxattr(path, follow_symlinks=False)
    except OSError as exc:
        if exc.errno in (errno.ENOTSUP, errno.EPERM):
            return []
        raise


def _is_opaque(path: str) -> bool:
    return _OPAQUE in _xattrs(path) and os.getxattr(path, _OPAQUE) == b"y"


def _is_directory(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def _remove(path: str) -> None:
    if _is_directory(path):
        shutil.rmtree(path)
        return
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def _snapshot(root: Path) -> dict[str, _Seen]:
    """Record every entry below ``root``, and ``root`` itself as ``""``, by path relative to it."""
    base = str(root)
    seen = {"": _seen(base)}
    stack = [base]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                seen[entry.path[len(base) + 1 :]] = _seen(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
    return seen


def _seen(path: str) -> _Seen:
    found = os.lstat(path)
    return _Seen(found.st_ino, found.st_mode, found.st_ctime_ns)


def move_changes(root: Path, before: dict[str, _Seen], upper: Path) -> None:
    """Move what is new or changed below ``root`` into ``upper``, and mark there what is gone."""
    by_parent: dict[str, list[str]] = {}
    for path in before:
        if path:
            by_parent.setdefault(os.path.dirname(path), []).append(os.path.basename(path))
    _Mover(str(root), before, by_parent, str(upper)).directory("")


class _Mover:
    """One comparison of a copy with what it was."""

    def __init__(
        self, root: str, before: dict[str, _Seen], by_parent: dict[str, list[str]], upper: str
    ) -> None:
        self._root = root
        self._before = before
        self._by_parent = by_parent
        self._upper = upper

    def directory(self, path: str) -> None:
        """Compare a directory that was there before."""
        source = f"{self._root}/{path}"
        if _seen(source) != self._before[path]:
            self._make(path)
        names = set(os.listdir(source))
        for name in sorted(names):
            inside = f"{path}/{name}" if path else name
            now = _seen(f"{self._root}/{inside}")
            old = self._before.get(inside)
            if (
                stat.S_ISDIR(now.mode)
                and old is not None
                and stat.S_ISDIR(old.mode)
                and now.inode == old.inode
            ):
                self.directory(inside)
            elif now != old:
                self._take(path, inside, replaces=old is not None)
        for name in sorted(set(self._by_parent.get(path, ())) - names):
            inside = f"{path}/{name}" if path else name
            self._make(path)
            _remove(f"{self._upper}/{inside}")
            make_whiteout(f"{self._upper}/{inside}")
        if os.path.isdir(f"{self._upper}/{path}"):
            _copy_attributes(source, f"{self._upper}/{path}")

    def _take(self, parent: str, inside: str, *, replaces: bool) -> None:
        self._make(parent)
        target = f"{self._upper}/{inside}"
        _remove(target)
        os.rename(f"{self._root}/{inside}", target)
        if replaces and _is_directory(target):
            os.setxattr(target, _OPAQUE, b"y")

    def _make(self, path: str) -> None:
        """Make a directory and its parents in the upper directory; attributes follow when their turn ends."""
        target = self._upper
        for part in filter(None, path.split("/")):
            target = f"{target}/{part}"
            if not _is_directory(target):
                _remove(target)
                os.mkdir(target)
