"""Build caches in a directory of the client, reached through its content store.

The client keeps the index: it names the digest of what is imported, and notes the manifest that an export answers with.

Spec: moby/buildkit ``client/solve.go`` (parseCacheOptions), ``cache/remotecache/local``; store ``local:DIRECTORY``.
"""

from __future__ import annotations

import io
from contextlib import nullcontext
from typing import TYPE_CHECKING

from crossdock.engine.remotecache import config as cacheconfig
from crossdock.engine.remotecache.backend import MAX_DOCUMENT, Stored, VerifiedReader
from crossdock.engine.remotecache.manifest import ManifestStyle, find_config, make_documents
from crossdock.errors import CacheError, ContextError, UsageError
from crossdock.image import gojson
from crossdock.image.digest import Digest, parse_digest, sha256_digest
from crossdock.image.manifest import parse_manifest
from crossdock.server.clientstore import open_blob, write_blob

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from crossdock.cancel import CancelToken
    from crossdock.engine.exporters.report import Report
    from crossdock.engine.remotecache.backend import LayerToWrite
    from crossdock.engine.remotecache.config import CacheConfig
    from crossdock.image.descriptor import Descriptor
    from crossdock.server.sessions import ClientSession

__all__ = ["ClientCacheBackend"]


class ClientCacheBackend:
    """Satisfies the engine's ``Backend`` for a cache of the type ``local``."""

    title = "exporting cache to client directory"
    senders = 2
    checks_layers = False
    repositories: tuple[str, ...] = ()

    def __init__(self, attrs: Mapping[str, str], find: Callable[[CancelToken], ClientSession]) -> None:
        """Raises: UsageError for an import without a digest, or a malformed one."""
        directory = attrs.get("src") or attrs.get("dest") or ""
        self._find = find
        self._store = f"local:{directory}"
        self._exported = "dest" in attrs
        self._style = ManifestStyle.from_attrs(attrs) if self._exported else ManifestStyle()
        text = attrs.get("digest", "")
        if not self._exported and not text:
            summary = f"the local cache {directory} to import comes without a digest"
            raise UsageError(summary, hint="is there a cache in that directory?")
        self._digest: Digest | None = parse_digest(text) if text else None
        self.name = self._store

    def load(self, cancel: CancelToken) -> Stored | None:
        """Read manifest and config; an export begins anew, since the index is the client's."""
        if self._exported or self._digest is None:
            return None
        manifest = parse_manifest(self._document(self._digest, cancel), "", f"{self.name}@{self._digest}")
        config, layers = find_config(manifest)
        if config is None:
            summary = f"{self.name}: {self._digest} is not a build cache"
            raise CacheError(summary)
        text = self._document(config.digest, cancel)
        return Stored(cacheconfig.parse(text, self.name, layers=layers), self._digest)

    def _document(self, digest: Digest, cancel: CancelToken) -> bytes:
        try:
            with open_blob(self._find(cancel), self._store, digest, cancel) as file:
                raw = file.read(MAX_DOCUMENT + 1)
        except ContextError as exc:
            raise CacheError(exc.summary, hint=exc.hint) from exc
        if len(raw) > MAX_DOCUMENT or sha256_digest(raw) != digest:
            summary = f"{self.name}: {digest} has other content than its name says"
            raise CacheError(summary, hint="the cache is damaged: export it anew")
        return raw

    def open_blob(self, blob: Descriptor, cancel: CancelToken, /) -> AbstractContextManager[VerifiedReader]:
        """Open a layer."""
        try:
            file = open_blob(self._find(cancel), self._store, blob.digest, cancel)
        except ContextError as exc:
            raise CacheError(exc.summary, hint=exc.hint) from exc
        return VerifiedReader(file, blob, self.name, file.close)

    def is_there(self, blob: Descriptor, cancel: CancelToken) -> bool:
        """Say that nobody knows: writing finds out."""
        del blob, cancel
        return not self._exported

    def lock(self, cancel: CancelToken) -> AbstractContextManager[object]:
        """Take no lock: the directory is the client's."""
        del cancel
        return nullcontext()

    def write_blob(self, layer: LayerToWrite, report: Report, cancel: CancelToken) -> None:
        """Send a layer."""
        del report
        with layer.open_at(0) as source:
            size, digest = layer.descriptor.size, layer.descriptor.digest
            write_blob(self._find(cancel), self._store, digest, source, size, cancel)

    def replace(
        self, config: CacheConfig, previous: str | None, report: Report, cancel: CancelToken
    ) -> Mapping[str, str] | None:
        """Send config and manifest; the answer names the manifest, for the client's index."""
        del previous
        documents = make_documents(config, self._style)
        session = self._find(cancel)
        for what, blob, raw in (
            ("config", documents.config, documents.config_raw),
            ("cache manifest", documents.manifest, documents.manifest_raw),
        ):
            with report.stage(f"writing {what} {blob.digest}"):
                write_blob(session, self._store, blob.digest, io.BytesIO(raw), len(raw), cancel)
        return {"cache.manifest": gojson.dumps(documents.manifest.to_json()).decode()}
