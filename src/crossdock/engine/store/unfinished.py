"""Whose things in the store are that are not committed yet: needed only where a limit is watched (``watch``)."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossdock.cancel import CancelToken

__all__ = ["Writer", "current_writer", "note_unfinished"]


class Writer:
    """A part of a build that writes to the store, and what it has begun there. Safe from any thread."""

    __slots__ = ("_cancel", "_names", "ended")

    def __init__(self, cancel: CancelToken) -> None:
        self._cancel = cancel
        self._names: set[str] = set()
        #: whether it was told to end
        self.ended = False

    def note(self, name: str) -> None:
        """Note a thing: the id of a layer or cache mount, or a name in ``content/ingest``."""
        self._names.add(name)

    def bytes_of(self, sizes: Mapping[str, int]) -> int:
        """Return how much of ``sizes`` is this writer's."""
        return sum(sizes.get(name, 0) for name in tuple(self._names))

    def end(self, why: BaseException) -> None:
        """Make it stop."""
        self.ended = True
        self._cancel.cancel(why)


#: who writes in the current thread; threads that work for it run in copies of its context
current_writer: ContextVar[Writer | None] = ContextVar("crossdock-writer", default=None)


def note_unfinished(name: str) -> None:
    """Note for the current writer, if any is watched, that it begins something."""
    writer = current_writer.get()
    if writer is not None:
        writer.note(name)
