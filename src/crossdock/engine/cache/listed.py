"""Directories that whoever brought them has listed already, so that a view need not list them again.

Not for: bringing them (``server.receive``), reading them (``localview``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossdock.engine.cache.select import Selector
    from crossdock.engine.cache.view import Node

__all__ = ["ListedTree"]


class ListedTree:
    """The nodes of a directory, all of them listed, as they were when each was last looked at.

    Nothing in it changes any more, but ``checksums``; it may be shared by views and threads.
    """

    __slots__ = ("checksums", "entries", "old_enough_ns", "root")

    def __init__(self, root: Node, entries: int, old_enough_ns: int) -> None:
        self.root = root
        #: files, links and directories below the root
        self.entries = entries
        #: who reads a file after this (``time.time_ns()``) and then finds the tree unchanged has read what is there
        self.old_enough_ns = old_enough_ns
        #: what :func:`content_digest` found; ``None`` while the tree is too young for that to be believed later
        self.checksums: dict[tuple[Selector, ...], str] | None = None
