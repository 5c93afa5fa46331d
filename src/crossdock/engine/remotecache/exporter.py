"""Export: the keys and results of a build, merged with what is in the cache already.

Layers first, then config and manifest, so that a cache never lists what it does not have. What other builds put there is kept
within bounds; who finds that somebody else wrote meanwhile merges again.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crossdock.engine.exporters.blobs import LayerBlobs
from crossdock.engine.exporters.parallel import run_parallel
from crossdock.engine.exporters.report import reported
from crossdock.engine.remotecache.backend import ANY, LayerToWrite, Stored
from crossdock.engine.remotecache.chain import KnownKey, to_records
from crossdock.engine.remotecache.config import (
    CREATED,
    UNCOMPRESSED,
    CacheConfig,
    CacheResult,
    merge,
)
from crossdock.engine.remotecache.merging import merged
from crossdock.engine.remotecache.mounts import pack_mounts
from crossdock.engine.remotecache.spec import INLINE, ExportOptions, make_backend
from crossdock.engine.remotecache.times import parse_time, today, write_time
from crossdock.errors import CacheError, CrossdockError, DigestMismatch, LayerError, RegistryError, StoreFull
from crossdock.image.descriptor import Descriptor
from crossdock.image.mediatypes import compression_of, layer_type
from crossdock.progress.events import VertexWarning
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import BinaryIO

    from crossdock.cancel import CancelToken
    from crossdock.engine.cache.refs import Ref
    from crossdock.engine.exporters.model import ExportContext
    from crossdock.engine.exporters.report import Report
    from crossdock.engine.remotecache.backend import Backend
    from crossdock.engine.remotecache.mounts import MountUse
    from crossdock.engine.remotecache.place import Surroundings
    from crossdock.engine.remotecache.spec import CacheSpec
    from crossdock.engine.solver import Found, KeyedVertex
    from crossdock.engine.store import LayerId
    from crossdock.layers.compression import Compression

__all__ = ["CacheExporter", "Solved"]

# Each layer is compressed by several threads already.
_COMPRESSING = 2
#: merges when others write at the same time; of many writers one gets through each time
_ATTEMPTS = 16
_RETRY_S = 0.1
_LONGEST_RETRY_S = 1.0
_PARTS_MISSING = frozenset({"MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN", "MANIFEST_UNKNOWN", "MANIFEST_INVALID"})


class Solved(NamedTuple):
    """What a build found out."""

    keyed: Sequence[KeyedVertex]
    #: per result its layers, bottom first
    results: Sequence[Sequence[LayerId]]
    #: looks a key up as the solver does
    lookup: Callable[[str], Found | None]
    #: cache mounts of its steps
    mounts: Sequence[MountUse] = ()


class _Step(NamedTuple):
    canonical: str
    keys: tuple[str, ...]
    outputs: tuple[Ref, ...] | None


class CacheExporter:
    """Exports what one build has to several places."""

    def __init__(self, context: ExportContext, around: Surroundings, solved: Solved) -> None:
        self._context = context
        self._around = around
        self._solved = solved
        self._blobs = LayerBlobs(context)

    def run(self, specs: Sequence[CacheSpec]) -> dict[str, str]:
        """Export to all places, one after another; returns response entries.

        Raises: CacheError and what transports raise, unless ``ignore-error`` is set; StoreFull; the token's cause.
        """
        response: dict[str, str] = {}
        for number, spec in enumerate(specs):
            if spec.type == INLINE:
                continue
            options = ExportOptions.from_attrs(spec.attrs)
            backend = make_backend(spec, self._around, exported=True)
            key = f"cache {self._context.caller}{number} {backend.name}"
            try:
                with reported(self._context.sink, backend.title, key) as report:
                    response.update(self._export(backend, options, report))
            except CrossdockError as exc:
                self._context.cancel.check()
                if not options.ignore_error or isinstance(exc, StoreFull):
                    exc.summary = f"failed to export the cache to {backend.name}: {exc.summary}"
                    exc.args = (exc.summary,)
                    raise
                text = f"the cache was not exported to {backend.name}: {exc.summary}"
                self._context.sink.emit(VertexWarning(vertex="", level=1, short=text))
        return response

    # --- what there is to export ---

    def steps(self, *, everything: bool) -> list[_Step]:
        """Return keys and results; without ``everything`` only results whose layers are in the build's results."""
        records = self._context.store.records
        aliases = records.keys_of(list({keyed.canonical for keyed in self._solved.keyed}))
        wanted = {layer for result in self._solved.results for layer in result}
        steps: dict[str, _Step] = {}
        for keyed in self._solved.keyed:
            known = steps.get(keyed.canonical)
            keys = dict.fromkeys((*keyed.keys, *aliases.get(keyed.canonical, ())))
            keys.update(dict.fromkeys(known.keys if known is not None else ()))
            outputs = known.outputs if known is not None else self._outputs(keyed.canonical)
            if outputs is not None and not everything and not all(set(o.layers) <= wanted for o in outputs):
                outputs = None
            names = tuple(sorted(key for key in keys if key.startswith("sha256:")))
            steps[keyed.canonical] = _Step(keyed.canonical, names, outputs)
        return list(steps.values())

    def _outputs(self, canonical: str) -> tuple[Ref, ...] | None:
        found = self._solved.lookup(canonical)
        return None if found is None or found.canonical != canonical else found.results  # type: ignore[return-value]

    # --- one export ---

    def _export(self, backend: Backend, options: ExportOptions, report: Report) -> Mapping[str, str]:
        with report.stage("preparing build cache for export"):
            steps = self.steps(everything=options.max)
            layers = self._compressed(steps, options.compression, report)
            own = self._config(steps, layers)
        sent = list(layers.values())
        if options.mounts:
            mounts = pack_mounts(self._solved.mounts, self._base_of, self._context, options, report)
            sent += [mount.layer for mount in mounts]
            own = CacheConfig(
                merge(own.records, to_records([mount.known for mount in mounts])),
                {**own.layers, **{mount.layer.descriptor.digest: mount.layer.descriptor for mount in mounts}},
            )
        if not own.layers:
            report.note("skipping cache export for empty result")
            return {}
        self._write_layers(backend, own, sent, report)
        with backend.lock(self._context.cancel):
            return self._merge(backend, own, sent, options, report)

    def _base_of(self, use: MountUse) -> Sequence[LayerId] | None:
        """Return the layers that a cache mount starts from; ``None`` when that file system is not known."""
        if not use.base:
            return ()
        for keyed in self._solved.keyed:
            if keyed.vertex.partition("!")[0] == use.base:
                outputs = self._outputs(keyed.canonical)
                return outputs[use.output].layers if outputs is not None else None
        return None

    def _compressed(
        self, steps: Sequence[_Step], compression: Compression, report: Report
    ) -> dict[LayerId, LayerToWrite]:
        wanted = list(dict.fromkeys(la for s in steps for out in s.outputs or () for la in out.layers))

        def get(layer: LayerId, cancel: CancelToken) -> LayerToWrite:
            part = self._blobs.get(layer, compression, clamp_s=None, report=report, cancel=cancel)
            blob = part.descriptor
            annotations = {UNCOMPRESSED: str(part.diff_id)}
            created = write_time(self._blobs.info(layer).created_ns)
            annotations[CREATED] = created
            media_type = layer_type(compression_of(blob.media_type), oci=True)
            described = Descriptor(media_type, blob.digest, blob.size, annotations)
            repositories = tuple(part.repositories)

            def open_at(offset: int) -> BinaryIO:
                self._blobs.ensure_local(blob, repositories, report, self._context.cancel)
                return self._context.store.content.open_at(blob.digest, offset)

            return LayerToWrite(described, open_at, repositories)

        found = run_parallel(get, wanted, workers=_COMPRESSING, cancel=self._context.cancel)
        return dict(zip(wanted, found, strict=True))

    def _config(self, steps: Sequence[_Step], layers: Mapping[LayerId, LayerToWrite]) -> CacheConfig:
        day = today()
        known = [
            KnownKey(
                step.canonical,
                step.keys,
                None
                if step.outputs is None
                else tuple(_result([layers[la] for la in out.layers], day) for out in step.outputs),
            )
            for step in steps
        ]
        return CacheConfig(to_records(known), {x.descriptor.digest: x.descriptor for x in layers.values()})

    def _write_layers(
        self, backend: Backend, own: CacheConfig, layers: Sequence[LayerToWrite], report: Report
    ) -> None:
        unique = {layer.descriptor.digest: layer for layer in layers}
        ordered = sorted(unique.values(), key=lambda layer: -layer.descriptor.size)

        def write(layer: LayerToWrite, cancel: CancelToken) -> None:
            with report.stage(f"writing layer {layer.descriptor.digest}"):
                backend.write_blob(layer, report, cancel)

        run_parallel(write, ordered, workers=backend.senders, cancel=self._context.cancel)
        self._context.store.layers.add_repositories(own.layers, backend.repositories)

    # --- merging ---

    def _merge(
        self,
        backend: Backend,
        own: CacheConfig,
        sent: Sequence[LayerToWrite],
        options: ExportOptions,
        report: Report,
    ) -> Mapping[str, str]:
        cancel = self._context.cancel
        suspicious = backend.checks_layers
        for attempt in range(_ATTEMPTS):
            there = self._there(backend, report) if options.merge else None
            config = own
            if there is not None:
                config = merged(
                    backend,
                    own,
                    there.config,
                    max_results=options.max_results,
                    suspicious=suspicious,
                    cancel=cancel,
                )
            previous = ANY if not options.merge else None if there is None else there.version
            try:
                response = backend.replace(config, previous, report, cancel)
            except RegistryError as exc:
                if suspicious or there is None or not _PARTS_MISSING & set(exc.codes):
                    raise
                suspicious = True  # it lost layers of others: find out which
                continue
            if response is not None:
                return response
            # Not all at once again.
            pause_s = min(_RETRY_S * (attempt + 1), _LONGEST_RETRY_S)
            cancel.sleep(pause_s * (0.5 + os.urandom(1)[0] / 255))
            if suspicious:
                self._write_layers(backend, own, sent, report)  # somebody may have removed some
        short = f"other builds kept writing to {backend.name}: it may lack what this one found out"
        detail = (
            "The layers are there. The next export adds what is missing, or export to a reference of its own."
        )
        self._context.sink.emit(VertexWarning(vertex=report.vertex, level=1, short=short, detail=(detail,)))
        return {}

    def _there(self, backend: Backend, report: Report) -> Stored | None:
        try:
            return backend.load(self._context.cancel)
        except (CacheError, LayerError, DigestMismatch) as exc:
            if exc.retryable:
                raise
            report.note(f"warning: what is there cannot be merged and is replaced: {exc.summary}")
            return Stored(CacheConfig(), ANY)  # it is replaced, whatever its version


def _result(layers: Sequence[LayerToWrite], day: str) -> CacheResult:
    """Describe a file system; it is as old as its newest layer."""
    times = [layer.descriptor.annotations[CREATED] for layer in layers]
    created = max(times, key=lambda text: parse_time(text) or 0, default="")
    blobs = tuple(layer.descriptor.digest for layer in layers)
    return CacheResult(blobs, created or write_time(0), day)
