"""How the engine gets at bytes that are elsewhere: one caller's registry client, images, layers."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from crossdock.engine.facade_parts import LazyClient
from crossdock.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from crossdock.cancel import CancelToken
    from crossdock.engine.facade_shared import Shared
    from crossdock.engine.sources.image import ImageSource
    from crossdock.engine.sources.pull import LayerPuller, PullContext
    from crossdock.engine.store import LayerId, Store
    from crossdock.image.descriptor import Descriptor
    from crossdock.progress.events import EventSink
    from crossdock.registry import RegistryClient

__all__ = ["Reach"]


class Reach:
    """One caller's access to registries, and what is fetched with it. Safe from any thread; close it."""

    def __init__(
        self, store: Store, shared: Shared, connect: Callable[[CancelToken], RegistryClient] | None
    ) -> None:
        self._store = store
        self._shared = shared
        self._connect = connect
        # Guards what is made on first use.
        self._lock = threading.RLock()
        self._client: RegistryClient | None = None
        self._images: ImageSource | None = None
        self._puller: LayerPuller | None = None

    def registry(self, cancel: CancelToken) -> RegistryClient:
        """Return a view of the client that honours ``cancel``. Raises: UsageError for an engine without registries."""
        with self._lock:
            if self._client is None:
                if self._connect is None:
                    summary = "this engine was opened without access to registries"
                    raise UsageError(summary)
                self._client = self._connect(cancel)
            return self._client.scoped(cancel=cancel)

    def images(self) -> ImageSource:
        """Return what finds images; it asks once what a tag means."""
        with self._lock:
            if self._images is None:
                from crossdock.engine.sources.image import ImageSource

                self._images = ImageSource(self._store, LazyClient(self.registry))
            return self._images

    def directories(
        self, layers: Sequence[LayerId], vertex: str, sink: EventSink, cancel: CancelToken
    ) -> Sequence[Path]:
        """Return the directories of layers, bottom first, fetching and unpacking those that are remote."""
        known = [self._store.layers.directory(layer) for layer in layers]
        ready = [path for path in known if path is not None]
        if len(ready) == len(known):
            return ready
        with self._shared.writing(cancel) as token:
            return self._layers().directories(layers, self._context(vertex, sink, token))

    def fetch(
        self,
        blob: Descriptor,
        repositories: Sequence[str],
        vertex: str,
        sink: EventSink,
        cancel: CancelToken,
    ) -> None:
        """Have a blob in the store, from one of the repositories when it is not there."""
        with self._shared.writing(cancel) as token:
            self._layers().blobs(((blob, repositories),), self._context(vertex, sink, token))

    def ensure(self, layers: Sequence[LayerId], sink: EventSink, cancel: CancelToken) -> None:
        """Have the bytes of layers. Raises: CacheError, RegistryError, StoreError and their kin."""
        missing = [layer for layer in layers if self._store.layers.directory(layer) is None]
        with self._shared.writing(cancel) as token:
            self._layers().ensure(missing, self._context("", sink, token))

    def close(self) -> None:
        """Close idle connections; idempotent."""
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def _context(self, vertex: str, sink: EventSink, cancel: CancelToken) -> PullContext:
        from crossdock.engine.sources.pull import PullContext

        return PullContext(self._shared.lease, sink, vertex, cancel)

    def _layers(self) -> LayerPuller:
        with self._lock:
            if self._puller is None:
                from crossdock.engine.facade_shared import single_id
                from crossdock.engine.sources.pull import LayerPuller
                from crossdock.layers import UnpackOptions

                options = UnpackOptions(ignore_chown_errors=single_id())
                client = LazyClient(self.registry)
                self._puller = LayerPuller(
                    self._store, client, unpack_options=options, caches=self._shared.blob_sources
                )
            return self._puller
