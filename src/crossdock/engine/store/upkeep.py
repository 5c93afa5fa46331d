"""What a store needs between builds: the limit, garbage collection when it is due, and safety from power cuts when it is cheap.

A build that was cached pays well under a millisecond for all three. Not for: what may be removed (``gc``), how data is
made durable (``durability``).
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from crossdock.engine.store.rim import rim
from crossdock.errors import StoreError

if TYPE_CHECKING:
    from crossdock.cancel import CancelToken
    from crossdock.engine.store.store import Store

__all__ = ["BackgroundSync", "keep_house", "sync_when_cheap"]

#: seconds between collections while the store is beyond what the rules allow, and otherwise
_OFTEN_S = 60.0
_SELDOM_S = 3600.0
_GB = 1_000_000_000
#: below this no rule removes anything
_SMALL = 512_000_000
#: how fast dirty pages are guessed to reach the disk, bytes per second
_DISK_RATE = 100_000_000
#: seconds that writing to disk may take at the end of any build, and as a part of what the build took
_ALWAYS_S = 0.15
_PART = 0.05


def keep_house(store: Store, *, max_bytes: int = 0, spent_s: float = 0.0, cancel: CancelToken) -> None:
    """Bring the store within ``max_bytes`` (0: no limit), collect garbage when due, sync when cheap.

    Call it after a build that took ``spent_s`` seconds, when nothing of it is leased any more. Garbage is collected by
    BuildKit's default rules, at most once a minute. What is not on disk yet is written there when the machine has few
    unwritten pages, or the build took so long that it does not matter; otherwise one of the next builds does it, by
    when the kernel has written most of it.
    Raises: StoreError, StoreFull; the token's cause.
    """
    size = store.total_size()
    if max_bytes and size > max_bytes:
        store.enforce(max_bytes, cancel=cancel)
    elif size > _SMALL:
        _collect(store, size, cancel)
    sync_when_cheap(store, spent_s)


def sync_when_cheap(store: Store, spent_s: float) -> bool:
    """Write to disk what is not there yet when that takes little of the ``spent_s`` seconds; false when it is left undone.

    Raises: StoreError, StoreFull.
    """
    if _dirty_bytes() > max(_ALWAYS_S, _PART * spent_s) * _DISK_RATE:
        return False
    store.sync()
    return True


class BackgroundSync:
    """Writes to disk what a build has stored, when that is cheap, while the build pushes. A context manager: its end waits.

    What fails or comes too late is left to :func:`keep_house`, which tells.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._thread: threading.Thread | None = None

    def __enter__(self) -> BackgroundSync:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._thread.join()

    def begin(self) -> None:
        """Begin, once; does not wait."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="sync", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        from contextlib import suppress

        with suppress(StoreError):
            sync_when_cheap(self._store, 0)


def _collect(store: Store, size: int, cancel: CancelToken) -> None:
    disk = os.statvfs(store.root)
    total, free = disk.f_frsize * disk.f_blocks, disk.f_frsize * disk.f_bavail
    beyond = size > min(total * 8 // 10, 100 * _GB) or (
        size > min(total // 10, 10 * _GB) and free < total // 5
    )
    stamp = store.layout.locks / "collected"
    try:
        age_s = (time.time_ns() - stamp.stat().st_mtime_ns) / 1e9
    except FileNotFoundError:
        age_s = _SELDOM_S
    # A clock that was set back must not stop collection for ever.
    if 0 <= age_s < (_OFTEN_S if beyond else _SELDOM_S):
        return
    with rim("note when garbage was collected"):
        stamp.touch()
    from crossdock.engine.store.gc import default_policies

    store.gc(default_policies(total), cancel=cancel)


def _dirty_bytes() -> int:
    """Return how much of the page cache of the machine waits to be written; much where the kernel does not say."""
    try:
        with open("/proc/meminfo", "rb") as file:
            for line in file:
                if line.startswith(b"Dirty:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 1 << 62
