"""The store's limit while things are being written: watched from a thread, kept by pruning, else by ending a writer.

What is committed is counted by the metadata; what is not yet (upper directories of steps, layers being unpacked, blobs
being written, cache mounts in use) is measured here. Measuring walks what is being written, so it is done only when the
file system lost as much space as the store has left, and now and then. Not for: choosing what to prune (``gc``).
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from crossdock.engine.store.removal import tree_size
from crossdock.engine.store.rim import log
from crossdock.engine.store.unfinished import Writer, current_writer
from crossdock.engine.store.usage import collect, measure_mounts, total_size
from crossdock.errors import StoreError, StoreFull
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from crossdock.cancel import CancelToken
    from crossdock.engine.store.store import Store

__all__ = ["Measured", "SpaceWatch", "measure"]

#: seconds between looks at the file system, and between measurements however little it lost
_TICK_S = 0.1
_REST_S = 2.0
#: a measurement may take this part of the time at most
_PART = 0.1
#: seconds for which a process lets another one give way that writes more
_PATIENCE_S = 1.0


class Measured(NamedTuple):
    """What a store holds, in bytes: committed (with cache mounts), and by name what is being written.

    ``mounts`` are the cache mounts used since they were last measured, among them those in use.
    """

    committed: int
    writing: Mapping[str, int]
    mounts: Mapping[str, int]

    @property
    def total(self) -> int:
        """All of it."""
        return self.committed + sum(self.writing.values())


def measure(store: Store) -> Measured:
    """Measure what a store holds, also what no process has committed yet.

    What is committed meanwhile counts once, what is written meanwhile about. Raises: StoreError, OSError.
    """
    mounts = measure_mounts(store)
    with store.db.snapshot():
        committed = total_size(store)
        known = {row[0] for row in store.db.all("SELECT id FROM layers WHERE has_directory=1")}
    writing = {
        name: tree_size(store.layout.layers / name)
        for name in os.listdir(store.layout.layers)
        if name not in known
    }
    # Copies of root file systems, where none can be mounted.
    copies = (store.root / "sandbox").glob("crossdock-root-*")
    writing.update({path.name: tree_size(path) for path in copies})
    with os.scandir(store.layout.ingest) as entries:
        for entry in entries:
            try:
                writing[entry.name] = entry.stat().st_blocks * 512
            except FileNotFoundError:
                continue
    return Measured(committed, writing, mounts)


class SpaceWatch:
    """Keeps one store within ``max_bytes`` while this process writes to it. Safe from any thread; close it."""

    def __init__(self, store: Store, max_bytes: int) -> None:
        self._store = store
        self._max_bytes = max_bytes
        # Guards what follows; the thread waits on it.
        self._changed = threading.Condition()
        self._writers: list[Writer] = []
        self._thread: threading.Thread | None = None
        self._closed = False
        # The thread's own.
        self._left_bytes = 0
        self._free_bytes = 0
        self._next_s = 0.0
        self._above_since_s = 0.0

    @contextmanager
    def writing(self, cancel: CancelToken) -> Iterator[None]:
        """Watch what the block writes: ``cancel`` is cancelled with StoreFull when it must end for the limit."""
        writer = Writer(cancel)
        with self._changed:
            self._writers.append(writer)
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._watch, name="store-space", daemon=True)
                self._thread.start()
            self._changed.notify()
        token = current_writer.set(writer)
        try:
            yield
        finally:
            current_writer.reset(token)
            with self._changed:
                self._writers.remove(writer)

    def close(self) -> None:
        """End the thread; idempotent."""
        with self._changed:
            self._closed = True
            thread, self._thread = self._thread, None
            self._changed.notify()
        if thread is not None:
            thread.join()

    # --- the thread ---

    def _watch(self) -> None:
        while self._wait():
            try:
                self._look()
            except (StoreError, OSError) as exc:
                # What cannot be looked at now can be in a moment; writers meet the same trouble and report it.
                log().info("the store's size is not known: %s", exc)
                self._next_s = time.monotonic() + _REST_S

    def _wait(self) -> bool:
        """Wait for the next look; False at the end."""
        with self._changed:
            while not self._writers and not self._closed:
                self._left_bytes = 0  # while nobody looks, anything may happen
                self._changed.wait()
            # The first look comes after a tick too: what is done by then pays nothing.
            self._changed.wait_for(lambda: self._closed, _TICK_S)
            return not self._closed

    def _look(self) -> None:
        free = self._free()
        if self._free_bytes - free < self._left_bytes and time.monotonic() < self._next_s:
            return
        started_s = time.monotonic()
        measured = measure(self._store)
        if measured.total > self._max_bytes:
            measured = self._prune(measured)
        now_s = time.monotonic()
        self._left_bytes = self._max_bytes - measured.total
        self._free_bytes = self._free()
        self._next_s = now_s + max(_REST_S, (now_s - started_s) / _PART)
        if self._left_bytes >= 0:
            self._above_since_s = 0.0
        else:
            self._above_since_s = self._above_since_s or now_s
            self._end_one(measured, waited_s=now_s - self._above_since_s)

    def _prune(self, measured: Measured) -> Measured:
        """Make room by what may go, unless that cannot be enough; returns what is there now."""
        from crossdock.engine.store.gc import Collector

        room = self._max_bytes - sum(measured.writing.values())
        try:
            if sum(record.size for record in collect(self._store) if record.in_use) > room:
                return measured
            Collector(self._store).enforce(room)
        except StoreError as exc:
            log().warning("above the store's limit: %s", exc.summary)
        return measure(self._store)

    def _end_one(self, measured: Measured, *, waited_s: float) -> None:
        """End the writer that writes most; another process first that writes more than all of this one."""
        with self._changed:
            writers = list(self._writers)
        if any(writer.ended for writer in writers):
            return  # what it wrote is being removed
        sizes = {**measured.writing, **measured.mounts}
        shares = [(writer.bytes_of(sizes), number, writer) for number, writer in enumerate(writers)]
        mine = sum(share for share, _, _ in shares)
        others = sum(sizes.values()) - mine
        if not shares or (others > mine and waited_s < _PATIENCE_S):
            return
        max(shares)[2].end(self._error(measured))

    def _error(self, measured: Measured) -> StoreFull:
        from crossdock.progress.trace import format_bytes

        written = sum(measured.writing.values())
        summary = f"the store has reached its limit of {format_bytes(self._max_bytes)} (max-used-space)"
        detail = (
            f"{format_bytes(measured.committed)} are needed by running builds and local images, "
            f"{format_bytes(written)} more are being written"
        )
        return StoreFull(summary, detail=detail, hint="raise the limit, or build fewer things at once")

    def _free(self) -> int:
        disk = os.statvfs(self._store.root)
        return disk.f_bfree * disk.f_frsize
