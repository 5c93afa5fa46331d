"""Engines for builds that never pause: a new one now and then, so that what old builds touched can be collected.

An engine protects all that was touched through it until none of its solves is at work. On a busy server that moment may never
come. So builds that begin later get an engine of the next generation, on the same store and sandbox; the earlier one is
given up with the last build that began with it. Builds of two generations share finished steps by the store, as builds of two
processes do.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossdock.engine.facade import Engine

__all__ = ["Generations"]

#: seconds without a pause after which builds that begin get a new engine
GENERATION_S = 600.0


class Generations:
    """Which engine a build works with. Safe from any thread."""

    def __init__(self, engine: Engine) -> None:
        """The first engine stays its owner's, and must be closed after this."""
        self._first = engine
        # Guards what follows.
        self._lock = threading.Lock()
        self._current = engine
        self._since = time.monotonic()
        #: builds at work, by engine
        self._users: dict[Engine, int] = {engine: 0}

    def enter(self) -> Engine:
        """Return the engine for a build that begins; :meth:`leave` it. Raises: StoreError, StoreFull."""
        with self._lock:
            now = time.monotonic()
            if not self._users[self._current]:
                self._since = now
            elif now - self._since >= GENERATION_S:
                self._current, self._since = self._first.successor(), now
                self._users[self._current] = 0
            self._users[self._current] += 1
            return self._current

    def leave(self, engine: Engine) -> None:
        """Note that a build has ended; what only its generation protected may go. Raises: StoreError, StoreFull."""
        with self._lock:
            self._users[engine] -= 1
            if self._users[engine]:
                return
            retired = engine is not self._current and engine is not self._first
            if retired:
                del self._users[engine]
        if retired:
            engine.close()
        else:
            # It holds on when a build began meanwhile.
            engine.forget()

    def close(self) -> None:
        """Close all engines but the first. No build may be at work. Raises: InternalError when a step does not stop."""
        with self._lock:
            engines = [engine for engine in self._users if engine is not self._first]
            self._users = {self._first: 0}
            self._current = self._first
        for engine in engines:
            engine.close()
