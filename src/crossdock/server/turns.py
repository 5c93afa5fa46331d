"""Turns at what has a name, such as a directory that several builds of one client write."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crossdock.cancel import CancelToken

__all__ = ["Turns"]


class Turns:
    """Who comes waits for who has the same name, but not for ever: a client may have stopped. Safe from any thread."""

    def __init__(self) -> None:
        # Guards _held; notified when a turn ends.
        self._changed = threading.Condition()
        self._held: set[str] = set()

    @contextmanager
    def taken(self, name: str, patience_s: float, cancel: CancelToken) -> Iterator[None]:
        """Have the turn for the length of the block; after ``patience_s`` go on without it. Raises: the token's cause."""
        deadline = time.monotonic() + patience_s
        with cancel.waking(self._wake), self._changed:
            while name in self._held and (left := deadline - time.monotonic()) > 0:
                cancel.check()
                self._changed.wait(left)
            mine = name not in self._held
            self._held.add(name)
        try:
            yield
        finally:
            if mine:
                with self._changed:
                    self._held.discard(name)
                    self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
