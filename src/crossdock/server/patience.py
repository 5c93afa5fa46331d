"""How long a frontend in a container is waited for: one that never speaks, and one that does not end after its result."""

from __future__ import annotations

import threading

from crossdock.cancel import CancelToken
from crossdock.errors import SolveError

__all__ = ["Patience"]

#: seconds in which a frontend must say its first word; any image may be named, and a shell would wait for ever
_GREETING_S = 60.0
#: seconds in which a frontend that has returned its result must end
_GRACE_S = 10.0


class Patience:
    """Cancels :attr:`cancel` when it runs out. Safe from any thread."""

    def __init__(
        self,
        source: str,
        cancel: CancelToken,
        *,
        greeting_s: float = _GREETING_S,
        grace_s: float = _GRACE_S,
    ) -> None:
        """Begin to wait for the frontend of image ``source``; ``cancel`` is what cancels its build."""
        #: cancelled with the build too
        self.cancel = CancelToken(cancel)
        self._source = source
        self._grace_s = grace_s
        # Guards what follows.
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._spoke = self._closed = False
        hint = "its program does not speak BuildKit's LLBBridge on its standard streams: is it a frontend?"
        self._wait(greeting_s, f"frontend {source} said nothing in {greeting_s:g} seconds", hint)

    def spoke(self) -> None:
        """Note that the frontend wrote something."""
        if not self._spoke:
            self._spoke = True
            self._stop()

    def answered(self) -> None:
        """Note that the result is there."""
        self._spoke = True
        self._wait(self._grace_s, f"frontend {self._source} did not end after its result", None)

    def close(self) -> None:
        """Wait no longer."""
        with self._lock:
            self._closed = True
        self._stop()
        self.cancel.close()

    def _wait(self, seconds: float, summary: str, hint: str | None) -> None:
        error = SolveError(summary, hint=hint)
        timer = threading.Timer(seconds, self.cancel.cancel, (error,))
        timer.daemon = True
        self._stop()
        with self._lock:
            if not self._closed:
                self._timer = timer
                timer.start()

    def _stop(self) -> None:
        with self._lock:
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
