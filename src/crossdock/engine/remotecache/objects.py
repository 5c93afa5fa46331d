"""What caches in object stores have in common: layers under their digests, and one cache config per name.

The config holds the descriptors of layers itself, so there is no manifest.

Spec: moby/buildkit ``cache/remotecache/s3``, ``cache/remotecache/azblob``.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import TYPE_CHECKING, Protocol

from crossdock.engine.remotecache import config as cacheconfig
from crossdock.engine.remotecache.backend import ANY, Stored, VerifiedReader
from crossdock.engine.remotecache.config import CacheConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from typing import BinaryIO

    from crossdock.cancel import CancelToken
    from crossdock.engine.exporters.report import Report
    from crossdock.engine.remotecache.backend import LayerToWrite, Readable
    from crossdock.image.descriptor import Descriptor
    from crossdock.image.digest import Digest

__all__ = ["ObjectBackend", "ObjectStore"]


class ObjectStore(Protocol):
    """An object store. Methods raise CacheError, and the token's cause between transfers."""

    def get(self, key: str) -> tuple[bytes, str] | None:
        """Return a small object and its version, ``None`` when there is none."""
        ...

    def put(self, key: str, data: bytes, previous: str | None) -> bool:
        """Write a small object if its version is ``previous`` (``None``: if there is none); False otherwise."""
        ...

    def size(self, key: str) -> int | None:
        """Return the bytes of an object, ``None`` when there is none."""
        ...

    def upload(self, key: str, source: BinaryIO, size_bytes: int) -> None:
        """Write a large object."""
        ...

    def keep(self, key: str) -> None:
        """Note that an object is still in use, where that makes a difference."""
        ...

    def open(self, key: str) -> tuple[Readable, Callable[[], object]]:
        """Start reading an object; returns the stream and what closes it."""
        ...


class ObjectBackend:
    """A cache in an object store."""

    checks_layers = True
    repositories: tuple[str, ...] = ()

    def __init__(
        self,
        store: Callable[[], ObjectStore],
        *,
        name: str,
        title: str,
        names: Sequence[str],
        key: Callable[[str, str], str],
        senders: int = 4,
    ) -> None:
        """``names`` of the cache, all written and read; ``key("blobs" | "manifests", name)`` makes keys."""
        self.name = name
        self.title = title
        self.senders = senders
        self._make = store
        self._made: ObjectStore | None = None
        self._names = tuple(dict.fromkeys(names))
        self._key = key

    @property
    def _store(self) -> ObjectStore:
        # Made when first needed, so that a store out of reach is a failed import, not a failed build.
        if self._made is None:
            self._made = self._make()
        return self._made

    def load(self, cancel: CancelToken) -> Stored | None:
        """Read the configs of all names."""
        versions: dict[str, str] = {}
        found: list[CacheConfig] = []
        for name in self._names:
            cancel.check()
            read = self._store.get(self._key("manifests", name))
            if read is not None:
                versions[name] = read[1]
                found.append(cacheconfig.parse(read[0], f"{self.name}: {name}"))
        if not found:
            return None
        layers: dict[Digest, Descriptor] = {}
        for config in found:
            layers.update(config.layers)
        records = cacheconfig.merge(*(config.records for config in found))
        return Stored(CacheConfig(records, layers), json.dumps(versions))

    def open_blob(self, blob: Descriptor, cancel: CancelToken, /) -> AbstractContextManager[VerifiedReader]:
        """Start a download."""
        cancel.check()
        stream, close = self._store.open(self._key("blobs", blob.digest))
        return VerifiedReader(stream, blob, self.name, close)

    def is_there(self, blob: Descriptor, cancel: CancelToken) -> bool:
        """Ask for a layer of the right size."""
        cancel.check()
        return self._store.size(self._key("blobs", blob.digest)) == blob.size

    def write_blob(self, layer: LayerToWrite, report: Report, cancel: CancelToken) -> None:
        """Send a layer."""
        key = self._key("blobs", layer.descriptor.digest)
        if self.is_there(layer.descriptor, cancel):
            self._store.keep(key)
            return
        with (
            layer.open_at(0) as source,
            report.transfer(layer.descriptor.digest, "pushing", layer.descriptor.size) as progress,
        ):
            self._store.upload(key, source, layer.descriptor.size)
            progress(layer.descriptor.size)

    def lock(self, cancel: CancelToken) -> AbstractContextManager[object]:
        """Take no lock: configs are replaced conditionally."""
        del cancel
        return nullcontext()

    def replace(
        self, config: CacheConfig, previous: str | None, report: Report, cancel: CancelToken
    ) -> Mapping[str, str] | None:
        """Write the config under every name."""
        raw = cacheconfig.dump(config, annotated=True)
        known: dict[str, str] = {} if previous in (None, ANY) else json.loads(previous or "{}")
        for name in self._names:
            cancel.check()
            key = self._key("manifests", name)
            expected = ANY if previous == ANY else known.get(name)
            with report.stage(f"writing cache manifest {name}"):
                if not self._store.put(key, raw, expected):
                    return None
        return {}
