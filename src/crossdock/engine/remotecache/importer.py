"""Import: what caches hold joins the store's own records when a build asks for it.

Only manifests and configs are read. A result that is found becomes layers known by descriptor; their bytes are fetched when a
step or an output needs them. It is written to the store only once its layers' bytes are: a record of the store must not
depend on a cache that the next build does not name.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from crossdock.engine.cache.refs import Ref
from crossdock.engine.remotecache.chain import CacheIndex
from crossdock.engine.remotecache.config import CREATED, UNCOMPRESSED
from crossdock.engine.remotecache.times import parse_time
from crossdock.engine.solver import Found
from crossdock.engine.sources.blobsources import BlobSources
from crossdock.image.descriptor import Descriptor
from crossdock.image.digest import DiffId, Digest
from crossdock.image.mediatypes import compression_of, layer_type
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.engine.remotecache.backend import Backend
    from crossdock.engine.remotecache.config import CacheConfig, CacheResult
    from crossdock.engine.store import LayerId, Lease, Store

__all__ = ["ImportedCaches"]


class _Cache(NamedTuple):
    backend: Backend
    lookup: CacheIndex
    config: CacheConfig
    #: whether it is to give cache mounts too
    mounts: bool


class ImportedCaches:
    """The caches that one process imported. Safe from any thread."""

    def __init__(self, store: Store, lease: Lease) -> None:
        self._store = store
        self._lease = lease
        #: where the bytes of imported layers are
        self.sources = BlobSources()
        # Guards the three below; held over short writes to the store, so that a result is noted once.
        self._lock = threading.RLock()
        self._caches: list[_Cache] = []
        #: results given out, by canonical key
        self._found: dict[str, tuple[Ref, ...]] = {}
        #: the caches they are from
        self._origin: dict[str, Backend] = {}

    def add(self, backend: Backend, config: CacheConfig, *, mounts: bool = False) -> None:
        """Take a cache in, after those that are there; with ``mounts`` also for new cache mounts."""
        cache = _Cache(backend, CacheIndex(config.records), config, mounts)
        with self._lock:
            self._caches.append(cache)

    def use_lease(self, lease: Lease) -> None:
        """Go on with another lease: what was given out under the old one is found anew."""
        with self._lock:
            self._lease = lease
            self._found.clear()
            self._origin.clear()

    def find(self, key: str, canonical: str | None) -> Found | None:
        """Look a key up; ``canonical`` is what the store says it means. Raises: StoreFull, StoreError."""
        with self._lock:
            best: str | None = None
            for cache in self._caches:
                for name in dict.fromkeys(n for n in (canonical, cache.lookup.canonical(key)) if n):
                    refs = self._refs(name)
                    if refs is not None:
                        return Found(name, refs)
                    best = best or name
            return None if best is None else Found(best, None)

    def find_mount(self, key: str) -> tuple[Backend, Descriptor] | None:
        """Return where a cache mount's content is, ``None`` when no cache has it."""
        with self._lock:
            for cache in self._caches:
                outputs = cache.lookup.outputs(key) if cache.mounts else None
                if outputs is not None and outputs[0].blobs:
                    return cache.backend, cache.config.layers[outputs[0].blobs[0]]
        return None

    def drop_failed(self) -> list[tuple[str, str]]:
        """Give up the caches that did not keep what they promised, and what they gave; returns names and reasons."""
        with self._lock:
            failed = sorted(self.sources.failed.items())
            names = {name for name, _ in failed}
            self.release([cache.backend for cache in self._caches if cache.backend.name in names])
            self.sources.failed.clear()
        return failed

    def release(self, backends: Sequence[Backend]) -> None:
        """Give up caches, and what they gave."""
        with self._lock:
            self._caches = [cache for cache in self._caches if cache.backend not in backends]
            for canonical in [c for c, origin in self._origin.items() if origin in backends]:
                del self._found[canonical], self._origin[canonical]
            for backend in backends:
                self.sources.drop(backend)

    def settle(self) -> None:
        """Write those results to the store whose layers have arrived. Raises: StoreFull, StoreError."""
        with self._lock:
            for canonical, refs in list(self._found.items()):
                if all(self._has_bytes(layer) for ref in refs for layer in ref.layers):
                    self._store.records.save(
                        canonical,
                        [ref.layers for ref in refs],
                        lease=self._lease,
                        description=f"imported from {self._origin[canonical].name}",
                    )
                    del self._found[canonical], self._origin[canonical]

    def _refs(self, canonical: str) -> tuple[Ref, ...] | None:
        known = self._found.get(canonical)
        if known is not None:
            return known
        for cache in self._caches:
            outputs = cache.lookup.outputs(canonical)
            if outputs is None:
                continue
            refs = tuple(Ref(self._layers(cache, output)) for output in outputs)
            self._found[canonical] = refs
            self._origin[canonical] = cache.backend
            return refs
        return None

    def _layers(self, cache: _Cache, result: CacheResult) -> tuple[LayerId, ...]:
        return tuple(self._layer(cache, cache.config.layers[blob]) for blob in result.blobs)

    def _layer(self, cache: _Cache, described: Descriptor) -> LayerId:
        """Return the layer with that diff id, noted when the store does not have its content."""
        layers = self._store.layers
        diff_id = DiffId(Digest(described.annotations[UNCOMPRESSED]))
        known = layers.find(diff_id, self._lease)
        if known is not None and layers.directory(known) is not None:
            return known
        self.sources.add(cache.backend, (described.digest,))
        if known is not None and any(b.descriptor.digest == described.digest for b in layers.blobs(known)):
            layers.add_repositories((described.digest,), cache.backend.repositories)
            return known
        media_type = layer_type(compression_of(described.media_type), oci=True)
        return layers.add_remote(
            self._lease,
            diff_id=diff_id,
            blob=Descriptor(media_type, described.digest, described.size),
            repositories=cache.backend.repositories,
            kind="exec",
            description=f"imported from {cache.backend.name}",
            created_ns=parse_time(described.annotations.get(CREATED, "")),
        )

    def _has_bytes(self, layer: LayerId) -> bool:
        if self._store.layers.directory(layer) is not None:
            return True
        return any(
            self._store.content.has(blob.descriptor.digest, self._lease)
            for blob in self._store.layers.blobs(layer)
        )
