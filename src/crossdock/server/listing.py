"""The nodes of a directory, made while it is received: what comes where, what is as the last transfer left it.

Not for: files; whoever receives looks at them and makes them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from crossdock.engine.cache.listed import ListedTree
from crossdock.engine.cache.view import Node, Stat, untouched
from crossdock.engine.store.statcache import margin_ns
from crossdock.errors import ContextError
from crossdock.server.lefttree import MAX_ENTRIES, LeftTree

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from crossdock.buildkit.proto import stat_pb2

__all__ = ["Directory", "Listing"]


class Directory:
    """A directory of the client's: what it is to be, and what it was after the last transfer."""

    __slots__ = ("kids", "node", "record", "was")

    def __init__(self, node: Node, record: stat_pb2.Stat | None, was: Node | None) -> None:
        self.node = node
        #: its entries so far, in order
        self.kids: dict[str, Node] = {}
        node.kids = self.kids
        #: ``None`` for the root, whose owner, mode and times are not the client's
        self.record = record
        self.was = was

    def is_as_left(self, st: os.stat_result) -> bool:
        """Whether it is to have the names it had, and nothing has happened to it."""
        was = self.was
        if was is None or was.kids is None:
            return False
        return untouched(was.st, st) and was.kids.keys() == self.kids.keys()


class Listing:
    """Takes entries in the order in which they come."""

    def __init__(self, root: os.stat_result, left: LeftTree | None) -> None:
        """``left``: what the last transfer of the same directory left."""
        self._began_ns = time.time_ns()
        if left is not None and left.looked_ns > self._began_ns:
            left = None  # the clock was set back: a file may get times that it had before
        self._left = left
        #: packet -> what it described last time
        self.known: Mapping[bytes, Node] = left.known if left is not None else {}
        self._packets: dict[bytes, Node] = {}
        self._last = ""
        #: by path, the root first: it is ``""``
        self.directories = {
            "": Directory(Node("", "", Stat(root), 0, 0, ""), None, left.tree.root if left else None)
        }
        #: entries so far, and how many of them are the very ones that were there
        self.entries = 0
        self._kept = 0
        self._old_enough_ns = left.tree.old_enough_ns if left is not None else 0

    @property
    def is_settled(self) -> bool:
        """Whether what happened to a directory since the last transfer shows in its times."""
        return self._left is not None and self._left.tree.checksums is not None

    def place(self, path: str) -> dict[str, Node]:
        """Return the entries beside which ``path`` belongs. Raises: ContextError when it cannot come now."""
        # fsutil orders by segments: "a/b" comes before "a.b".
        ordered = path.replace("/", "\0")
        if ordered <= self._last:
            summary = f"the client sent {path!r} out of order"
            raise ContextError(summary)
        self._last = ordered
        directory = self.directories.get(path.rpartition("/")[0])
        if directory is None:
            summary = f"the client sent {path!r} without its directory"
            raise ContextError(summary)
        self.entries += 1
        return directory.kids

    def keep(self, kids: dict[str, Node], node: Node, packet: bytes) -> None:
        """List what was here before."""
        kids[node.name] = self._packets[packet] = node
        self._kept += 1

    def add(self, kids: dict[str, Node], path: str, st: os.stat_result | Stat, packet: bytes) -> Node:
        """List what is new, or not known."""
        name = path.rpartition("/")[2]
        node = kids[name] = Node(name, path, st, 0, 0, "")
        if len(self._packets) <= MAX_ENTRIES:
            self._packets[packet] = node
        return node

    def add_directory(
        self, kids: dict[str, Node], path: str, st: Stat, packet: bytes, record: stat_pb2.Stat
    ) -> None:
        """List a directory, whose entries may come from now on."""
        was = self.known.get(packet)
        self.directories[path] = Directory(self.add(kids, path, st, packet), record, was)

    def seen(self, node: Node, st: os.stat_result) -> None:
        """Note what a file is, once it is as it shall be."""
        node.st = Stat(st)
        self._old_enough_ns = max(self._old_enough_ns, st.st_ctime_ns + margin_ns(st))

    def keep_directory(self, directory: Directory) -> None:
        """Note that a directory is as it was."""
        if directory.was is not None:
            directory.node.st = directory.was.st
            self._kept += 1

    def file_at(self, path: str) -> Node | None:
        """Return what has come at a path."""
        parent, _, name = path.rpartition("/")
        directory = self.directories.get(parent)
        return None if directory is None else directory.kids.get(name)

    def finish(self, *, has_links: bool) -> LeftTree:
        """Return the tree; the very one that was there when nothing is new."""
        left = self._left
        # The root is among those kept.
        if left is not None and self._kept == self.entries + 1 == left.tree.entries + 1:
            tree = left.tree
        else:
            tree = ListedTree(self.directories[""].node, self.entries, self._old_enough_ns)
        if tree.checksums is None and tree.old_enough_ns < self._began_ns:
            tree.checksums = {}
        packets = self._packets if self.entries <= MAX_ENTRIES else {}
        if has_links:
            # What has several names is looked at anew each time.
            packets = {k: n for k, n in packets.items() if n.kids is not None or n.st.st_nlink == 1}
        return LeftTree(tree, packets, self._began_ns)
