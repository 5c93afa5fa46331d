"""The result that a frontend returns: a client in a frontend's place, or a frontend in a container."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from crossdock.errors import CrossdockError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from crossdock.cancel import CancelToken
    from crossdock.server.results import Results

__all__ = ["Answer"]


class Answer:
    """Given once, waited for by one. Safe from any thread."""

    def __init__(self, on_given: Callable[[], object] | None = None) -> None:
        """``on_given`` is called when it is there."""
        self._on_given = on_given
        # Guards _outcome; notified when it is there.
        self._changed = threading.Condition()
        self._outcome: Results | CrossdockError | None = None

    @property
    def given(self) -> bool:
        """Whether it is there."""
        with self._changed:
            return self._outcome is not None

    def give(self, outcome: Results | CrossdockError) -> None:
        """Take the result, or why there is none. Raises: UsageError the second time."""
        with self._changed:
            if self._outcome is not None:
                summary = "gateway result is already set"
                raise UsageError(summary)
            self._outcome = outcome
            self._changed.notify_all()
        if self._on_given is not None:
            self._on_given()

    def wait(self, cancel: CancelToken) -> Results:
        """Wait for the result. Raises: the error that came instead; the token's cause."""
        with cancel.waking(self._wake), self._changed:
            while self._outcome is None:
                cancel.check()
                self._changed.wait()
            if isinstance(self._outcome, CrossdockError):
                raise self._outcome
            return self._outcome

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
