"""Pruning, garbage collection, and the limit that holds.

Removal is in two steps. Metadata goes in a transaction, files are renamed into the trash, both under the
removal lock, in small batches; then, without any lock, the trash is deleted. A process killed anywhere in
between leaves only garbage, listed in its lease file for the next opener.
"""

from __future__ import annotations

import heapq
import os
import time
from typing import TYPE_CHECKING

from crossdock.engine.store import hooks
from crossdock.engine.store.filters import parse_filters
from crossdock.engine.store.layout import refill_ballast
from crossdock.engine.store.leases import BLOB, LAYER, MOUNT, RESULT
from crossdock.engine.store.recovery import drop_layer_rows
from crossdock.engine.store.rim import log
from crossdock.engine.store.usage import collect, total_size
from crossdock.errors import StoreFull
from crossdock.record import Record

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from crossdock.cancel import CancelToken
    from crossdock.engine.store.leases import Lease
    from crossdock.engine.store.store import Store
    from crossdock.engine.store.usage import UsageRecord

    Sink = Callable[[UsageRecord], None]

__all__ = ["Collector", "GCPolicy", "default_policies", "keep_bytes"]

#: records removed under one hold of the removal lock, some milliseconds
_BATCH = 64
#: once over the limit, go below it by this part, so that the next step does not collect again
_SLACK = 0.05
_GB = 1_000_000_000
#: nanoseconds by which the clocks that wrote and read a time may differ
_SKEW_NS = 60 * 10**9


class GCPolicy(Record):
    """What may be removed, and how far: sizes in bytes, 0 meaning no bound.

    Of what matches, is unused for ``keep_duration_s`` and is not in use, the longest unused goes first, until
    the store is within ``max_used_space`` and the disk has ``min_free_space``, but not below
    ``reserved_space``. Without any of the three everything that matches goes.
    """

    filters: tuple[str, ...] = ()
    #: also internal and frontend records, and layers whose blobs local images share
    all: bool = False
    keep_duration_s: float = 0.0
    reserved_space: int = 0
    max_used_space: int = 0
    min_free_space: int = 0


def default_policies(disk_total: int) -> tuple[GCPolicy, ...]:
    """Return BuildKit's four default rules for a disk of that many bytes."""
    reserved = min(disk_total // 10, 10 * _GB)
    most = min(disk_total * 8 // 10, 100 * _GB)
    free = disk_total // 5
    volatile = ("type==source.local", "type==exec.cachemount", "type==source.git.checkout")
    return (
        GCPolicy(filters=volatile, keep_duration_s=48 * 3600, max_used_space=512_000_000),
        GCPolicy(
            keep_duration_s=60 * 24 * 3600, reserved_space=reserved, max_used_space=most, min_free_space=free
        ),
        GCPolicy(reserved_space=reserved, max_used_space=most, min_free_space=free),
        GCPolicy(all=True, reserved_space=reserved, max_used_space=most, min_free_space=free),
    )


def keep_bytes(policy: GCPolicy, total: int, free: int) -> int | None:
    """Return the size to which the policy shrinks a store of ``total`` bytes; None: no bound, remove all that matches."""
    if not (policy.reserved_space or policy.max_used_space or policy.min_free_space):
        return None
    keep = policy.max_used_space or None
    missing = policy.min_free_space - free
    if policy.min_free_space:
        allowed = total - max(missing, 0)
        keep = allowed if keep is None else min(keep, allowed)
    return max(keep or 0, policy.reserved_space, 0)


class Collector:
    """One run of removal on a store."""

    def __init__(self, store: Store, sink: Sink | None = None, cancel: CancelToken | None = None) -> None:
        self._store = store
        self._sink = sink
        self._cancel = cancel
        #: bytes freed so far
        self.freed = 0
        #: records removed so far
        self.removed = 0

    def apply(self, policy: GCPolicy) -> None:
        """Remove what the policy says.

        Raises: UsageError for its filters; StoreError; the token's cause (what was removed stays removed).
        """
        store = self._store
        matches = parse_filters(policy.filters)
        total = total_size(store)
        status = os.statvfs(store.root)
        keep = keep_bytes(policy, total, status.f_bavail * status.f_frsize)
        if keep is not None and total <= keep:
            return
        _bring_back(store)
        records = collect(store)
        cutoff_ns = time.time_ns() - int(policy.keep_duration_s * 1e9) if policy.keep_duration_s else None
        candidates = [
            record
            for record in records
            if not record.in_use
            and (policy.all or not (record.shared or record.record_type in ("internal", "frontend")))
            and (cutoff_ns is None or record.last_used_ns <= cutoff_ns)
            and matches(record)
        ]
        self._remove(leaves_first(candidates, records), None if keep is None else total - keep)
        if keep is None and not policy.filters:
            self._drop_empty_results(cutoff_ns)

    def enforce(self, max_bytes: int) -> int:
        """Remove the longest unused until the store is within ``max_bytes``, whatever its age or type.

        Only what running builds use and what local images need stays. Returns by how many bytes the store is
        still above.
        """
        total = total_size(self._store)
        if total <= max_bytes:
            return 0
        target = int(max_bytes * (1 - _SLACK))
        self.apply(GCPolicy(all=True, max_used_space=max(target, 1)))
        return max(0, total_size(self._store) - max_bytes)

    def orphans(self) -> None:
        """Remove layers that nothing can find: without a result or a diff id, e.g. of steps that failed later."""
        store = self._store
        lost = {
            row[0]
            for row in store.db.all(
                "SELECT id FROM layers l WHERE diff_id IS NULL"
                " AND NOT EXISTS(SELECT 1 FROM result_layers r WHERE r.layer_id = l.id)"
            )
        }
        if lost:
            records = [record for record in collect(store) if record.id in lost and not record.in_use]
            self._remove(iter(records), None)

    def _remove(self, records: Iterator[UsageRecord], wanted: int | None) -> None:
        """Remove records in order until ``wanted`` bytes are freed (None: all of them)."""
        goal = None if wanted is None else self.freed + wanted
        try:
            self._remove_batches(records, goal)
        except StoreFull:
            # Even removing needs a few pages for the write-ahead log.
            self._store.layout.ballast.unlink(missing_ok=True)
            self._remove_batches(records, goal)
        finally:
            self._store.trash.empty(self._keep_going)
        self._refill()

    def _remove_batches(self, records: Iterator[UsageRecord], goal: int | None) -> None:
        lease = self._store.leases.create()
        try:
            while goal is None or self.freed < goal:
                if self._cancel is not None:
                    self._cancel.check()
                batch = _take(records, None if goal is None else goal - self.freed)
                if not batch:
                    break
                for record, freed in self._remove_batch(batch, lease):
                    self.freed += freed
                    self.removed += 1
                    if self._sink is not None:
                        self._sink(record)
                self._store.trash.empty(self._keep_going)
        finally:
            lease.end()

    def _remove_batch(self, batch: Sequence[UsageRecord], lease: Lease) -> list[tuple[UsageRecord, int]]:
        removed = []
        store = self._store
        lease.append([MOUNT + record.id for record in batch if record.kind == "mount"])
        for record in batch:
            if record.kind == "mount" and store.mounts.remove(record.id):
                removed.append((record, record.size))
            elif record.kind == "stat":
                removed.append((record, store.stats.prune(0)))
        contents = [record for record in batch if record.kind in ("layer", "blob")]
        if contents:
            removed += self._remove_contents(contents, lease)
        return removed

    def _remove_contents(self, batch: list[UsageRecord], lease: Lease) -> list[tuple[UsageRecord, int]]:
        store = self._store
        hooks.point("store.prune:before_batch")
        with store.removal.removing():
            live = store.leases.live_names(besides=lease.path)
            layers = [r for r in batch if r.kind == "layer" and LAYER + r.id not in live]
            blobs = [r for r in batch if r.kind == "blob" and BLOB + r.id not in live]
            digests = {r.id: [r.id] for r in blobs} | {r.id: self._blobs_of(r.id) for r in layers}
            # For recovery, should we die between the transaction and the renames.
            lease.append([LAYER + r.id for r in layers])
            lease.append([BLOB + digest for names in digests.values() for digest in names])
            hooks.point("store.prune:before_delete")
            removed = []
            gone: list[str] = []
            with store.db.transaction() as tx:
                for record in (*layers, *blobs):
                    freed = _drop_directory_rows(tx, record) if record.kind == "layer" else 0
                    for digest in digests[record.id]:
                        size = _drop_blob_row(tx, digest, live)
                        if size is not None:
                            gone.append(digest)
                            freed += size
                    removed.append((record, freed))
            hooks.point("store.prune:after_delete")
            for record in layers:
                store.trash.take(store.layout.layers / record.id)
                hooks.point("store.prune:after_rename")
            for digest in gone:
                store.trash.take(store.content.path(digest))
                hooks.point("store.prune:after_rename")
        return removed

    def _drop_empty_results(self, cutoff_ns: int | None) -> None:
        """Drop results without layers: they take no space but are cache too."""
        store = self._store
        with store.removal.removing():
            live = store.leases.live_names()
            rows = store.db.all(
                "SELECT canonical FROM results r WHERE used_ns <= coalesce(?, used_ns)"
                " AND NOT EXISTS(SELECT 1 FROM result_layers l WHERE l.canonical = r.canonical)",
                (cutoff_ns,),
            )
            gone = [row for row in rows if RESULT + row[0] not in live]
            with store.db.transaction() as tx:
                tx.executemany("DELETE FROM results WHERE canonical=?", gone)
                tx.executemany("DELETE FROM keys WHERE canonical=?", gone)
                # A build that links before it saves loses at most that link.
                tx.execute("DELETE FROM keys WHERE canonical NOT IN (SELECT canonical FROM results)")

    def _blobs_of(self, layer_id: str) -> list[str]:
        rows = self._store.db.all("SELECT digest FROM layer_blobs WHERE layer_id=?", (layer_id,))
        return [row[0] for row in rows]

    def _keep_going(self) -> bool:
        return self._cancel is None or not self._cancel.cancelled

    def _refill(self) -> None:
        """Give the log's space back and take the ballast again, as far as the disk allows."""
        try:
            self._store.db.checkpoint()
            refill_ballast(self._store.layout.ballast)
        except (StoreFull, OSError) as exc:
            # The removal itself is done; the next run tries again.
            log().info("the disk is still full: %s", exc)


def _bring_back(store: Store) -> None:
    """Let nothing be used in the future: the clock was ahead once, and such things would never grow old."""
    now = time.time_ns()
    with store.db.transaction() as tx:
        for table in ("layers", "blobs", "results", "mounts"):
            sql = f"UPDATE {table} SET used_ns=?1 WHERE used_ns > ?1 + {_SKEW_NS}"  # noqa: S608
            tx.execute(sql, (now,))


def leaves_first(candidates: Iterable[UsageRecord], records: Iterable[UsageRecord]) -> Iterator[UsageRecord]:
    """Yield candidates, longest unused first, but a layer only after all layers that stand on it.

    A layer under one that is no candidate is never yielded.
    """
    children: dict[str, int] = {}
    for record in records:
        for parent in record.parents:
            children[parent] = children.get(parent, 0) + 1
    waiting: dict[str, UsageRecord] = {}
    ready: list[tuple[int, int, str]] = []
    for record in candidates:
        waiting[record.id] = record
        if not children.get(record.id):
            ready.append((record.last_used_ns, record.usage_count, record.id))
    heapq.heapify(ready)
    while ready:
        record = waiting[heapq.heappop(ready)[2]]
        yield record
        for parent in record.parents:
            children[parent] -= 1
            if not children[parent] and parent in waiting:
                above = waiting[parent]
                heapq.heappush(ready, (above.last_used_ns, above.usage_count, parent))


def _take(records: Iterator[UsageRecord], wanted: int | None) -> list[UsageRecord]:
    batch: list[UsageRecord] = []
    size = 0
    while len(batch) < _BATCH and (wanted is None or size < wanted):
        record = next(records, None)
        if record is None:
            break
        batch.append(record)
        size += record.size
    return batch


def _drop_directory_rows(tx: sqlite3.Connection, record: UsageRecord) -> int:
    row = tx.execute("SELECT size_bytes FROM layers WHERE id=?", (record.id,)).fetchone()
    drop_layer_rows(tx, record.id)
    return int(row[0]) if row else 0


def _drop_blob_row(tx: sqlite3.Connection, digest: str, live: frozenset[str]) -> int | None:
    """Delete a blob nobody needs any more; returns its size, None when it stays or is not stored."""
    if BLOB + digest in live:
        return None
    row = tx.execute(
        "SELECT size_bytes FROM blobs WHERE digest=?1 AND NOT EXISTS(SELECT 1 FROM layer_blobs WHERE digest=?1)"
        " AND NOT EXISTS(SELECT 1 FROM image_blobs WHERE digest=?1)",
        (digest,),
    ).fetchone()
    if row is None:
        return None
    tx.execute("DELETE FROM blobs WHERE digest=?", (digest,))
    return int(row[0])
