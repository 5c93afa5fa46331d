"""What a transfer leaves behind in memory, so that the next one of the same directory need not begin from nothing.

A directory received is compared entry by entry with what the client sends: what its packet was last time, and what the
kernel said of the file then, says at once whether both are as they were. Nothing is believed of the directory itself
without asking the kernel; a process that starts anew knows nothing and compares the slow way.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from crossdock.engine.cache.listed import ListedTree
    from crossdock.engine.cache.view import Node

__all__ = ["MAX_ENTRIES", "LeftTree", "TreeMemory"]

#: entries remembered of all directories together; each takes some 900 bytes
MAX_ENTRIES = 40_000
#: what a directory itself takes, in entries
_ITSELF = 10


class LeftTree:
    """A directory as a transfer left it."""

    __slots__ = ("known", "looked_ns", "tree")

    def __init__(self, tree: ListedTree, known: Mapping[bytes, Node], looked_ns: int) -> None:
        self.tree = tree
        #: packet -> what it describes; empty where there is too much to remember
        self.known = known
        #: when the transfer began: every file was looked at after that
        self.looked_ns = looked_ns


class TreeMemory:
    """What is left of the last transfers, by directory; those not used for longest are forgotten. Safe from any thread."""

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self._max = max_entries
        # Guards _trees.
        self._lock = threading.Lock()
        self._trees: dict[Path, LeftTree] = {}

    def take(self, path: Path) -> LeftTree | None:
        """Return what is known of a directory and forget it: it is about to change."""
        with self._lock:
            return self._trees.pop(path, None)

    def keep(self, path: Path, left: LeftTree) -> None:
        """Remember a directory, unless it is too large."""
        if _weight(left) > self._max or not left.known:
            return
        with self._lock:
            self._trees.pop(path, None)
            self._trees[path] = left
            total = sum(map(_weight, self._trees.values()))
            while total > self._max:
                total -= _weight(self._trees.pop(next(iter(self._trees))))


def _weight(left: LeftTree) -> int:
    return _ITSELF + left.tree.entries
