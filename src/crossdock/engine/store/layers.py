"""Layer store: one directory per layer in overlayfs form, and what is known of its blobs.

A layer is new (its directory is being filled), committed, or remote (known by descriptor;
:meth:`LayerStore.materialise` gives it a directory). It has at most one directory, at most one diff id, and
any number of blobs.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

from crossdock.engine.store import hooks
from crossdock.engine.store.ids import LayerId, new_id
from crossdock.engine.store.leases import LAYER
from crossdock.engine.store.locks import OncePerKey, hold
from crossdock.engine.store.removal import tree_size
from crossdock.engine.store.rim import rim
from crossdock.engine.store.unfinished import note_unfinished
from crossdock.errors import DigestMismatch, StoreError
from crossdock.image.descriptor import Descriptor
from crossdock.record import Record

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Collection, Iterable, Sequence
    from pathlib import Path
    from types import TracebackType

    from crossdock.cancel import CancelToken
    from crossdock.engine.store.db import Database
    from crossdock.engine.store.layout import Layout
    from crossdock.engine.store.leases import Lease
    from crossdock.engine.store.locks import RemovalLock
    from crossdock.engine.store.removal import Trash
    from crossdock.image.digest import DiffId

__all__ = ["PACKED_ANNOTATION", "LayerBlob", "LayerInfo", "LayerStore", "NewLayer"]

#: marks blobs that were packed here: type and level they were made with; no manifest carries it
PACKED_ANNOTATION = "io.crossdock.compression"

#: mode of a layer's root directory, which is what a container sees as ``/`` when it is the topmost
_ROOT_MODE = 0o755
_SELECT_INFO = "SELECT id, kind, description, diff_id, size_bytes, has_directory, created_ns, used_ns, uses FROM layers WHERE id=?"
_FIND = "SELECT id FROM layers WHERE diff_id=? ORDER BY has_directory DESC, id LIMIT 1"
_INSERT = (
    "INSERT INTO layers(id, kind, description, diff_id, size_bytes, has_directory, created_ns, used_ns)"
    " VALUES(?,?,?,?,?,?,?,?)"
)


class LayerBlob(Record, kw_only=False):
    """One packed form of a layer; ``repositories`` are known to have it (``host/name``)."""

    descriptor: Descriptor
    #: ``none``, ``gzip``, ``zstd``, ``estargz``
    compression: str
    repositories: tuple[str, ...] = ()


class LayerInfo(Record, kw_only=False):
    """What the store knows of a layer; times in nanoseconds since the epoch."""

    id: LayerId
    #: ``image``, ``exec``, ``file``, ``source``, ``merge``, ``diff``
    kind: str
    description: str
    diff_id: DiffId | None
    #: bytes on disk of the directory, 0 without one; blobs count separately
    size_bytes: int
    has_directory: bool
    created_ns: int
    used_ns: int
    use_count: int
    blobs: tuple[LayerBlob, ...] = ()


class NewLayer:
    """A layer being made. A context manager: discards the layer unless it was committed."""

    __slots__ = ("_done", "_store", "description", "fs", "home", "id", "kind", "lease", "work")

    def __init__(self, store: LayerStore, lease: Lease, home: Path, kind: str, description: str) -> None:
        self._store = store
        self._done = False
        self.lease = lease
        self.id = LayerId(home.name)
        self.home = home
        #: to be filled; an overlay's upper directory
        self.fs = home / "fs"
        #: the overlay's work directory, on the same file system
        self.work = home / "work"
        self.kind = kind
        self.description = description

    def commit(self, *, diff_id: DiffId | None = None, size_bytes: int | None = None) -> LayerId:
        """Make the layer permanent and return its id; unmount overlays that use it first.

        ``size_bytes`` (bytes on disk) saves a walk when the caller knows it. With a ``diff_id`` that the
        store already has as a directory, that layer's id is returned and this one discarded. Raises:
        StoreFull, StoreError.
        """
        layer_id = self._store.commit(self, diff_id, size_bytes)
        self._done = True
        return layer_id

    def commit_packed(self, diff_id: DiffId, blob: Descriptor) -> LayerId:
        """Make the layer permanent as a blob of the content store, without its directory; return its id.

        Raises: StoreFull, StoreError.
        """
        self._store.commit_packed(self, diff_id, blob)
        self._done = True
        return self.id

    def discard(self) -> None:
        """Throw the layer away; idempotent."""
        if not self._done:
            self._done = True
            self._store.discard(self)

    def __enter__(self) -> NewLayer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()


class LayerStore:
    """Layers of one store. Safe from any thread and process."""

    __slots__ = ("_db", "_layers", "_once", "_removal", "_trash")

    def __init__(self, layout: Layout, db: Database, removal: RemovalLock, trash: Trash) -> None:
        self._layers = layout.layers
        self._db = db
        self._removal = removal
        self._trash = trash
        self._once = OncePerKey()

    # --- making ---

    def new(self, lease: Lease, *, kind: str, description: str = "", work: bool = True) -> NewLayer:
        """Start a layer with empty ``fs`` (mode 0755) and ``work`` directories; the latter only for overlays.

        Raises: StoreFull, StoreError.
        """
        with rim("create a layer"):
            home = self._make_home(lease)
            layer = NewLayer(self, lease, home, kind, description)
            try:
                hooks.point("store.layer:after_mkdir")
                layer.fs.mkdir()
                layer.fs.chmod(_ROOT_MODE)
                if work:
                    layer.work.mkdir(mode=0o700)
            except BaseException:
                layer.discard()
                raise
        return layer

    def commit(self, layer: NewLayer, diff_id: DiffId | None, size_bytes: int | None) -> LayerId:
        """Make a new layer permanent: NewLayer's last step."""
        with rim("commit a layer"):
            _drop_work(layer.work, self._trash)
            if size_bytes is None:
                size_bytes = tree_size(layer.fs)
            now = time.time_ns()
            hooks.point("store.layer:before_commit")
            with self._removal.adding(), self._db.transaction() as tx:
                known = self._known_directory(tx, diff_id)
                if known is None:
                    values = (layer.id, layer.kind, layer.description, diff_id, size_bytes, 1, now, now)
                    tx.execute(_INSERT, values)
                else:
                    layer.lease.append((LAYER + known,))
        hooks.point("store.layer:after_commit")
        if known is not None:
            self.discard(layer)
            return known
        return layer.id

    def commit_packed(self, layer: NewLayer, diff_id: DiffId, blob: Descriptor) -> None:
        """Make a new layer permanent as a blob: NewLayer's last step."""
        # First, so that there is no row yet of a layer that has files it should not have.
        self.discard(layer)
        now = time.time_ns()
        hooks.point("store.packed:before_commit")
        with rim("commit a layer"), self._removal.adding(), self._db.transaction() as tx:
            values = (layer.id, layer.kind, layer.description, diff_id, 0, 0, now, now)
            tx.execute(_INSERT, values)
            _insert_blob(tx, layer.id, blob, compression_of(blob.media_type))
        hooks.point("store.packed:after_commit")

    def discard(self, layer: NewLayer) -> None:
        """Throw a new layer away."""
        self._trash.delete(layer.home)

    def add_remote(
        self,
        lease: Lease,
        *,
        diff_id: DiffId,
        blob: Descriptor,
        compression: str = "",
        repositories: Sequence[str] = (),
        kind: str = "image",
        description: str = "",
        created_ns: int | None = None,
    ) -> LayerId:
        """Note a layer that exists elsewhere; returns the layer with that diff id, new or known.

        The blob need not be in the content store. ``compression`` defaults to what the media type says.
        ``created_ns``: when it was made, if that is known.
        Raises: StoreFull, StoreError.
        """
        now = time.time_ns()
        made = now if created_ns is None else created_ns
        with rim("note a layer"), self._removal.adding(), self._db.transaction() as tx:
            row = tx.execute(_FIND, (diff_id,)).fetchone()
            layer_id = LayerId(new_id() if row is None else row[0])
            if row is None:
                tx.execute(_INSERT, (layer_id, kind, description, diff_id, 0, 0, made, now))
            lease.append((LAYER + layer_id,))
            _insert_blob(tx, layer_id, blob, compression or compression_of(blob.media_type))
            _insert_repositories(tx, blob.digest, repositories)
        return layer_id

    def materialise(
        self, layer_id: LayerId, fill: Callable[[Path], DiffId | None], cancel: CancelToken
    ) -> Path:
        """Return the layer's directory, calling ``fill`` with an empty one when there is none yet.

        One thread of one process fills; others wait and then find it. ``fill`` returns the diff id it saw, or
        None; a wrong one discards the directory. The caller holds the layer in a lease.
        Raises: DigestMismatch; StoreError when the layer is unknown; StoreFull; what ``fill`` raises; the token's cause.
        """
        ready = self.directory(layer_id)
        if ready is not None:
            return ready
        home = self._layers / layer_id
        with self._once.holding(layer_id, cancel), rim("unpack a layer"):
            home.mkdir(mode=0o700, exist_ok=True)
            with hold(home, cancel, exclusive=True, directory=True):
                ready = self.directory(layer_id)
                return ready if ready is not None else self._fill(layer_id, home, fill)

    # --- knowing ---

    def find(self, diff_id: DiffId, lease: Lease | None = None) -> LayerId | None:
        """Return a layer with that content, one with a directory if there is one; with ``lease`` it stays."""
        while True:
            row = self._db.one(_FIND, (diff_id,))
            if row is None:
                return None
            layer_id = LayerId(row[0])
            if lease is None or not lease.missing((LAYER + layer_id,)):
                return layer_id
            lease.add((LAYER + layer_id,))  # then look again: it may have gone in between

    def exists(self, layer_id: str, lease: Lease | None = None) -> bool:
        """True when the layer is known; with ``lease`` it then also stays."""
        if lease is not None:
            lease.add((LAYER + layer_id,))
        return self._db.one("SELECT 1 FROM layers WHERE id=?", (layer_id,)) is not None

    def get(self, layer_id: str) -> LayerInfo:
        """Return what is known of a layer. Raises: StoreError when it is unknown."""
        row = self._db.one(_SELECT_INFO, (layer_id,))
        if row is None:
            raise _gone(layer_id)
        name, kind, description, diff_id, size_bytes, has_directory, created_ns, used_ns, uses = row
        blobs = self.blobs(layer_id)
        return LayerInfo(
            name,
            kind,
            description,
            diff_id,
            size_bytes,
            bool(has_directory),
            created_ns,
            used_ns,
            uses,
            blobs,
        )

    def blobs(self, layer_id: str) -> tuple[LayerBlob, ...]:
        """Return the packed forms known of a layer, in order of digest."""
        rows = self._db.all(
            "SELECT descriptor, compression, (SELECT group_concat(repository, ' ') FROM repositories r WHERE"
            " r.digest = b.digest) FROM layer_blobs b WHERE layer_id=? ORDER BY digest",
            (layer_id,),
        )
        return tuple(
            LayerBlob(
                Descriptor.from_json(json.loads(text), "layer blob"),
                compression,
                tuple(sorted(names.split(" "))) if names else (),
            )
            for text, compression, names in rows
        )

    def repositories(self, digest: str) -> tuple[str, ...]:
        """Return the repositories (``host/name``) known to hold a blob."""
        rows = self._db.all("SELECT repository FROM repositories WHERE digest=? ORDER BY 1", (digest,))
        return tuple(row[0] for row in rows)

    def directory(self, layer_id: str) -> Path | None:
        """Return the layer's directory; None for a remote layer. Raises: StoreError when the layer is unknown."""
        row = self._db.one("SELECT has_directory FROM layers WHERE id=?", (layer_id,))
        if row is None:
            raise _gone(layer_id)
        return self._layers / layer_id / "fs" if row[0] else None

    # --- adding to ---

    def set_diff_id(self, layer_id: str, diff_id: DiffId) -> None:
        """Note the diff id of a layer that was committed without. Raises: StoreFull, StoreError; DigestMismatch
        when it has another one."""
        with self._db.transaction() as tx:
            _set_diff_id(tx, layer_id, diff_id)

    def add_blob(self, layer_id: str, blob: Descriptor, diff_id: DiffId, compression: str = "") -> None:
        """Note a packed form of a layer, and its diff id. The blob need not be in the content store.

        Raises: StoreError, StoreFull; DigestMismatch when the layer has another diff id.
        """
        with self._db.transaction() as tx:
            _set_diff_id(tx, layer_id, diff_id)
            _insert_blob(tx, layer_id, blob, compression or compression_of(blob.media_type))

    def add_repositories(self, digests: Iterable[str], repositories: Collection[str]) -> None:
        """Note repositories that have blobs, e.g. after a push. Raises: StoreFull, StoreError."""
        new = [digest for digest in digests if not set(repositories).issubset(self.repositories(digest))]
        if new:
            with self._db.transaction() as tx:
                for digest in new:
                    _insert_repositories(tx, digest, repositories)

    # --- inside ---

    def _make_home(self, lease: Lease) -> Path:
        while True:
            layer_id = new_id()
            lease.add((LAYER + layer_id,))
            note_unfinished(layer_id)
            home = self._layers / layer_id
            try:
                home.mkdir(mode=0o700)
            except FileExistsError:
                continue
            return home

    def _fill(self, layer_id: LayerId, home: Path, fill: Callable[[Path], DiffId | None]) -> Path:
        expected = self._db.one("SELECT diff_id FROM layers WHERE id=?", (layer_id,))[0]
        directory, partial = home / "fs", home / "partial"
        note_unfinished(layer_id)
        # Left by a process that died here; we hold the layer's lock.
        self._trash.delete(partial)
        self._trash.delete(directory)
        partial.mkdir()
        try:
            partial.chmod(_ROOT_MODE)
            seen = fill(partial)
            if seen is not None and expected is not None and seen != expected:
                summary = f"layer {expected} unpacks to other content ({seen})"
                raise DigestMismatch(summary, hint="the image is damaged, or its config lists wrong diff ids")
            size_bytes = tree_size(partial)
            hooks.point("store.materialise:before_rename")
            os.rename(partial, directory)
            hooks.point("store.materialise:after_rename")
            changed = self._db.execute(
                "UPDATE layers SET has_directory=1, durable=0, size_bytes=?, diff_id=coalesce(diff_id, ?) WHERE id=?",
                (size_bytes, seen, layer_id),
            )
        except BaseException:
            self._trash.delete(partial)
            self._trash.delete(directory)
            raise
        if not changed:
            self._trash.delete(home)
            raise _gone(layer_id)
        return directory

    @staticmethod
    def _known_directory(tx: sqlite3.Connection, diff_id: DiffId | None) -> LayerId | None:
        if diff_id is None:
            return None
        row = tx.execute("SELECT id FROM layers WHERE diff_id=? AND has_directory=1", (diff_id,)).fetchone()
        return None if row is None else LayerId(row[0])


def compression_of(media_type: str) -> str:
    """Return ``gzip``, ``zstd`` or ``none`` as the media type of a layer says."""
    for suffix, name in (("gzip", "gzip"), ("zstd", "zstd")):
        if media_type.endswith(("+" + suffix, "." + suffix)):
            return name
    return "none"


def _gone(layer_id: str) -> StoreError:
    summary = f"the store has no layer {layer_id}"
    return StoreError(summary, hint="build again: it will be fetched or made anew", retryable=True)


def _drop_work(work: Path, trash: Trash) -> None:
    """Remove an overlay's work directory: normally it holds one empty directory."""
    try:
        for name in os.listdir(work):
            (work / name).rmdir()
        work.rmdir()
    except FileNotFoundError:
        return
    except OSError:
        trash.delete(work)


def _set_diff_id(tx: sqlite3.Connection, layer_id: str, diff_id: DiffId) -> None:
    row = tx.execute("SELECT diff_id FROM layers WHERE id=?", (layer_id,)).fetchone()
    if row is None:
        raise _gone(layer_id)
    if row[0] is None:
        tx.execute("UPDATE layers SET diff_id=? WHERE id=?", (diff_id, layer_id))
    elif row[0] != diff_id:
        summary = f"layer {layer_id} has diff id {row[0]}, not {diff_id}"
        raise DigestMismatch(
            summary, hint="the layer changed after it was stored; run `crossdock store check`"
        )


def _insert_blob(tx: sqlite3.Connection, layer_id: str, blob: Descriptor, compression: str) -> None:
    text = json.dumps(blob.to_json(), separators=(",", ":"))
    tx.execute(
        "INSERT OR REPLACE INTO layer_blobs(layer_id, digest, compression, descriptor) VALUES(?,?,?,?)",
        (layer_id, blob.digest, compression, text),
    )


def _insert_repositories(tx: sqlite3.Connection, digest: str, repositories: Iterable[str]) -> None:
    tx.executemany(
        "INSERT OR IGNORE INTO repositories(digest, repository) VALUES(?,?)",
        [(digest, name) for name in repositories],
    )
