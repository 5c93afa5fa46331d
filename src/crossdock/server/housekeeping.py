"""What a long-lived server does for its store between builds: garbage collection, and safety from power cuts.

As buildkitd, the configured rules are applied a second after the start and after each build, at most once a minute; and
once in a while without a build, since rules with ages come to apply by time alone.

Not for: what may be removed (``engine.store.gc``).
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from crossdock.cancel import CancelToken
from crossdock.engine.store.upkeep import sync_when_cheap
from crossdock.errors import Cancelled, CrossdockError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.engine.store import Store
    from crossdock.engine.store.gc import GCPolicy

__all__ = ["Housekeeper"]

_log = logging.getLogger("crossdock.server.housekeeping")

#: seconds after a build, at least between two collections, and at most
_SOON_S = 1.0
_EVERY_S = 60.0
_SELDOM_S = 3600.0
#: seconds that stopping may take; a twentieth of it may go into writing to disk
_STOPPING_S = 20.0
#: seconds after a build by which the kernel has written most of what it left
_SETTLED_S = 30.0


class Housekeeper:
    """One thread; nothing that it does fails a build."""

    def __init__(self, store: Store, policies: Sequence[GCPolicy], *, max_bytes: int = 0) -> None:
        self._store = store
        self._policies = tuple(policies)
        self._max_bytes = max_bytes
        self._cancel = CancelToken()
        # Guards what follows; notified when there is work.
        self._changed = threading.Condition()
        self._wanted_at = time.monotonic() + _SOON_S
        self._collected_at = -_EVERY_S
        self._unsynced = False
        #: builds after which the store is written to disk just now
        self._syncing = 0
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)

    def start(self) -> None:
        """Begin; the first look at the store is a second later."""
        self._thread.start()

    def built(self, spent_s: float) -> None:
        """Note that a build is over that took ``spent_s`` seconds."""
        with self._changed:
            if self._cancel.cancelled:  # the end writes what there is, and then the store is closed
                self._unsynced = True
                return
            self._syncing += 1
        synced = False
        try:
            synced = sync_when_cheap(self._store, spent_s)
        except CrossdockError as exc:
            _log.warning("after a build: %s", exc.summary)
        finally:
            self._built(synced=synced)

    def _built(self, *, synced: bool) -> None:
        with self._changed:
            self._syncing -= 1
            self._unsynced |= not synced
            self._wanted_at = min(self._wanted_at, time.monotonic() + _SOON_S)
            self._changed.notify_all()

    def close(self) -> None:
        """End it; a collection under way is given up. What is not on disk yet is written there if that is quick."""
        self._cancel.cancel(Cancelled("the daemon is shutting down"))
        with self._changed:
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._syncing)
        self._thread.join()
        if self._unsynced:
            try:
                sync_when_cheap(self._store, _STOPPING_S)
            except CrossdockError as exc:
                _log.warning("at the end: %s", exc.summary)

    def _run(self) -> None:
        while self._wait():
            try:
                self._collect()
            except Cancelled:
                return
            except CrossdockError as exc:
                _log.warning("garbage collection: %s", exc.summary)
            if self._cancel.wait(_SETTLED_S):
                return
            self._sync()

    def _wait(self) -> bool:
        """Wait until it is time for a collection; false at the end."""
        with self._changed:
            while not self._cancel.cancelled:
                now = time.monotonic()
                due = max(self._wanted_at, self._collected_at + _EVERY_S)
                if due <= now:
                    self._collected_at, self._wanted_at = now, now + _SELDOM_S
                    return True
                self._changed.wait(due - now)
        return False

    def _collect(self) -> None:
        if not self._policies and not self._max_bytes:
            return
        freed = self._store.gc(self._policies, max_bytes=self._max_bytes, cancel=self._cancel)
        if freed:
            _log.info("garbage collection freed %d MB", freed // 1_000_000)

    def _sync(self) -> None:
        with self._changed:
            wanted, self._unsynced = self._unsynced, False
        if not wanted:
            return
        try:
            self._store.sync()
        except CrossdockError as exc:
            _log.warning("writing the store to disk: %s", exc.summary)
