"""Blobs of layers are packed once, whoever needs them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from crossdock.cancel import CancelToken
from crossdock.engine.exporters import ExportContext, ExporterSpec, PlatformImage, export
from crossdock.engine.exporters.blobs import LayerBlobs
from crossdock.engine.store.locks import hold
from crossdock.errors import Cancelled
from crossdock.layers.compression import Compression

if TYPE_CHECKING:
    from pathlib import Path

    from crossdock.engine.store import LayerId
    from unit.engine.exporters.conftest import Access


class TestPackingOnce:
    """Builds that share a layer pack it once, whether they are in one process or not: the lock is the kernel's."""

    def exported(self, context: ExportContext, image: PlatformImage) -> str:
        result = export([image], [ExporterSpec("image", {})], context=context)
        return str(result.merged["containerimage.digest"])

    def test_exports_at_once_read_each_layer_once(
        self, context: ExportContext, access: Access, image: PlatformImage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        at_work, more = threading.Event(), threading.Event()
        real = access.directory

        def directory(layer: LayerId, vertex: str, cancel: CancelToken) -> Path:
            at_work.set()
            assert more.wait(10)
            return real(layer, vertex, cancel)

        monkeypatch.setattr(access, "directory", directory)
        with ThreadPoolExecutor(4) as pool:
            first = pool.submit(self.exported, context, image)
            assert at_work.wait(10)
            others = [pool.submit(self.exported, context, image) for _ in range(3)]
            more.set()
            digests = {first.result(), *(other.result() for other in others)}
        assert len(digests) == 1
        assert sorted(access.asked) == sorted(image.ref)

    def test_another_packs_when_the_first_fails(
        self, context: ExportContext, access: Access, image: PlatformImage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, calls = access.directory, []

        def directory(layer: LayerId, vertex: str, cancel: CancelToken) -> Path:
            calls.append(layer)
            if len(calls) == 1:
                raise OSError(5, "Input/output error")
            return real(layer, vertex, cancel)

        monkeypatch.setattr(access, "directory", directory)
        with pytest.raises(OSError, match="Input/output error"):
            self.exported(context, image)
        assert self.exported(context, image)
        assert not list(context.store.layout.locks.glob("pack-*")), "nothing is left of the locks"

    def test_who_waits_can_be_cancelled(self, context: ExportContext, image: PlatformImage) -> None:
        cancel = CancelToken()
        own = context.with_cancel(cancel)
        blobs = LayerBlobs(own)
        lock = blobs._lock_file(image.ref[0], Compression.from_attrs({}), None)
        with hold(lock, None):
            threading.Timer(0.05, cancel.cancel).start()
            with pytest.raises(Cancelled):
                self.exported(own, image)
