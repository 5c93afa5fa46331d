"""Pulling: blobs from registries into the content store, layers from blobs into directories.

A layer is fetched, verified, kept and unpacked in one pass over its bytes; several layers at once.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from crossdock.cancel import CancelToken
from crossdock.engine.sources.transfer import Transfer
from crossdock.engine.store.locks import OncePerKey
from crossdock.errors import (
    CacheError,
    CrossdockError,
    DigestMismatch,
    InternalError,
    LayerError,
    RegistryError,
    StoreError,
)
from crossdock.image.reference import parse_reference
from crossdock.record import NamedTuple, replace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from crossdock.engine.sources.blobsources import BlobSource, BlobSources, BlobStream
    from crossdock.engine.sources.image import ClientSource
    from crossdock.engine.store import BlobWriter, LayerId, Lease, Store
    from crossdock.engine.store.layers import LayerBlob
    from crossdock.image.descriptor import Descriptor
    from crossdock.image.digest import DiffId
    from crossdock.layers.extract import UnpackOptions
    from crossdock.progress.events import EventSink

__all__ = ["LayerPuller", "PullContext"]

_AT_ONCE = 4
_BLOCK = 256 * 1024
_SHOWN_SKIPPED = 5

_Result = TypeVar("_Result")


class PullContext(NamedTuple):
    """On whose behalf something is pulled: lease, progress, cancellation."""

    lease: Lease
    sink: EventSink
    #: digest of the vertex that statuses belong to
    vertex: str
    cancel: CancelToken


class LayerPuller:
    """Gives remote layers their directories, and blobs their bytes. Safe from any thread."""

    def __init__(
        self,
        store: Store,
        registry: ClientSource,
        *,
        unpack_options: UnpackOptions | None = None,
        caches: Callable[[], BlobSources | None] = lambda: None,
    ) -> None:
        """``unpack_options``: the sandbox knows which ids files can be given. ``caches`` are asked before registries."""
        self._store = store
        self._registry = registry
        self._unpack_options = unpack_options
        self._caches = caches
        self._once = OncePerKey()

    def directories(self, layers: Sequence[LayerId], context: PullContext) -> tuple[Path, ...]:
        """Return the layers' directories, fetching and unpacking those that have none; all in parallel.

        The first failure ends the others. The caller holds the layers in the lease.
        Raises: NotFoundError, AuthError, RegistryError; DigestMismatch; LayerError for a hostile archive;
        StoreError, StoreFull; the token's cause.
        """
        missing = [x for x in dict.fromkeys(layers) if self._store.layers.directory(x) is None]
        if missing:
            _all_at_once([self._filler(layer_id) for layer_id in missing], context)
        return tuple(self._directory(layer_id, context) for layer_id in layers)

    def blobs(self, wanted: Sequence[tuple[Descriptor, Sequence[str]]], context: PullContext) -> None:
        """Have blobs in the content store; each comes with the repositories (``host/path``) that have it.

        Raises: as :meth:`directories`; StoreError when a blob is nowhere.
        """
        content = self._store.content
        missing = [(blob, places) for blob, places in wanted if not content.has(blob.digest, context.lease)]
        if missing:
            _all_at_once([self._fetcher(blob, places) for blob, places in missing], context)

    def ensure(self, layers: Sequence[LayerId], context: PullContext) -> None:
        """Have at least one blob of each remote layer in the content store. Raises: as :meth:`blobs`."""
        wanted = []
        for layer_id in layers:
            blobs = self._store.layers.blobs(layer_id)
            if not any(self._store.content.has(blob.descriptor.digest, context.lease) for blob in blobs):
                best = self._best(layer_id, blobs)
                wanted.append((best.descriptor, best.repositories))
        self.blobs(wanted, context)

    def _filler(self, layer_id: LayerId) -> Callable[[PullContext], None]:
        def run(context: PullContext) -> None:
            self._directory(layer_id, context)

        return run

    def _fetcher(self, blob: Descriptor, repositories: Sequence[str]) -> Callable[[PullContext], None]:
        def run(context: PullContext) -> None:
            with self._once.holding(blob.digest, context.cancel):
                if not self._store.content.has(blob.digest, context.lease):
                    self._fetch(blob, repositories, context)

        return run

    def _fetch(self, blob: Descriptor, repositories: Sequence[str], context: PullContext) -> None:
        def fetch(places: Sequence[str]) -> None:
            with (
                self._download(blob, places, context) as reader,
                self._store.content.writer(context.lease, hashing=False) as writer,
                Transfer(context.sink, context.vertex, blob.digest, total=blob.size) as transfer,
            ):
                _Tee(reader, writer, transfer).drain()
                writer.commit(blob)

        _from_any(repositories, fetch, context)

    def _directory(self, layer_id: LayerId, context: PullContext) -> Path:
        ready = self._store.layers.directory(layer_id)
        if ready is not None:
            return ready
        blobs = self._store.layers.blobs(layer_id)
        local = [b for b in blobs if self._store.content.has(b.descriptor.digest, context.lease)]
        for blob in local:
            try:
                return self._fill(layer_id, self._unpack_stored, blob, context)
            except (DigestMismatch, StoreError, LayerError) as exc:
                damaged = isinstance(exc, DigestMismatch) or not self._store.content.has(
                    blob.descriptor.digest
                )
                if not damaged or not any(b.repositories for b in blobs):
                    raise
                self._store.content.forget(blob.descriptor.digest)  # damaged here: fetch it again
        best = self._best(layer_id, blobs)
        try:
            return _from_any(
                best.repositories,
                lambda places: self._fill(
                    layer_id, self._unpack_remote, replace(best, repositories=tuple(places)), context
                ),
                context,
            )
        except DigestMismatch as exc:
            # It unpacks to something else than the cache said.
            for source in self._cached(best.descriptor):
                raise self._cache_failed(source, exc) from exc
            raise

    def _fill(
        self,
        layer_id: LayerId,
        unpack: Callable[[LayerBlob, Path, PullContext], DiffId],
        blob: LayerBlob,
        context: PullContext,
    ) -> Path:
        return self._store.layers.materialise(
            layer_id, lambda dest: unpack(blob, dest, context), context.cancel
        )

    def _unpack_stored(self, layer: LayerBlob, dest: Path, context: PullContext) -> DiffId:
        blob = layer.descriptor
        with (
            self._store.content.open(blob.digest) as stream,
            Transfer(context.sink, context.vertex, f"extracting {blob.digest}"),
        ):
            try:
                diff_id = self._unpack(stream, blob, dest, context)
            except LayerError:
                _read_to_end(stream)  # damaged in the store? then that is the error to report
                raise
            _read_to_end(stream)
            return diff_id

    def _unpack_remote(self, layer: LayerBlob, dest: Path, context: PullContext) -> DiffId:
        blob = layer.descriptor
        with (
            self._download(blob, layer.repositories, context) as reader,
            self._store.content.writer(context.lease, hashing=False) as writer,
            Transfer(context.sink, context.vertex, f"extracting {blob.digest}"),
            Transfer(context.sink, context.vertex, blob.digest, total=blob.size) as transfer,
        ):
            tee = _Tee(reader, writer, transfer)
            try:
                diff_id = self._unpack(tee, blob, dest, context)
            except LayerError:
                tee.drain()  # damaged on its way? then that is the error to report
                raise
            tee.drain()
            writer.commit(blob)
        return diff_id

    def _unpack(self, stream: _Tee | BinaryIO, blob: Descriptor, dest: Path, context: PullContext) -> DiffId:
        from crossdock.layers.unpack import UnpackOptions, unpack_layer

        options = self._unpack_options or UnpackOptions()
        result = unpack_layer(stream, dest, options=options, cancel=context.cancel)
        if result.skipped:
            self._warn(blob, result.skipped, context)
        return result.diff_id

    @staticmethod
    def _warn(blob: Descriptor, skipped: tuple[str, ...], context: PullContext) -> None:
        from crossdock.progress.events import VertexWarning

        more = len(skipped) - _SHOWN_SKIPPED
        detail = (*skipped[:_SHOWN_SKIPPED], *([f"and {more} more"] if more > 0 else ()))
        short = f"{len(skipped)} entries of layer {blob.digest} cannot be made here and were left out"
        context.sink.emit(VertexWarning(vertex=context.vertex, level=1, short=short, detail=detail))

    def _best(self, layer_id: LayerId, blobs: Sequence[LayerBlob]) -> LayerBlob:
        """Choose what to fetch: zstd unpacks fastest, small is quick to fetch."""
        remote = [blob for blob in blobs if blob.repositories or self._cached(blob.descriptor)]
        if not remote:
            summary = f"layer {layer_id} has no directory, and no registry is known to have it"
            raise StoreError(summary, hint="build with `--no-cache`, or `crossdock store check --repair`")
        return min(remote, key=lambda blob: (blob.compression != "zstd", blob.descriptor.size))

    def _cached(self, blob: Descriptor) -> tuple[BlobSource, ...]:
        caches = self._caches()
        return () if caches is None else caches.of(blob.digest)

    def _cache_failed(self, source: BlobSource, why: CrossdockError) -> CacheError:
        """Note that a cache did not give what it listed: whoever imported it goes on without."""
        caches = self._caches()
        if caches is not None:
            caches.failed.setdefault(source.name, why.summary)
        return CacheError(f"build cache {source.name}: {why.summary}", detail=why.detail, hint=why.hint)

    @contextmanager
    def _download(
        self, blob: Descriptor, repositories: Sequence[str], context: PullContext
    ) -> Iterator[BlobStream]:
        """Open a blob at the first place that gives it: imported caches, then repositories."""
        failure: CrossdockError | None = None
        for source in self._cached(blob):
            try:
                stream = source.open_blob(blob, context.cancel)
            except (RegistryError, CacheError, DigestMismatch) as exc:
                failure = failure or self._cache_failed(source, exc)
                continue
            with stream as opened:
                try:
                    yield opened
                except (RegistryError, CacheError, DigestMismatch, LayerError) as exc:
                    raise self._cache_failed(source, exc) from exc
            return
        for repository in repositories:
            try:
                registry = self._registry.scoped(cancel=context.cancel)
                reader = registry.open_blob(parse_reference(repository), blob)
            except RegistryError as exc:
                failure = failure or exc
                continue
            with reader:
                yield reader
            return
        if failure is not None:
            raise failure
        summary = f"blob {blob.digest} is not in the store, and no registry is known to have it"
        raise StoreError(summary, hint="build with `--no-cache`, or `crossdock store check --repair`")


class _Tee:
    """Reads a download and keeps what was read; for one thread at a time."""

    __slots__ = ("_position", "_reader", "_transfer", "_writer")

    def __init__(self, reader: BlobStream, writer: BlobWriter, transfer: Transfer) -> None:
        self._reader = reader
        self._writer = writer
        self._transfer = transfer
        self._position = 0

    def read(self, size: int, /) -> bytes:
        """Read up to ``size`` bytes."""
        data = self._reader.read(size)
        self._writer.write(data)
        self._position += len(data)
        self._transfer.at(self._position)
        return data

    def drain(self) -> None:
        """Read to the end, which verifies the digest."""
        while self.read(_BLOCK):
            pass


def _from_any(
    repositories: Sequence[str], fetch: Callable[[Sequence[str]], _Result], context: PullContext
) -> _Result:
    """Fetch from the first repository that gives the truth, one after another; raises the first one's failure."""
    failure: CrossdockError | None = None
    for place in repositories or ("",):
        try:
            return fetch((place,) if place else ())
        except (RegistryError, DigestMismatch) as exc:
            context.cancel.check()
            failure = failure or exc
    raise failure or InternalError("nowhere to fetch from")


def _read_to_end(stream: BinaryIO) -> None:
    """Read what follows an archive: it counts for the digest, which is checked at the end."""
    while stream.read(_BLOCK):
        pass


def _all_at_once(tasks: Sequence[Callable[[PullContext], None]], context: PullContext) -> None:
    """Run tasks in threads; the first failure cancels the others and is raised."""
    if len(tasks) == 1:
        tasks[0](context)
        return
    from concurrent.futures import ThreadPoolExecutor
    from contextvars import copy_context

    token = CancelToken(context.cancel)
    inner = context._replace(cancel=token)
    first: list[BaseException] = []

    def run(task: Callable[[PullContext], None]) -> None:
        if token.cancelled:
            return
        try:
            task(inner)
        except BaseException as exc:  # noqa: BLE001  top of a worker thread: raised by the waiting one
            first.append(exc)
            token.cancel(exc if isinstance(exc, CrossdockError) else None)

    try:
        with ThreadPoolExecutor(min(_AT_ONCE, len(tasks)), thread_name_prefix="pull") as pool:
            for task in tasks:
                pool.submit(copy_context().run, run, task)
    finally:
        token.close()
    if first:
        raise first[0]
    context.cancel.check()
