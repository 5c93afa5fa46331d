"""Read-only views of file systems: what they hold, without mounting anything.

A view has nodes; a path is resolved inside it with the view's root as ``/``, so no link leads out.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Protocol

from crossdock.errors import SolveError

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from crossdock.cancel import CancelToken

__all__ = ["MAX_LINKS", "Node", "Stat", "View", "resolve", "split_path", "untouched"]

#: links followed for one path before it is called a loop (the kernel's own limit)
MAX_LINKS = 40


class Stat:
    """What is needed of an ``os.stat_result``, in half of its memory: there is one for every file of a context."""

    __slots__ = (
        "st_atime_ns",
        "st_ctime_ns",
        "st_dev",
        "st_gid",
        "st_ino",
        "st_mode",
        "st_mtime_ns",
        "st_nlink",
        "st_rdev",
        "st_size",
        "st_uid",
    )

    def __init__(self, found: os.stat_result) -> None:
        self.st_mode = found.st_mode
        self.st_ino = found.st_ino
        self.st_dev = found.st_dev
        self.st_nlink = found.st_nlink
        self.st_uid = found.st_uid
        self.st_gid = found.st_gid
        self.st_rdev = found.st_rdev
        self.st_size = found.st_size
        self.st_atime_ns = found.st_atime_ns
        self.st_mtime_ns = found.st_mtime_ns
        self.st_ctime_ns = found.st_ctime_ns


class Node:
    """One file, directory or link of a view."""

    __slots__ = ("gid", "kids", "name", "path", "st", "uid", "where")

    def __init__(
        self,
        name: str,
        path: str,
        st: os.stat_result | Stat,
        uid: int,
        gid: int,
        where: str | tuple[str, ...],
    ) -> None:
        #: last component, ``""`` for the root
        self.name = name
        #: from the view's root, without leading slash, ``""`` for the root
        self.path = path
        #: from lstat; use ``uid`` and ``gid`` beside it for the owner
        self.st = st
        self.uid = uid
        self.gid = gid
        #: real path; for a directory of a layered view all real directories merged in it, topmost first
        self.where = where
        #: entries by name, sorted, once listed
        self.kids: dict[str, Node] | None = None

    @property
    def is_dir(self) -> bool:
        """Whether this is a directory."""
        return stat.S_ISDIR(self.st.st_mode)

    @property
    def is_link(self) -> bool:
        """Whether this is a symbolic link."""
        return stat.S_ISLNK(self.st.st_mode)

    @property
    def is_file(self) -> bool:
        """Whether this is a regular file."""
        return stat.S_ISREG(self.st.st_mode)


def untouched(was: os.stat_result | Stat, found: os.stat_result) -> bool:
    """Whether nothing has happened to a file but that it was read, as far as ``stat`` tells."""
    return (
        was.st_ctime_ns == found.st_ctime_ns
        and was.st_ino == found.st_ino
        and was.st_mtime_ns == found.st_mtime_ns
        and was.st_size == found.st_size
        and was.st_mode == found.st_mode
        and was.st_nlink == found.st_nlink
        and was.st_uid == found.st_uid
        and was.st_gid == found.st_gid
        and was.st_dev == found.st_dev
    )


class View(Protocol):
    """A file system to read. Safe from any thread."""

    def root(self) -> Node:
        """Return the root directory."""
        ...

    def child(self, node: Node, name: str) -> Node | None:
        """Return the entry ``name`` of a directory."""
        ...

    def children(self, node: Node) -> Mapping[str, Node]:
        """Return all entries of a directory, in order of name."""
        ...

    def open(self, node: Node) -> int:
        """Open a regular file for reading; the caller closes it."""
        ...

    def readlink(self, node: Node) -> str:
        """Return the target of a link."""
        ...

    def xattrs(self, node: Node) -> Sequence[tuple[str, bytes]]:
        """Return the extended attributes that images keep, sorted."""
        ...

    def digests(self, nodes: Sequence[Node], cancel: CancelToken) -> list[bytes]:
        """Return the sha256 of regular files, in order."""
        ...


def split_path(path: str) -> list[str]:
    """Return the components of a path taken from the root: ``.`` dropped, ``..`` resolved lexically."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            if parts:
                parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return parts


def resolve(view: View, path: str, *, follow: bool) -> Node | None:
    """Return the node at ``path``, ``None`` when there is none.

    Links in the middle are followed, the last one only with ``follow``; targets are taken inside the view.
    Raises: SolveError for a loop of links.
    """
    todo = split_path(path)[::-1]
    above: list[Node] = [view.root()]
    links = 0
    while todo:
        name = todo.pop()
        if name == "..":
            if len(above) > 1:
                above.pop()
            continue
        at = above[-1]
        node = view.child(at, name) if at.is_dir else None
        if node is None:
            return None
        if not node.is_link or not (todo or follow):
            above.append(node)
            continue
        links += 1
        if links > MAX_LINKS:
            summary = f"too many levels of symbolic links in {path}"
            raise SolveError(summary)
        target = view.readlink(node)
        if target.startswith("/"):
            del above[1:]
        todo += [part for part in target.split("/") if part not in ("", ".")][::-1]
    return above[-1]
