"""Automatic recovery when a store is opened: what dead processes, and power cuts, left half-made.

Cost is proportional to what was left, not to the size of the store.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crossdock.engine.store import hooks
from crossdock.engine.store.leases import BLOB, LAYER, MOUNT
from crossdock.engine.store.locks import try_flock

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

    from crossdock.engine.store.store import Store

__all__ = [
    "LOST_LAYERS",
    "drop_layer_rows",
    "file_matches",
    "recover_leases",
    "recover_power_cut",
    "unfinished",
]

#: selects layers that results are made of and whose bytes are nowhere
LOST_LAYERS = (
    "SELECT id FROM layers l WHERE has_directory=0 AND EXISTS(SELECT 1 FROM result_layers r WHERE r.layer_id=l.id)"
    " AND NOT EXISTS(SELECT 1 FROM layer_blobs b WHERE b.layer_id=l.id AND"
    " (EXISTS(SELECT 1 FROM blobs WHERE digest=b.digest) OR EXISTS(SELECT 1 FROM repositories WHERE digest=b.digest)))"
)
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


def recover_leases(store: Store) -> None:
    """Remove what dead leases had begun: a layer directory or blob file without a row, files being written."""
    for lease_id, path, names in store.leases.dead():
        with store.removal.removing():
            # Locked by us, the dead lease itself would look alive.
            live = store.leases.live_names(besides=path) if names else frozenset()
            for name in names:
                _recover_name(store, name, live)
        recorded = set(store.mounts.ids())
        for name in names:
            if name.startswith(MOUNT) and name[len(MOUNT) :] not in recorded:
                store.mounts.remove(name[len(MOUNT) :])  # unless somebody is just making it
        for entry in os.listdir(store.layout.ingest):
            if entry.startswith(lease_id + "."):
                (store.layout.ingest / entry).unlink(missing_ok=True)
        hooks.point("store.recovery:before_unlink")
        path.unlink(missing_ok=True)


def _recover_name(store: Store, name: str, live: frozenset[str]) -> None:
    kind, value = name[:2], name[2:]
    if kind == LAYER:
        if store.layers.exists(value):
            for entry in unfinished(store, value):
                store.trash.take(entry)
        elif name not in live:  # else another process drew the same name, and it is that process's
            store.trash.take(store.layout.layers / value)
    elif kind == BLOB and not store.content.has(value):
        # Files appear together with their rows under the lock that keeps us out.
        store.trash.take(store.content.path(value))


def unfinished(store: Store, layer_id: str) -> list[Path]:
    """Return what a dead process left in a layer's folder: an unmarked ``fs``, ``partial``, ``work``.

    Empty while somebody fills the layer.
    """
    home = store.layout.layers / layer_id
    try:
        entries = os.listdir(home)
        if entries == ["fs"] and store.layers.directory(layer_id) is not None:
            return []
        fd = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return []
    try:
        if not try_flock(fd):
            return []
        # Looked at again: who held the lock may have finished.
        marked = store.layers.exists(layer_id) and store.layers.directory(layer_id) is not None
        return [home / entry for entry in os.listdir(home) if entry != "fs" or not marked]
    finally:
        os.close(fd)


def recover_power_cut(store: Store) -> None:
    """After a restart of the machine, verify blobs and drop layer directories not known to have reached the disk."""
    boot_id = _boot_id()
    row = store.db.one("SELECT value FROM meta WHERE key='boot_id'")
    if row is not None and row[0] == boot_id:
        return
    with store.removal.removing():
        if row is not None:
            _distrust(store)
        with store.db.transaction() as tx:
            tx.execute("INSERT OR REPLACE INTO meta(key, value) VALUES('boot_id', ?)", (boot_id,))


def _distrust(store: Store) -> None:
    for digest, size in store.db.all("SELECT digest, size_bytes FROM blobs WHERE durable=0"):
        if not file_matches(store.content.path(digest), digest, size):
            store.content.forget(digest)
            store.trash.take(store.content.path(digest))
    for (layer_id,) in store.db.all("SELECT id FROM layers WHERE durable=0 AND has_directory=1"):
        with store.db.transaction() as tx:
            drop_directory(tx, layer_id)
        store.trash.take(store.layout.layers / layer_id)
    with store.db.transaction() as tx:
        for (layer_id,) in tx.execute(LOST_LAYERS).fetchall():
            drop_layer_rows(tx, layer_id)


def drop_directory(tx: sqlite3.Connection, layer_id: str) -> None:
    """Make a layer whose directory is lost remote again, or drop it when nothing could restore it."""
    restorable = tx.execute(
        "SELECT 1 FROM layer_blobs b WHERE layer_id=? AND (EXISTS(SELECT 1 FROM blobs WHERE digest=b.digest)"
        " OR EXISTS(SELECT 1 FROM repositories WHERE digest=b.digest))",
        (layer_id,),
    ).fetchone()
    if restorable:
        tx.execute("UPDATE layers SET has_directory=0, size_bytes=0 WHERE id=?", (layer_id,))
    else:
        drop_layer_rows(tx, layer_id)


def drop_layer_rows(tx: sqlite3.Connection, layer_id: str) -> None:
    """Delete a layer's rows and every result that is made of it, with the keys that lead there."""
    results = tx.execute(
        "SELECT DISTINCT canonical FROM result_layers WHERE layer_id=?", (layer_id,)
    ).fetchall()
    tx.executemany("DELETE FROM results WHERE canonical=?", results)
    tx.executemany("DELETE FROM keys WHERE canonical=?", results)
    tx.executemany("DELETE FROM result_layers WHERE canonical=?", results)
    tx.execute("DELETE FROM layer_blobs WHERE layer_id=?", (layer_id,))
    tx.execute("DELETE FROM layers WHERE id=?", (layer_id,))


def file_matches(path: Path, digest: str, size: int) -> bool:
    """True when a file is there with that size and digest."""
    import hashlib  # builds need it after a power cut alone

    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != size:
                return False
            algorithm, _, value = digest.partition(":")
            return hashlib.file_digest(file, algorithm).hexdigest() == value
    except FileNotFoundError:
        return False


def _boot_id() -> str:
    with open(_BOOT_ID, encoding="ascii") as file:
        return file.read().strip()
