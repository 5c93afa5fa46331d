"""The store: opens a folder and hands out its parts."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from crossdock.engine.store.content import ContentStore
from crossdock.engine.store.db import Database
from crossdock.engine.store.images import ImageStore
from crossdock.engine.store.layers import LayerStore
from crossdock.engine.store.layout import Layout
from crossdock.engine.store.leases import BLOB, LAYER, RESULT, LeaseFiles
from crossdock.engine.store.locks import RemovalLock
from crossdock.engine.store.mounts import CacheMounts
from crossdock.engine.store.records import RecordStore
from crossdock.engine.store.recovery import recover_leases, recover_power_cut
from crossdock.engine.store.removal import Trash
from crossdock.engine.store.rim import log, rim
from crossdock.engine.store.statcache import StatCache
from crossdock.errors import StoreError, StoreFull

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from crossdock.cancel import CancelToken
    from crossdock.engine.store.check import Problem
    from crossdock.engine.store.gc import GCPolicy
    from crossdock.engine.store.leases import Lease
    from crossdock.engine.store.usage import UsageRecord

__all__ = ["Store"]


class Store:
    """An open store. One per process is enough; any thread may use it; open it after forking, not before."""

    def __init__(self, layout: Layout) -> None:
        """Use :meth:`open`."""
        self.layout = layout
        self.removal = RemovalLock(layout.locks / "removal")
        self.trash = Trash(layout.trash, layout.locks / "trash")
        self.leases = LeaseFiles(layout.leases, self.removal)
        self.db = Database(layout.database, layout.locks / "write")
        self.content = ContentStore(layout, self.db, self.removal)
        self.layers = LayerStore(layout, self.db, self.removal, self.trash)
        self.records = RecordStore(self.db, self.removal)
        self.images = ImageStore(self.db, self.content, self.removal)
        self.mounts = CacheMounts(layout, self.db, self.trash)
        self.stats = StatCache(layout)
        self._closing = threading.Event()

    @classmethod
    def open(cls, root: Path) -> Store:
        """Open the store in ``root``, creating it when absent, and clear away what dead processes left half-made.

        Takes one or two milliseconds. Inside the worker namespace, where the store's owner is uid 0.
        Raises: StoreError (foreign, newer, read-only, not ours, network file system, damaged), with what to do; StoreFull.
        """
        layout = Layout(Path(root))
        layout.ensure()
        try:
            store = cls(layout)
        except StoreFull:
            layout.ballast.unlink(missing_ok=True)
            store = cls(layout)
        try:
            store.recover()
        except BaseException:
            store.close()
            raise
        return store

    @property
    def root(self) -> Path:
        """The store's folder."""
        return self.layout.root

    @contextmanager
    def lease(self) -> Iterator[Lease]:
        """Hold a lease for the block: what is touched under it is not collected. It dies with the process.

        At the end the use counts and times of what it held are written.
        """
        lease = self.leases.create()
        try:
            yield lease
        finally:
            try:
                self._note_use(lease)
            finally:
                lease.end()

    def recover(self) -> None:
        """Clear away what dead processes left; part of :meth:`open`, cheap, idempotent."""
        with rim("recover the store"):
            recover_power_cut(self)
            recover_leases(self)
            if self.trash.pending():
                # Many gigabytes may wait here after a killed prune; the build does not wait for them.
                threading.Thread(target=self._empty_trash, name="store-trash", daemon=True).start()

    # --- space ---

    def disk_usage(self, filters: Sequence[str] = (), *, age_limit_s: float = 0.0) -> list[UsageRecord]:
        """Return what the store holds, last used first; with ``age_limit_s`` only what is unused for longer.

        ``filters`` are BuildKit's (see ``filters.py``). Raises: UsageError, StoreError.
        """
        from crossdock.engine.store.filters import parse_filters
        from crossdock.engine.store.usage import collect

        matches = parse_filters(filters)
        newest = time.time_ns() - int(age_limit_s * 1e9)
        return [
            record
            for record in collect(self)
            if matches(record) and (not age_limit_s or record.last_used_ns <= newest)
        ]

    def total_size(self) -> int:
        """Return the bytes the store uses as far as known; unfinished layers are not. Takes about a millisecond."""
        from crossdock.engine.store.usage import total_size

        return total_size(self)

    def prune(
        self,
        policy: GCPolicy | None = None,
        *,
        sink: Callable[[UsageRecord], None] | None = None,
        cancel: CancelToken | None = None,
    ) -> int:
        """Remove what the policy says (by default: all that no build uses); returns bytes freed.

        ``sink`` gets each record as it is removed. What a running build of any process uses is never removed.
        Raises: UsageError, StoreError; the token's cause.
        """
        from crossdock.engine.store.gc import Collector, GCPolicy

        collector = Collector(self, sink, cancel)
        collector.apply(policy or GCPolicy())
        return collector.freed

    def gc(
        self,
        policies: Sequence[GCPolicy],
        *,
        max_bytes: int = 0,
        sink: Callable[[UsageRecord], None] | None = None,
        cancel: CancelToken | None = None,
    ) -> int:
        """Apply policies in order, then the hard limit; returns bytes freed. Raises: as :meth:`prune`."""
        from crossdock.engine.store.gc import Collector

        collector = Collector(self, sink, cancel)
        collector.orphans()
        for policy in policies:
            collector.apply(policy)
        if max_bytes:
            collector.enforce(max_bytes)
        return collector.freed

    def enforce(
        self,
        max_bytes: int,
        *,
        sink: Callable[[UsageRecord], None] | None = None,
        cancel: CancelToken | None = None,
    ) -> int:
        """Bring the store within ``max_bytes``, removing the longest unused first whatever its age and type.

        Cheap when nothing is to do: call it between steps. Returns by how many bytes the store is still
        above, when running builds and local images alone need more: 0 means that the limit holds. Raises:
        StoreError; the token's cause.
        """
        if self.total_size() <= max_bytes:
            return 0
        from crossdock.engine.store.gc import Collector

        return Collector(self, sink, cancel).enforce(max_bytes)

    # --- care ---

    def sync(self) -> None:
        """Make everything stored so far survive a power cut: one ``syncfs``. Call it after builds, not during.

        A process that dies loses nothing without it. Raises: StoreFull, StoreError.
        """
        from crossdock.engine.store.durability import sync

        sync(self)

    def check(
        self, *, repair: bool, contents: bool = True, cancel: CancelToken | None = None
    ) -> list[Problem]:
        """Look for damage; with ``repair`` drop what is damaged, so that builds make or fetch it again.

        Raises: StoreError; the token's cause.
        """
        from crossdock.engine.store.check import check

        return check(self, repair=repair, contents=contents, cancel=cancel)

    def close(self) -> None:
        """Close; idempotent. Leases must have ended."""
        self._closing.set()
        self.db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _empty_trash(self) -> None:
        # What cannot be deleted stays for `prune`, which reports it; a build must not fail for that.
        try:
            self.trash.empty(lambda: not self._closing.is_set())
        except StoreError as exc:
            log().warning("%s", exc.summary)

    def _note_use(self, lease: Lease) -> None:
        """Write use counts; they only guide pruning, so a full disk does not fail the build for them."""
        now = time.time_ns()
        used = _by_kind(lease.names())
        try:
            with self.db.transaction() as tx:
                for table, column, prefix in _USED:
                    sql = f"UPDATE {table} SET used_ns=?, uses=uses+1 WHERE {column}=?"  # noqa: S608
                    tx.executemany(sql, [(now, name) for name in used.get(prefix, ())])
        except StoreFull as exc:
            log().info("use counts not written: %s", exc.summary)


_USED = (("layers", "id", LAYER), ("blobs", "digest", BLOB), ("results", "canonical", RESULT))


def _by_kind(names: frozenset[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name[:2], []).append(name[2:])
    return found
