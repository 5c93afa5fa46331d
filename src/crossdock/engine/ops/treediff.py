"""Write what must be applied to one file system to get another, as an overlay layer.

Spec: moby/buildkit ``docs/dev/merge-diff.md``; what differs is decided as containerd's continuity does: type, mode, owner,
size, times, attributes, link target, and content when the times do not settle it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crossdock.engine.cache.layerview import OPAQUE_XATTR
from crossdock.engine.ops.copytree import Copier, CopyOptions
from crossdock.engine.ops.upper import Upper
from crossdock.whiteouts import make_whiteout

if TYPE_CHECKING:
    from pathlib import Path

    from crossdock.cancel import CancelToken
    from crossdock.engine.cache.view import Node, View

__all__ = ["write_difference"]


def write_difference(
    lower: View, upper: View, target: Path, *, lenient_owner: bool, cancel: CancelToken
) -> None:
    """Fill the empty directory ``target``. Raises: OSError, SolveError, the token's cause."""
    _Difference(lower, upper, target, lenient_owner=lenient_owner, cancel=cancel).run()


class _Difference:
    def __init__(
        self, lower: View, upper: View, target: Path, *, lenient_owner: bool, cancel: CancelToken
    ) -> None:
        self._lower = lower
        self._upper = upper
        self._target = Upper([], target, lenient_owner=lenient_owner)
        self._cancel = cancel
        self._copier = Copier(upper, self._target, CopyOptions(), cancel)

    def run(self) -> None:
        """Compare from the roots down; files are copied together at the end."""
        self._directory(self._lower.root(), self._upper.root())
        self._copier.finish()

    def _directory(self, below: Node, above: Node) -> None:
        """Compare two directories at the same path."""
        self._cancel.check()
        old, new = self._lower.children(below), self._upper.children(above)
        for name in sorted(old.keys() - new.keys()):
            self._ensure(above)
            make_whiteout(self._target.real(old[name].path))
        for name, node in new.items():
            before = old.get(name)
            if before is None or before.is_dir != node.is_dir:
                self._ensure(above)
                self._copier.add(node, node.path)
                if before is not None and node.is_dir:
                    # Below is no directory, so nothing would shine through; but merged elsewhere, something could.
                    os.setxattr(self._target.real(node.path), OPAQUE_XATTR, b"y")
            elif node.is_dir:
                if self._differs(before, node):
                    self._ensure(node)
                self._directory(before, node)
            elif self._differs(before, node):
                self._ensure(above)
                self._copier.add(node, node.path)

    def _ensure(self, directory: Node) -> None:
        """Have a directory, with its parents, in the result."""
        path = directory.path
        if not path or self._target.lookup(path) is not None:
            return
        parent = self._upper_node(path.rpartition("/")[0])
        self._ensure(parent)
        self._copier.add_directory(directory, path)

    def _upper_node(self, path: str) -> Node:
        at = self._upper.root()
        for part in path.split("/") if path else ():
            found = self._upper.child(at, part)
            if found is None:
                raise FileNotFoundError(path)
            at = found
        return at

    def _differs(self, before: Node, after: Node) -> bool:
        one, two = before.st, after.st
        if (one.st_mode, one.st_uid, one.st_gid, one.st_rdev) != (
            two.st_mode,
            two.st_uid,
            two.st_gid,
            two.st_rdev,
        ):
            return True
        if list(self._lower.xattrs(before)) != list(self._upper.xattrs(after)):
            return True
        if after.is_dir:
            return False
        if after.is_link:
            return self._lower.readlink(before) != self._upper.readlink(after)
        if not after.is_file or (one.st_dev, one.st_ino) == (two.st_dev, two.st_ino):
            return False
        if one.st_size != two.st_size or one.st_mtime_ns != two.st_mtime_ns:
            return True
        return self._lower.digests([before], self._cancel) != self._upper.digests([after], self._cancel)
