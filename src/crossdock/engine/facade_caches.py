"""Build caches outside the store, as the façade has them: import before a solve, export after it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crossdock.engine.remotecache.place import Surroundings
from crossdock.errors import CacheError, DigestMismatch, LayerError, RegistryError
from crossdock.progress.events import VertexWarning

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from crossdock.cancel import CancelToken
    from crossdock.engine.cache.refs import Ref
    from crossdock.engine.exporters.model import ExportContext
    from crossdock.engine.remotecache.backend import Backend
    from crossdock.engine.remotecache.exporter import Solved
    from crossdock.engine.remotecache.importer import ImportedCaches
    from crossdock.engine.remotecache.mounts import MountUse
    from crossdock.engine.remotecache.spec import CacheSpec
    from crossdock.engine.solver import Found, KeyedVertex, OpContext
    from crossdock.engine.store import Store
    from crossdock.image.descriptor import Descriptor
    from crossdock.llb.graph import Output
    from crossdock.progress.events import EventSink
    from crossdock.registry import RegistryClient

__all__ = ["EngineCaches", "fill_mount", "solved"]


def fill_mount(
    backend: Backend,
    blob: Descriptor,
    directory: Path,
    name: str,
    vertex: str,
    ctx: OpContext,
    *,
    lenient_owner: bool,
) -> bool:
    """Fill a new cache mount; damaged content costs a warning, and the mount begins empty.

    Raises: StoreFull; the token's cause.
    """
    import shutil

    from crossdock.engine.remotecache.mounts import unpack_mount
    from crossdock.engine.sources.transfer import Transfer

    try:
        with Transfer(ctx.sink, vertex, f"restoring cache mount {name}"):
            unpack_mount(backend, blob, directory, lenient_owner=lenient_owner, cancel=ctx.cancel)
    except (CacheError, RegistryError, LayerError, DigestMismatch) as exc:
        short = f"cache mount {name} begins empty: {backend.name}: {exc.summary}"
        ctx.sink.emit(VertexWarning(vertex=vertex, level=1, short=short))
        for entry in directory.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        return False
    return True


def solved(
    specs: Sequence[CacheSpec],
    keyed: Sequence[KeyedVertex],
    results: Sequence[Ref],
    requests: Sequence[Output | None],
    lookup: Callable[[str], Found | None],
) -> Solved:
    """Return what of a solve is to be exported; cache mounts only when one of ``specs`` asks for them."""
    from crossdock.engine.remotecache.exporter import Solved

    uses: Sequence[MountUse] = ()
    if any("mounts" in spec.attrs for spec in specs):
        from crossdock.engine.remotecache.mounts import mounts_of

        uses = mounts_of([request for request in requests if request is not None])
    return Solved(keyed, [ref.layers for ref in results], lookup, uses)


class EngineCaches:
    """The caches of one caller of an engine. Safe from any thread."""

    def __init__(
        self, store: Store, imported: ImportedCaches, client: Callable[[CancelToken], RegistryClient]
    ) -> None:
        self._imported = imported
        self._around = Surroundings(client, store.layout.locks, os.environ)
        #: to be given back at the end; appended to only
        self._backends: list[Backend] = []

    def load(self, specs: Sequence[CacheSpec], *, sink: EventSink, cancel: CancelToken) -> None:
        """Import caches. Raises: UsageError, NotSupported; the token's cause."""
        from crossdock.engine.remotecache.imports import import_caches

        for backend, stored, mounts in import_caches(specs, self._around, sink=sink, cancel=cancel):
            self._imported.add(backend, stored.config, mounts=mounts)
            self._backends.append(backend)

    def drop_failed(self, sink: EventSink) -> bool:
        """Give up the caches that did not keep what they promised, with a warning; False when there is none."""
        failed = self._imported.drop_failed()
        for name, why in failed:
            short = f"build cache {name} is given up: {why}"
            sink.emit(VertexWarning(vertex="", level=1, short=short))
        return bool(failed)

    def export(self, specs: Sequence[CacheSpec], solved: Solved, context: ExportContext) -> dict[str, str]:
        """Export a build. Raises: as :meth:`CacheExporter.run`."""
        from crossdock.engine.remotecache.exporter import CacheExporter

        return CacheExporter(context, self._around, solved).run(specs)

    def settle(self) -> None:
        """Make the store's own what has arrived. Raises: StoreError, StoreFull."""
        self._imported.settle()

    def close(self) -> None:
        """Give the imported caches back."""
        self._imported.release(self._backends)
