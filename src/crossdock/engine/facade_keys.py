"""The store's records, and what imported caches hold, as the solver's cache of keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.engine.cache.refs import Ref
from crossdock.engine.solver import Found
from crossdock.engine.store.locks import alone
from crossdock.errors import SolveError, StoreFull

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from crossdock.cancel import CancelToken
    from crossdock.engine.remotecache.importer import ImportedCaches
    from crossdock.engine.solver import KeyedVertex, Result
    from crossdock.engine.store import LayerId, Lease, RecordType, Store

__all__ = ["StoreKeyCache"]


class StoreKeyCache:
    """The store's records as the solver's cache. Safe from any thread."""

    def __init__(self, store: Store, lease: Lease, *, max_bytes: int = 0) -> None:
        self._store = store
        self._max_bytes = max_bytes
        self._lease = lease
        self._locks = store.layout.locks
        #: caches imported, asked after the store
        self.imported: ImportedCaches | None = None
        #: vertex -> type of record and name of the step; single dict operations only
        self.steps: dict[str, tuple[RecordType, str]] = {}

    def use_lease(self, lease: Lease) -> None:
        """Protect what is found from now on by another lease."""
        self._lease = lease

    def lookup(self, key: str) -> Found | None:
        """Return what the store, else an imported cache, has for a key."""
        records = self._store.records
        canonical = records.canonical(key)
        result = None if canonical is None else records.result(canonical, self._lease)
        if canonical is not None and result is not None:
            return Found(canonical, tuple(Ref(layers) for layers in result.outputs))
        found = None if self.imported is None else self.imported.find(key, canonical)
        return found if found is not None or canonical is None else Found(canonical, None)

    def outputs_of(self, keyed: Sequence[KeyedVertex]) -> dict[str, list[tuple[LayerId, ...]]]:
        """Return the layers of each output of vertices that were solved, by digest of the vertex, as far as known."""
        found: dict[str, list[tuple[LayerId, ...]]] = {}
        for vertex in keyed:
            record = self.lookup(vertex.canonical)
            if record is not None and record.results is not None:
                results = [r.layers if isinstance(r, Ref) else () for r in record.results]
                found[vertex.vertex.partition("!")[0]] = results
        return found

    def link(self, key: str, canonical: str) -> None:
        """Lead a key to a canonical one."""
        self._store.records.link(key, canonical)

    def exclusive(self, key: str, cancel: CancelToken) -> AbstractContextManager[None]:
        """Hold a lock file for the key; who waits goes on without it as soon as the key has a result."""
        path = self._locks / f"key-{key.rpartition(':')[2][:32]}"
        return alone(path, cancel, unless=lambda: self._store.records.canonical(key) == key)

    def save(self, key: str, results: Sequence[Result], *, vertex: str) -> None:
        """Store the results of a key, then see that the store keeps its limit."""
        outputs = [result.layers for result in results if isinstance(result, Ref)]
        if len(outputs) != len(results):
            summary = "a local directory cannot be a cached result"
            raise SolveError(summary, vertex=vertex)
        digest = vertex.partition("!")[0]
        kind, name = self.steps.get(digest, ("regular", ""))
        self._store.records.save(
            key, outputs, lease=self._lease, vertex=digest, description=name, record_type=kind
        )
        if self._max_bytes:
            self._enforce()

    def _enforce(self) -> None:
        from crossdock.engine.store.gc import Collector

        above = Collector(self._store).enforce(self._max_bytes)
        if above:
            summary = f"this build needs {above} bytes more than the store may hold ({self._max_bytes})"
            raise StoreFull(summary, hint="raise the limit, or build fewer things at once")
