"""Disk usage: what the store holds, record by record, and why each is kept.

A record is a layer (its directory and its stored blobs), a cache mount, a blob that belongs to no layer, or
the stat caches together. Sizes were measured when things were stored; cache mounts are measured here when
they were used since.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

from crossdock.engine.store.leases import BLOB, LAYER
from crossdock.engine.store.removal import tree_size
from crossdock.engine.store.rim import log
from crossdock.errors import StoreFull
from crossdock.record import Record

if TYPE_CHECKING:
    from crossdock.engine.store.records import RecordType
    from crossdock.engine.store.store import Store

__all__ = ["STAT_CACHES", "UsageRecord", "collect", "measure_mounts", "total_size"]

#: id of the record that stands for all stat caches
STAT_CACHES = "stat-caches"


class UsageRecord(Record):
    """One thing that takes space; times in nanoseconds since the epoch.

    Spec: moby/buildkit api/services/control, UsageRecord.
    """

    id: str
    kind: Literal["layer", "mount", "blob", "stat"]
    mutable: bool
    in_use: bool
    #: bytes on disk
    size: int
    #: layers right below this one in some result
    parents: tuple[str, ...] = ()
    created_ns: int
    last_used_ns: int
    usage_count: int
    description: str
    record_type: RecordType
    #: a local image needs it too
    shared: bool
    #: why pruning keeps it; empty when it may go
    kept: str = ""


def total_size(store: Store) -> int:
    """Return the bytes the store knows it uses: layers, blobs, cache mounts, stat caches. Does not look at any of them."""
    row = store.db.one("SELECT total(size_bytes) FROM totals")
    return int(row[0]) + store.stats.size()


def collect(store: Store) -> list[UsageRecord]:
    """Return all records, largest last use first. Takes a consistent picture of the metadata.

    Raises: StoreError.
    """
    sizes = measure_mounts(store)
    live = store.leases.live_names()
    images = _image_names(store)
    with store.db.snapshot():
        records = _layers(store, live, images) + _loose_blobs(store, live, images)
        records += _mounts(store, sizes)
    stat_bytes = store.stats.size()
    if stat_bytes:
        records.append(_stat_record(stat_bytes))
    records.sort(key=lambda record: (-record.last_used_ns, record.id))
    return records


def _layers(store: Store, live: frozenset[str], images: dict[str, str]) -> list[UsageRecord]:
    blob_bytes, shared_by = _attached_blobs(store, images)
    parents: dict[str, list[str]] = {}
    child_of: dict[str, str] = {}
    for layer, below in store.db.all(
        "SELECT DISTINCT layer_id, below FROM result_layers WHERE below != '' ORDER BY layer_id, below"
    ):
        parents.setdefault(layer, []).append(below)
        child_of[below] = layer
    made_by = {
        layer: (kind, text)
        for layer, kind, text, _ in store.db.all(
            "SELECT l.layer_id, r.record_type, r.description, min(r.created_ns) FROM result_layers l"
            " JOIN results r USING(canonical) GROUP BY l.layer_id"
        )
    }
    found = []
    for layer, kind, text, size, created, used, uses in store.db.all(
        "SELECT id, kind, description, size_bytes, created_ns, used_ns, uses FROM layers"
    ):
        record_type, step = made_by.get(layer, ("regular", ""))
        in_use = LAYER + layer in live
        kept = "in use by a running build" if in_use else ""
        if not kept and layer in shared_by:
            kept = f"its blob belongs to the image {shared_by[layer]}"
        if not kept and layer in child_of:
            kept = f"the layer {child_of[layer]} stands on it"
        found.append(
            UsageRecord(
                id=layer,
                kind="layer",
                mutable=False,
                in_use=in_use,
                size=size + blob_bytes.get(layer, 0),
                parents=tuple(parents.get(layer, ())),
                created_ns=created,
                last_used_ns=used,
                usage_count=uses,
                description=text or step or f"{kind} layer",
                record_type=record_type,
                shared=layer in shared_by,
                kept=kept,
            )
        )
    return found


def _attached_blobs(store: Store, images: dict[str, str]) -> tuple[dict[str, int], dict[str, str]]:
    """Return per layer the bytes of its stored blobs (a shared blob counts once), and an image that needs one."""
    blob_bytes: dict[str, int] = {}
    shared_by: dict[str, str] = {}
    counted: set[str] = set()
    for layer, digest, size in store.db.all(
        "SELECT layer_id, digest, (SELECT size_bytes FROM blobs b WHERE b.digest = a.digest) FROM layer_blobs a"
        " ORDER BY layer_id"
    ):
        if size is not None and digest not in counted:
            counted.add(digest)
            blob_bytes[layer] = blob_bytes.get(layer, 0) + size
        if digest in images:
            shared_by.setdefault(layer, images[digest])
    return blob_bytes, shared_by


def _loose_blobs(store: Store, live: frozenset[str], images: dict[str, str]) -> list[UsageRecord]:
    found = []
    for digest, size, created, used, uses in store.db.all(
        "SELECT digest, size_bytes, created_ns, used_ns, uses FROM blobs b"
        " WHERE NOT EXISTS(SELECT 1 FROM layer_blobs a WHERE a.digest = b.digest)"
    ):
        in_use = BLOB + digest in live
        kept = "in use by a running build" if in_use else ""
        if not kept and digest in images:
            kept = f"belongs to the image {images[digest]}"
        found.append(
            UsageRecord(
                id=digest,
                kind="blob",
                mutable=False,
                in_use=in_use,
                size=size,
                created_ns=created,
                last_used_ns=used,
                usage_count=uses,
                description="manifest, config or other small content",
                record_type="internal",
                shared=digest in images,
                kept=kept,
            )
        )
    return found


def _mounts(store: Store, sizes: dict[str, int]) -> list[UsageRecord]:
    found = []
    for mount, text, size, created, used, uses, record_type in store.db.all(
        "SELECT id, description, size_bytes, created_ns, used_ns, uses, record_type FROM mounts"
    ):
        in_use = store.mounts.in_use(mount)
        found.append(
            UsageRecord(
                id=mount,
                kind="mount",
                mutable=True,
                in_use=in_use,
                size=sizes.get(mount, size),
                created_ns=created,
                last_used_ns=used,
                usage_count=uses,
                description=text,
                record_type=record_type,
                shared=False,
                kept="in use by a running build" if in_use else "",
            )
        )
    return found


def _stat_record(size: int) -> UsageRecord:
    now = time.time_ns()
    return UsageRecord(
        id=STAT_CACHES,
        kind="stat",
        mutable=True,
        in_use=False,
        size=size,
        created_ns=now,
        last_used_ns=now,
        usage_count=0,
        description="digests of unchanged context files",
        record_type="internal",
        shared=False,
    )


def _image_names(store: Store) -> dict[str, str]:
    return dict(store.db.all("SELECT digest, name FROM image_blobs"))


def measure_mounts(store: Store) -> dict[str, int]:
    """Measure the cache mounts used since they were last measured, those in use again and again; returns their sizes."""
    now = time.time_ns()
    sizes = {}
    marks = []
    for (mount,) in store.db.all("SELECT id FROM mounts WHERE measured_ns=0"):
        sizes[mount] = tree_size(store.mounts.directory(mount))
        marks.append((sizes[mount], 0 if store.mounts.in_use(mount) else now, mount))
    if marks:
        try:
            with store.db.transaction() as tx:
                tx.executemany("UPDATE mounts SET size_bytes=?, measured_ns=? WHERE id=?", marks)
        except StoreFull as exc:
            log().info("sizes not written: %s", exc)  # measured again next time
    return sizes
