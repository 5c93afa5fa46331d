"""Full check of a store (`crossdock store check`), and repair of everything it finds.

Reads every blob. Runs beside builds: what living processes hold is left alone, and each finding is confirmed
under the removal lock before it is repaired.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from crossdock.engine.store.leases import BLOB, LAYER
from crossdock.engine.store.locks import is_held
from crossdock.engine.store.recovery import (
    LOST_LAYERS,
    drop_directory,
    drop_layer_rows,
    file_matches,
    unfinished,
)
from crossdock.engine.store.rim import rim
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from crossdock.cancel import CancelToken
    from crossdock.engine.store.store import Store

__all__ = ["Problem", "check"]


class Problem(NamedTuple):
    """One finding."""

    #: ``database``, ``blob``, ``layer``, ``record``, ``mount``, ``image``, ``leftover``
    kind: str
    #: digest, id, name or path
    subject: str
    text: str
    repaired: bool


def check(
    store: Store, *, repair: bool, contents: bool = True, cancel: CancelToken | None = None
) -> list[Problem]:
    """Return what is wrong with the store; with ``repair``, after making it right (by dropping what is damaged).

    Without ``contents`` blobs are not read, only their sizes compared.
    Raises: StoreError; the token's cause.
    """
    checker = _Checker(store, repair=repair, contents=contents, cancel=cancel)
    with rim("check the store"):
        checker.run()
    if repair:
        store.trash.empty()
    return checker.problems


class _Checker:
    def __init__(self, store: Store, *, repair: bool, contents: bool, cancel: CancelToken | None) -> None:
        self._store = store
        self._repair = repair
        self._contents = contents
        self._cancel = cancel
        self.problems: list[Problem] = []

    def run(self) -> None:
        for text in self._store.db.integrity():
            self._note("database", "metadata.sqlite", text, None)
        if self.problems:
            return  # nothing else can be trusted
        for part in (
            self._blobs,
            self._blob_files,
            self._layers,
            self._layer_folders,
            self._records,
            self._mounts,
            self._images,
            self._leftovers,
            self._totals,
        ):
            if self._cancel is not None:
                self._cancel.check()
            part()

    def _note(self, kind: str, subject: str, text: str, repair: Callable[[], object] | None) -> None:
        repaired = False
        if self._repair and repair is not None:
            repair()
            repaired = True
        self.problems.append(Problem(kind, subject, text, repaired))

    def _totals(self) -> None:
        for table in ("layers", "blobs", "mounts"):
            # One statement, so that writers cannot come between the two.
            row = self._store.db.one(
                f"SELECT size_bytes, (SELECT coalesce(sum(size_bytes), 0) FROM {table}) FROM totals WHERE name=?",  # noqa: S608
                (table,),
            )
            if row is None or row[0] != row[1]:
                text = (
                    "their total size is not noted"
                    if row is None
                    else f"their total size is {row[1]}, not {row[0]}"
                )
                self._note("database", table, text, partial(self._recount, table))

    def _recount(self, table: str) -> None:
        with self._store.db.transaction() as tx:
            tx.execute(
                f"INSERT OR REPLACE INTO totals SELECT ?, coalesce(sum(size_bytes), 0) FROM {table}",  # noqa: S608
                (table,),
            )

    # --- blobs ---

    def _blobs(self) -> None:
        for digest, size in self._store.db.all("SELECT digest, size_bytes FROM blobs"):
            if self._cancel is not None:
                self._cancel.check()
            text = self._blob_fault(digest, size)
            if text and self._confirmed(digest, size):
                self._note("blob", digest, text, partial(self._drop_blob, digest))

    def _blob_fault(self, digest: str, size: int) -> str:
        path = self._store.content.path(digest)
        try:
            actual = path.stat().st_size
        except FileNotFoundError:
            return "its file is missing"
        if actual != size:
            return f"its file has {actual} bytes instead of {size}"
        if self._contents and not file_matches(path, digest, size):
            return "its content is damaged"
        return ""

    def _confirmed(self, digest: str, size: int) -> bool:
        """Look again under the lock: a blob may have been pruned between listing and reading."""
        with self._store.removal.removing():
            return self._store.content.size(digest) == size and self._blob_fault(digest, size) != ""

    def _drop_blob(self, digest: str) -> None:
        with self._store.removal.removing():
            self._store.content.forget(digest)
            self._store.trash.take(self._store.content.path(digest))

    def _blob_files(self) -> None:
        store = self._store
        for algorithm in sorted(os.listdir(store.layout.blobs)):
            names = os.listdir(store.layout.blobs / algorithm)
            known = {digest for (digest,) in store.db.all("SELECT digest FROM blobs")}
            for name in names:
                digest = f"{algorithm}:{name}"
                if digest not in known:
                    self._orphan("blob", store.layout.blobs / algorithm / name, BLOB + digest)

    def _orphan(self, kind: str, path: Path, lease_name: str) -> None:
        """Report a file or folder without a row, unless a living process is just making it."""
        store = self._store
        with store.removal.removing():
            value = lease_name[2:]
            known = store.content.has(value) if kind == "blob" else store.layers.exists(value)
            if known or lease_name in store.leases.live_names() or not os.path.lexists(path):
                return
            self._note(kind, value, "stored but not recorded", partial(store.trash.take, path))

    # --- layers ---

    def _layers(self) -> None:
        store = self._store
        rows = store.db.all("SELECT id, has_directory, diff_id FROM layers")
        for layer_id, has_directory, _ in rows:
            directory = store.layout.layers / layer_id / "fs"
            if has_directory and not directory.is_dir():
                with store.removal.removing():
                    lost = store.layers.exists(layer_id) and not directory.is_dir()
                if lost:
                    self._note("layer", layer_id, "its directory is missing", partial(self._lose, layer_id))
        for (layer_id,) in store.db.all(
            "SELECT id FROM layers l WHERE has_directory=0"
            " AND NOT EXISTS(SELECT 1 FROM layer_blobs b WHERE b.layer_id = l.id)"
        ):
            text = "it has neither a directory nor a blob"
            self._note("layer", layer_id, text, partial(self._drop_layer, layer_id))
        for (layer_id,) in store.db.all(LOST_LAYERS):
            text = "its blob is lost, and no registry is known to have it"
            self._note("layer", layer_id, text, partial(self._drop_layer, layer_id))

    def _lose(self, layer_id: str) -> None:
        with self._store.removal.removing(), self._store.db.transaction() as tx:
            drop_directory(tx, layer_id)

    def _drop_layer(self, layer_id: str) -> None:
        with self._store.removal.removing(), self._store.db.transaction() as tx:
            drop_layer_rows(tx, layer_id)

    def _layer_folders(self) -> None:
        store = self._store
        names = os.listdir(store.layout.layers)
        known = {layer_id for (layer_id,) in store.db.all("SELECT id FROM layers")}
        for name in names:
            if name not in known:
                self._orphan("layer", store.layout.layers / name, LAYER + name)
                continue
            for path in unfinished(store, name):
                self._note("layer", name, f"unfinished: {path.name}", partial(store.trash.take, path))

    # --- records ---

    def _records(self) -> None:
        for text, select, delete in _DANGLING:
            rows = self._store.db.all(select)
            for row in rows:
                self._note("record", str(row[0]), text, partial(self._execute, delete, row))

    def _execute(self, sql: str, row: tuple[object, ...]) -> None:
        with self._store.db.transaction() as tx:
            for statement in sql.split(";"):
                tx.execute(statement, row)

    # --- the rest ---

    def _mounts(self) -> None:
        store = self._store
        known = set(store.mounts.ids())
        on_disk = {name for name in os.listdir(store.layout.mounts) if not name.endswith(".lock")}
        for mount in sorted(known ^ on_disk):
            if store.mounts.in_use(mount):
                continue
            missing = mount in known
            text = "its directory is missing" if missing else "stored but not recorded"
            self._note("mount", mount, text, partial(store.mounts.remove, mount))

    def _images(self) -> None:
        store = self._store
        for image in store.images.all():
            if not store.content.has(image.descriptor.digest):
                text = f"its manifest {image.descriptor.digest} is missing"
                self._note("image", image.name, text, partial(store.images.remove, image.name))

    def _leftovers(self) -> None:
        store = self._store
        for name in os.listdir(store.layout.ingest):
            lease = store.layout.leases / (name.partition(".")[0] + ".lock")
            path = store.layout.ingest / name
            if not is_held(lease) and path.exists():
                self._note(
                    "leftover", str(path), "a write that was cut off", partial(path.unlink, missing_ok=True)
                )


# What SQL alone can see: text, the rows, and the statements that remove one (the row's values are the
# arguments).
_DANGLING = (
    (
        "a layer of it is missing",
        "SELECT DISTINCT canonical FROM result_layers r WHERE NOT EXISTS(SELECT 1 FROM layers l WHERE l.id = r.layer_id)",
        "DELETE FROM results WHERE canonical=?1; DELETE FROM keys WHERE canonical=?1;"
        " DELETE FROM result_layers WHERE canonical=?1",
    ),
    (
        "it lists layers of no result",
        "SELECT DISTINCT canonical FROM result_layers r"
        " WHERE NOT EXISTS(SELECT 1 FROM results x WHERE x.canonical = r.canonical)",
        "DELETE FROM result_layers WHERE canonical=?1",
    ),
    (
        "it describes a blob of no layer",
        "SELECT DISTINCT layer_id FROM layer_blobs b WHERE NOT EXISTS(SELECT 1 FROM layers l WHERE l.id = b.layer_id)",
        "DELETE FROM layer_blobs WHERE layer_id=?1",
    ),
    (
        "it belongs to no image",
        "SELECT DISTINCT name FROM image_blobs b WHERE NOT EXISTS(SELECT 1 FROM images i WHERE i.name = b.name)",
        "DELETE FROM image_blobs WHERE name=?1",
    ),
)
