"""Blobs of layers: found, written, recompressed or fetched; each once, whatever number of images share it.

A layer that came from a registry keeps its blob unless ``force-compression`` asks for another. A layer
made here gets exactly the compression asked for, whatever an earlier export wrote, so that the same
build gives the same digests from any store. Blobs made here are marked by an annotation in the store,
which no manifest carries.
"""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, TypeVar

from crossdock.engine.store.layers import PACKED_ANNOTATION
from crossdock.engine.store.locks import alone
from crossdock.errors import DigestMismatch
from crossdock.hashing import sha256
from crossdock.image.descriptor import Descriptor
from crossdock.image.digest import DiffId, Digest
from crossdock.image.mediatypes import compression_of, layer_type
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from crossdock.cancel import CancelToken
    from crossdock.engine.exporters.model import ExportContext
    from crossdock.engine.exporters.report import Report
    from crossdock.engine.store import BlobWriter, LayerBlob, LayerId, LayerInfo
    from crossdock.layers.compression import Compression

__all__ = ["LayerBlobs", "LayerPart"]

_T = TypeVar("_T")


class LayerPart(NamedTuple):
    """A layer as a manifest needs it."""

    descriptor: Descriptor
    diff_id: DiffId
    #: ``host/name`` of repositories known to hold the blob
    repositories: Sequence[str]


class LayerBlobs:
    """Layer blobs of one export, shared by its exporters. Safe from any thread."""

    def __init__(self, context: ExportContext) -> None:
        self._context = context
        self._store = context.store
        # Guards the two dicts; never held over I/O.
        self._lock = threading.Lock()
        self._done: dict[str, object] = {}
        self._busy: dict[str, threading.Lock] = {}

    def info(self, layer: LayerId) -> LayerInfo:
        """Return what the store knows of a layer."""
        return self._once(f"info {layer}", lambda: self._store.layers.get(layer))

    def known(self, layer: LayerId, compression: Compression, *, clamp_s: int | None) -> LayerPart | None:
        """Return a layer's blob when nothing has to be written for it.

        The blob of a layer that came from a registry may not be in the store: see :meth:`ensure_local`.
        """
        if clamp_s is not None:
            return self._known_clamped(layer, compression, clamp_s)
        wanted = compression.label
        info = self.info(layer)
        for blob in info.blobs:
            if (
                blob.descriptor.annotations.get(PACKED_ANNOTATION) == wanted
                and (info.kind != "image" or compression.force)
                and self._store.content.has(blob.descriptor.digest, self._context.lease)
            ):
                return _part(info, blob)
        original = _original(info)
        if original is None:
            return None
        same_type = compression_of(original.descriptor.media_type) == compression.type
        return original if same_type or not compression.force else None

    def get(
        self,
        layer: LayerId,
        compression: Compression,
        *,
        clamp_s: int | None,
        report: Report,
        cancel: CancelToken,
    ) -> LayerPart:
        """Return a layer's blob, written when there is none. With ``clamp_s`` no file is newer than that.

        Raises: LayerError, StoreError, StoreFull, DigestMismatch; the token's cause.
        """

        def afresh() -> LayerPart | None:
            self._forget(f"info {layer}")
            return self.known(layer, compression, clamp_s=clamp_s)

        def make() -> LayerPart:
            part = self.known(layer, compression, clamp_s=clamp_s)
            if part is not None:
                return part
            # Builds that share a step end at the same time: one of them packs, the others find what it packed.
            lock = self._lock_file(layer, compression, clamp_s)
            with alone(lock, cancel, unless=lambda: afresh() is not None):
                return afresh() or self._make(layer, compression, clamp_s, report, cancel)

        return self._once(f"{compression.label} {compression.force} {clamp_s} {layer}", make)

    def ensure_local(
        self, blob: Descriptor, repositories: Sequence[str], report: Report, cancel: CancelToken
    ) -> None:
        """Have a blob in the store, fetched from one of the repositories when it is not there.

        Raises: StoreError when nobody is known to have it; RegistryError, DigestMismatch; the token's cause.
        """

        def fetch() -> None:
            if not self._store.content.has(blob.digest, self._context.lease):
                self._context.access.fetch(blob, repositories, report.vertex, cancel)

        self._once(f"local {blob.digest}", fetch)

    def _lock_file(self, layer: LayerId, compression: Compression, clamp_s: int | None) -> Path:
        text = f"{layer} {compression.label} {clamp_s}"
        return self._store.layout.locks / f"pack-{sha256(text.encode()).hexdigest()[:32]}"

    def _forget(self, key: str) -> None:
        with self._lock:
            self._done.pop(key, None)

    def _once(self, key: str, make: Callable[[], _T]) -> _T:
        """Return the value for ``key``, made by one thread; a failure is not kept."""
        with self._lock:
            if key in self._done:
                return self._done[key]  # type: ignore[return-value]  # a key always means one type
            busy = self._busy.setdefault(key, threading.Lock())
        with busy:
            with self._lock:
                if key in self._done:
                    return self._done[key]  # type: ignore[return-value]
            value = make()
            with self._lock:
                self._done[key] = value
        return value

    def _packed(self, layer: LayerId) -> LayerPart | None:
        """Return a blob of a layer that was packed as it was made, and has no directory to write it from."""
        info = self.info(layer)
        stored = (b for b in info.blobs if self._store.content.has(b.descriptor.digest, self._context.lease))
        found = None if info.has_directory else next(stored, None)
        return None if found is None else _part(info, found)

    def _make(
        self,
        layer: LayerId,
        compression: Compression,
        clamp_s: int | None,
        report: Report,
        cancel: CancelToken,
    ) -> LayerPart:
        source = _original(self.info(layer)) or self._packed(layer)
        if source is None or clamp_s is not None:
            return self._write(layer, compression, clamp_s, report, cancel)
        return self._convert(layer, source, compression, report, cancel)

    def _write(
        self,
        layer: LayerId,
        compression: Compression,
        clamp_s: int | None,
        report: Report,
        cancel: CancelToken,
    ) -> LayerPart:
        from crossdock.layers.walk import write_layer  # a cached build writes no layer

        directory = self._context.access.directory(layer, report.vertex, cancel)
        with self._store.content.writer(self._context.lease, hashing=False) as out:
            result = write_layer(
                directory,
                out,
                compression=compression,
                clamp_ns=None if clamp_s is None else clamp_s * 1_000_000_000,
                cancel=cancel,
            )
            for path in result.skipped:
                report.note(f"warning: {path} is a socket, which image layers cannot hold; left out")
            blob = self._commit(out, compression, result.digest, result.size)
        if clamp_s is None:
            self._store.layers.add_blob(layer, blob, result.diff_id)
        else:
            value = json.dumps({"blob": blob.to_json(), "diffId": result.diff_id})
            self._store.records.link(_clamp_key(layer, compression, clamp_s), value)
        return LayerPart(blob, result.diff_id, ())

    def _convert(
        self,
        layer: LayerId,
        original: LayerPart,
        compression: Compression,
        report: Report,
        cancel: CancelToken,
    ) -> LayerPart:
        """Recompress the archive as it came: writing it anew could change its diff id."""
        from crossdock.layers.convert import recompress  # a cached build converts nothing

        self.ensure_local(original.descriptor, original.repositories, report, cancel)
        with (
            self._store.content.open(original.descriptor.digest) as stream,
            self._store.content.writer(self._context.lease, hashing=False) as out,
        ):
            result = recompress(stream, out, compression=compression, cancel=cancel)
            if result.diff_id != original.diff_id:
                summary = (
                    f"layer {original.descriptor.digest} has diff id {result.diff_id}, "
                    f"but its image says {original.diff_id}"
                )
                raise DigestMismatch(summary, hint="the base image is damaged or was made wrongly")
            blob = self._commit(out, compression, result.digest, result.size)
        self._store.layers.add_blob(layer, blob, result.diff_id)
        return LayerPart(blob, result.diff_id, ())

    def _known_clamped(self, layer: LayerId, compression: Compression, clamp_s: int) -> LayerPart | None:
        """Look up a layer written with its times cut: it has another diff id, so it is remembered apart."""
        text = self._store.records.canonical(_clamp_key(layer, compression, clamp_s))
        if text is None:
            return None
        data = json.loads(text)
        blob = Descriptor.from_json(data["blob"], "clamped layer")
        if not self._store.content.has(blob.digest, self._context.lease):
            return None
        return LayerPart(blob, DiffId(data["diffId"]), self._store.layers.repositories(blob.digest))

    def _commit(self, out: BlobWriter, compression: Compression, digest: Digest, size: int) -> Descriptor:
        media_type = layer_type(compression.type, oci=True)
        blob = Descriptor(media_type, digest, size, {PACKED_ANNOTATION: compression.label})
        out.commit(blob)
        self._context.made.add(digest)
        return blob


def _part(info: LayerInfo, blob: LayerBlob) -> LayerPart | None:
    return None if info.diff_id is None else LayerPart(blob.descriptor, info.diff_id, blob.repositories)


def _original(info: LayerInfo) -> LayerPart | None:
    """Return the blob that a layer came with."""
    for blob in info.blobs:
        if PACKED_ANNOTATION not in blob.descriptor.annotations:
            return _part(info, blob)
    return None


def _clamp_key(layer: LayerId, compression: Compression, clamp_s: int) -> str:
    return f"clamped-layer {clamp_s} {compression.label} {layer}"
