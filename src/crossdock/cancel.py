"""Cancellation: one token, passed down, that every wait honours.

A token is cancelled once, with a cause. Code that blocks registers a callback that
wakes it (closes a socket, kills a child); code that loops calls :meth:`check`.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from crossdock.errors import Cancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["CancelToken"]


class CancelToken:
    """Says that work should stop, why, and wakes whoever waits. Safe from any thread."""

    __slots__ = ("_callbacks", "_cause", "_event", "_lock", "_parent_unsubscribe")

    def __init__(self, parent: CancelToken | None = None) -> None:
        self._event = threading.Event()
        # Guards _callbacks and _cause; callbacks run outside it. Reentrant: a signal handler may
        # call cancel() while the main thread is inside.
        self._lock = threading.RLock()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._cause: BaseException | None = None
        self._parent_unsubscribe: Callable[[], None] | None = None
        if parent is not None:
            self._parent_unsubscribe = parent.on_cancel(lambda: self.cancel(parent.cause))

    @property
    def cancelled(self) -> bool:
        """True once :meth:`cancel` was called."""
        return self._event.is_set()

    @property
    def cause(self) -> BaseException:
        """The error given to :meth:`cancel`; a plain ``Cancelled`` before that."""
        return self._cause if self._cause is not None else Cancelled()

    def cancel(self, cause: BaseException | None = None) -> None:
        """Cancel; idempotent, the first cause wins. Callbacks run in the calling thread, each even if another fails.

        Raises: what the first callback that fails raises, which is a defect of it.
        """
        with self._lock:
            if self._event.is_set():
                return
            self._cause = cause if cause is not None else Cancelled()
            self._event.set()
            callbacks = list(self._callbacks.values())
            self._callbacks.clear()
        failures: list[Exception] = []
        for callback in callbacks:
            try:
                callback()
            except Exception as exc:  # noqa: BLE001  the others must be woken all the same
                failures.append(exc)
        if failures:
            raise failures[0]

    def check(self) -> None:
        """Raise the cause when cancelled."""
        if self._event.is_set():
            raise self.cause

    def wait(self, timeout_s: float | None = None) -> bool:
        """Sleep up to ``timeout_s`` seconds; True when cancelled meanwhile."""
        return self._event.wait(timeout_s)

    def sleep(self, seconds: float) -> None:
        """Sleep; raise the cause as soon as the token is cancelled."""
        if self._event.wait(seconds):
            raise self.cause

    def on_cancel(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` on cancellation (at once when already cancelled); returns an unsubscriber."""
        key = id(callback)
        with self._lock:
            if not self._event.is_set():
                self._callbacks[key] = callback

                def unsubscribe() -> None:
                    with self._lock:
                        self._callbacks.pop(key, None)

                return unsubscribe
        callback()
        return lambda: None

    @contextmanager
    def waking(self, callback: Callable[[], None]) -> Iterator[None]:
        """Hold ``callback`` registered for the length of a ``with`` block."""
        unsubscribe = self.on_cancel(callback)
        try:
            yield
        finally:
            unsubscribe()

    def close(self) -> None:
        """Detach from the parent token; the token itself stays usable."""
        if self._parent_unsubscribe is not None:
            self._parent_unsubscribe()
            self._parent_unsubscribe = None
