"""Change a file system by writing straight into the upper directory of an overlay, without mounting it.

What overlayfs would do on copy-up, deletion and re-creation is done here: directories are copied up with their
attributes, what is deleted below becomes a whiteout, and a directory made where one was deleted becomes opaque. So a
file op costs the writes it makes and nothing else, and needs no privilege beyond owning its ids.

Paths are given resolved: their existing components are real directories (see :meth:`Upper.resolve`). Nobody else
writes to the directory meanwhile, so such a path cannot be made to lead elsewhere.

Spec: kernel ``filesystems/overlayfs.rst`` with the ``user.overlay.`` prefix.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

from crossdock.engine.cache.layerview import OPAQUE_XATTR, LayerView, read_xattrs
from crossdock.engine.cache.view import MAX_LINKS, Node
from crossdock.errors import SolveError
from crossdock.record import NamedTuple
from crossdock.whiteouts import is_whiteout, make_whiteout

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from crossdock.engine.cache.view import Stat

__all__ = ["Owner", "Upper", "set_xattrs"]


#: what files take on disk comes in blocks of this many bytes
_BLOCK = 4096


class Owner(NamedTuple):
    """Ids inside the build's file systems."""

    uid: int
    gid: int


class Upper:
    """A file system made of ``lowers`` (bottom first) and the writable ``upper``. One thread changes it.

    ``lenient_owner``: the namespace has a single id, so files that cannot be given away stay ours.
    """

    def __init__(self, lowers: Sequence[Path], upper: Path, *, lenient_owner: bool = False) -> None:
        self._upper = os.fspath(upper)
        self._lower = LayerView(lowers)
        self.view = LayerView([*lowers, upper])
        self.lenient_owner = lenient_owner
        #: bytes on disk written so far, about; saves a walk of the finished layer
        self.size_bytes = 0
        #: directories known to be in upper, and what is below each: nothing means all its entries are ours
        self._ready: dict[str, tuple[str, ...]] = {"": self._lower.root().where if lowers else ()}  # type: ignore[dict-item]
        self._root_done = not lowers

    def real(self, path: str) -> str:
        """Return where ``path`` is, or would be, in the upper directory."""
        return f"{self._upper}/{path}" if path else self._upper

    # --- looking ---

    def resolve(self, path: str) -> str:
        """Return ``path`` with every link followed inside the root; what does not exist is taken literally.

        Raises: SolveError for a loop of links.
        """
        done: list[str] = []
        todo = [part for part in path.split("/") if part not in ("", ".")][::-1]
        links = 0
        while todo:
            part = todo.pop()
            if part == "..":
                if done:
                    done.pop()
                continue
            done.append(part)
            node = self.lookup("/".join(done))
            if node is None or not node.is_link:
                continue
            links += 1
            if links > MAX_LINKS:
                summary = f"too many levels of symbolic links in {path}"
                raise SolveError(summary)
            done.pop()
            target = self.view.readlink(node)
            if target.startswith("/"):
                done.clear()
            todo += [part for part in target.split("/") if part not in ("", ".")][::-1]
        return "/".join(done)

    def lookup(self, path: str) -> Node | None:
        """Return what is at ``path`` without following links."""
        parent, _, name = path.rpartition("/")
        lowers = self._ready.get(parent)
        if lowers == () and name:
            # Everything in this directory is ours: one lstat tells.
            real = self.real(path)
            try:
                st = os.lstat(real)
            except FileNotFoundError:
                return None
            where = (real,) if stat.S_ISDIR(st.st_mode) else real
            return Node(name, path, st, st.st_uid, st.st_gid, where)
        at: Node | None = self.view.root()
        for part in path.split("/") if path else ():
            at = self.view.child(at, part) if at is not None and at.is_dir else None
        return at

    # --- directories ---

    def directory(self, path: str) -> str:
        """Make the existing directory ``path`` writable, copying it and its parents up; return its real path.

        Raises: SolveError when it is not a directory.
        """
        if path in self._ready:
            if not path and not self._root_done:
                self._copy_up_root()
            return self.real(path)
        node = self.lookup(path)
        if node is None or not node.is_dir or not isinstance(node.where, tuple):
            summary = f"/{path} is not a directory"
            raise SolveError(summary)
        self.directory(path.rpartition("/")[0])
        real = self.real(path)
        below = node.where[1:] if node.where[0] == real else node.where
        if node.where[0] != real:
            os.mkdir(real, 0o700)
            self.size_bytes += _BLOCK
            self._copy_attributes(node.where[0], node.st, real)
        self._ready[path] = below
        return real

    def make_directory(self, path: str, mode: int, owner: Owner | None, time_ns: int | None) -> str:
        """Make the directory ``path``, which is not there; return its real path. Its parent must exist."""
        parent, _, name = path.rpartition("/")
        self.directory(parent)
        real = self.real(path)
        self._drop_whiteout(real)
        os.mkdir(real, 0o700)
        self.size_bytes += _BLOCK
        below = self._below(parent, name)
        if below is not None and below.is_dir:
            os.setxattr(real, OPAQUE_XATTR, b"y", follow_symlinks=False)
        self._ready[path] = ()
        if owner is not None:
            self.chown(real, owner)
        os.chmod(real, mode & 0o7777)
        if time_ns is not None:
            os.utime(real, ns=(time_ns, time_ns))
        return real

    def make_directories(
        self, path: str, mode: int, owner: Owner | None, time_ns: int | None = None
    ) -> list[str]:
        """Make ``path`` and its missing parents; return those made, topmost first.

        Raises: SolveError when a component is not a directory.
        """
        missing: list[str] = []
        at = path
        while at:
            node = self.lookup(at)
            if node is not None:
                if not node.is_dir:
                    summary = f"cannot make the directory /{path}: /{at} is not a directory"
                    raise SolveError(summary)
                break
            missing.append(at)
            at = at.rpartition("/")[0]
        missing.reverse()
        for directory in missing:
            self.make_directory(directory, mode, owner, time_ns)
        return missing

    # --- entries ---

    def make_room(self, path: str) -> str:
        """Prepare for a new file or link at ``path``, removing one that is there; return its real path.

        Raises: SolveError when a directory is in the way.
        """
        parent, _, _ = path.rpartition("/")
        self.directory(parent)
        real = self.real(path)
        if self._ready[parent] == ():
            try:
                st = os.lstat(real)
            except FileNotFoundError:
                return real
            if stat.S_ISDIR(st.st_mode):
                raise _in_the_way(path)
            os.unlink(real)
            return real
        node = self.lookup(path)
        if node is not None and node.is_dir:
            raise _in_the_way(path)
        with contextlib.suppress(FileNotFoundError):  # what is below gets hidden by the new entry
            os.unlink(real)
        return real

    def remove(self, path: str) -> None:
        """Remove ``path`` and everything in it; nothing there is fine."""
        parent, _, name = path.rpartition("/")
        node = self.lookup(path)
        if node is None:
            return
        self.directory(parent)
        real = self.real(path)
        try:
            st = os.lstat(real)
        except FileNotFoundError:
            st = None
        if st is not None and stat.S_ISDIR(st.st_mode):
            from shutil import rmtree  # it loads every compressor of the library

            rmtree(real)
        elif st is not None:
            os.unlink(real)
        prefix = path + "/"
        for known in [p for p in self._ready if p == path or p.startswith(prefix)]:
            del self._ready[known]
        if self._below(parent, name) is not None:
            make_whiteout(real)

    def note_size(self, size: int) -> None:
        """Count a file of ``size`` bytes that was written."""
        self.size_bytes += -(-size // _BLOCK) * _BLOCK

    def forget(self) -> None:
        """Forget what is known of the upper directory: somebody else changed it (through a mount)."""
        lowers = self._ready[""]
        self._ready = {"": lowers}

    def chown(self, target: str | int, owner: Owner) -> None:
        """Give a file away; a path is not followed. Raises: SolveError when the namespace lacks the id."""
        try:
            if isinstance(target, int):
                os.fchown(target, owner.uid, owner.gid)
            else:
                os.lchown(target, owner.uid, owner.gid)
        except OSError as exc:
            if exc.errno not in (errno.EINVAL, errno.EPERM):
                raise
            if self.lenient_owner:
                return
            summary = f"cannot give a file to {owner.uid}:{owner.gid}: the build has no such id"
            raise SolveError(
                summary, hint="give this user subordinate ids (/etc/subuid, /etc/subgid), or build as root"
            ) from exc

    # --- inside ---

    def _below(self, parent: str, name: str) -> Node | None:
        """Return what the lower layers show at a name, were upper's entry not there."""
        lowers = self._ready[parent]
        if not lowers:
            return None
        holder = Node("", parent, os.lstat(lowers[0]), 0, 0, lowers)
        return self._lower.child(holder, name)

    def _drop_whiteout(self, real: str) -> None:
        try:
            if is_whiteout(os.lstat(real)):
                os.unlink(real)
        except FileNotFoundError:
            pass

    def _copy_up_root(self) -> None:
        """The upper root begins with default attributes; it must have those of the root below."""
        self._root_done = True
        node = self._lower.root()
        if isinstance(node.where, tuple) and node.where:
            self._copy_attributes(node.where[0], node.st, self._upper)

    def _copy_attributes(self, source: str, st: os.stat_result | Stat, real: str) -> None:
        self.chown(real, Owner(st.st_uid, st.st_gid))
        os.chmod(real, st.st_mode & 0o7777)
        set_xattrs(real, read_xattrs(source))
        os.utime(real, ns=(st.st_atime_ns, st.st_mtime_ns))


def set_xattrs(target: str | int, attributes: Sequence[tuple[str, bytes]]) -> None:
    """Set attributes; those the file system or the namespace refuses are left out, as BuildKit does."""
    for name, value in attributes:
        try:
            os.setxattr(target, name, value, follow_symlinks=isinstance(target, int))
        except OSError as exc:
            if exc.errno not in (errno.EOPNOTSUPP, errno.EPERM, errno.EINVAL):
                raise


def _in_the_way(path: str) -> SolveError:
    summary = f"cannot replace the directory /{path} with a file"
    return SolveError(summary)
