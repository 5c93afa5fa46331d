"""Build caches in a directory of the client, reached through its content store.

The client keeps the index: it names the digest of what is imported, and notes the manifest that an export answers with. An
export, which is not told what the index says, goes by the store: the newest manifest of a cache under its tag is what is
there, with those that others wrote shortly before.

Spec: moby/buildkit ``client/solve.go`` (parseCacheOptions), ``cache/remotecache/local``; store ``local:DIRECTORY``.
"""

from __future__ import annotations

import io
import threading
from contextlib import nullcontext
from typing import TYPE_CHECKING

from crossdock.engine.remotecache import config as cacheconfig
from crossdock.engine.remotecache.backend import ANY, MAX_DOCUMENT, Stored, VerifiedReader
from crossdock.engine.remotecache.manifest import (
    REF_NAME,
    USUAL_TAG,
    ManifestStyle,
    find_config,
    make_documents,
)
from crossdock.errors import CacheError, ContextError, CrossdockError, LayerError, UsageError
from crossdock.image import gojson
from crossdock.image.digest import Digest, parse_digest, sha256_digest
from crossdock.image.manifest import parse_manifest
from crossdock.server.clientstore import list_blobs, open_blob, write_blob

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from crossdock.cancel import CancelToken
    from crossdock.engine.exporters.report import Report
    from crossdock.engine.remotecache.backend import LayerToWrite
    from crossdock.engine.remotecache.config import CacheConfig
    from crossdock.engine.store.locks import OncePerKey
    from crossdock.image.descriptor import Descriptor
    from crossdock.image.manifest import Index, Manifest
    from crossdock.server.clientstore import ListedBlob
    from crossdock.server.sessions import ClientSession

__all__ = ["ClientCacheBackend"]

#: what was written so long before the newest manifest may be of a build that did not see the others
_AT_ONCE_NS = 600 * 10**9
#: caches merged, and blobs looked at to find them
_MOST_CACHES = 16
_MOST_PROBED = 256
#: bytes by which a manifest is told from other blobs; none is shorter
_SNIFFED = 64
#: seconds to wait for another build that writes to a directory of the same name
_PATIENCE_S = 10.0


class ClientCacheBackend:
    """Satisfies the engine's ``Backend`` for a cache of the type ``local``."""

    title = "exporting cache to client directory"
    senders = 2
    checks_layers = True
    repositories: tuple[str, ...] = ()

    def __init__(
        self,
        attrs: Mapping[str, str],
        find: Callable[[CancelToken], ClientSession],
        turns: OncePerKey,
        *,
        merges: bool,
    ) -> None:
        """``merges``: an export keeps what is there. Raises: UsageError for an import without a digest, or a malformed one."""
        directory = attrs.get("src") or attrs.get("dest") or ""
        self._find = find
        self._turns = turns
        self._merges = merges
        # Guards _listed.
        self._lock = threading.Lock()
        self._listed: dict[str, ListedBlob] | None = None
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
        """Read manifest and config; for an export those of all that wrote at the same time, as one."""
        if not self._exported:
            return (
                Stored(self._read(self._digest, cancel), self._digest) if self._digest is not None else None
            )
        if not self._merges:
            return None
        found = self._caches(self._list(cancel), cancel)
        if not found:
            return None
        records = cacheconfig.merge(*(config.records for config in found.values()))
        layers = {digest: layer for config in found.values() for digest, layer in config.layers.items()}
        return Stored(cacheconfig.CacheConfig(records, layers), " ".join(found))

    def _list(self, cancel: CancelToken) -> dict[str, ListedBlob]:
        """Return what the store has now, and remember it."""
        try:
            listed = list_blobs(self._find(cancel), self._store, cancel)
        except ContextError as exc:
            raise CacheError(exc.summary, hint=exc.hint) from exc
        with self._lock:
            self._listed = listed
        return listed

    def _caches(self, listed: Mapping[str, ListedBlob], cancel: CancelToken) -> dict[Digest, CacheConfig]:
        """Return the newest cache under the tag and those written shortly before it, newest first.

        Raises: CacheError, LayerError when there are some and none can be read; SessionLost; the token's cause.
        """
        found: dict[Digest, CacheConfig] = {}
        damage: CrossdockError | None = None
        fitting = [
            (blob.written_ns, digest)
            for digest, blob in listed.items()
            if _SNIFFED <= blob.size <= MAX_DOCUMENT
        ]
        oldest_ns = 0
        for written_ns, text in sorted(fitting, reverse=True)[:_MOST_PROBED]:
            if (found and written_ns < oldest_ns) or len(found) == _MOST_CACHES:
                break
            digest = parse_digest(text)
            try:
                config = self._under_tag(digest, cancel)
            except (CacheError, LayerError) as exc:
                damage = exc
                continue
            if config is not None:
                found[digest] = config
                oldest_ns = oldest_ns or written_ns - _AT_ONCE_NS
        if damage is not None and not found:
            raise damage
        return found

    def _may_be_manifest(self, digest: Digest, cancel: CancelToken) -> bool:
        try:
            with open_blob(self._find(cancel), self._store, digest, cancel, size=_SNIFFED) as file:
                start = file.read(_SNIFFED)
        except ContextError as exc:
            raise CacheError(exc.summary, hint=exc.hint) from exc
        return start.startswith(b"{") and b'"schemaVersion"' in start

    def _read(self, digest: Digest, cancel: CancelToken) -> CacheConfig:
        """Read the cache that is imported. Raises: CacheError, LayerError."""
        manifest = self._manifest(digest, cancel)
        config = self._config_of(manifest, cancel)
        if config is None:
            summary = f"{self.name}: {digest} is not a build cache"
            raise CacheError(summary)
        return config

    def _under_tag(self, digest: Digest, cancel: CancelToken) -> CacheConfig | None:
        """Read a cache that has our tag; ``None`` for anything else. Raises: CacheError, LayerError."""
        if not self._may_be_manifest(digest, cancel):
            return None
        manifest = self._manifest(digest, cancel)
        noted = manifest.annotations.get(REF_NAME, "")
        if self._style.tag != ("" if noted == USUAL_TAG else noted):
            return None
        return self._config_of(manifest, cancel)

    def _manifest(self, digest: Digest, cancel: CancelToken) -> Manifest | Index:
        return parse_manifest(self._document(digest, cancel), "", f"{self.name}@{digest}")

    def _config_of(self, manifest: Manifest | Index, cancel: CancelToken) -> CacheConfig | None:
        config, layers = find_config(manifest)
        if config is None:
            return None
        return cacheconfig.parse(self._document(config.digest, cancel), self.name, layers=layers)

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
        """Look in the list of what the store has; where there is none, nobody knows: writing finds out."""
        if not self._exported:
            return True
        with self._lock:
            if self._listed is None:
                try:
                    self._listed = list_blobs(self._find(cancel), self._store, cancel)
                except ContextError as exc:
                    if exc.retryable:
                        raise  # the session is over
                    self._listed = {}
            listed = self._listed.get(blob.digest)
        return listed is not None and listed.size == blob.size

    def lock(self, cancel: CancelToken) -> AbstractContextManager[object]:
        """Hold off other builds here that write to a directory of that name; other machines are noticed at the end."""
        if not self._exported or not self._merges:
            return nullcontext()
        return self._turns.holding(self._store, cancel, patience_s=_PATIENCE_S)

    def write_blob(self, layer: LayerToWrite, report: Report, cancel: CancelToken) -> None:
        """Send a layer that is not there."""
        del report
        size, digest = layer.descriptor.size, layer.descriptor.digest
        if self.is_there(layer.descriptor, cancel):
            return
        with layer.open_at(0) as source:
            write_blob(self._find(cancel), self._store, digest, source, size, cancel)

    def replace(
        self, config: CacheConfig, previous: str | None, report: Report, cancel: CancelToken
    ) -> Mapping[str, str] | None:
        """Send config and manifest, unless another cache came meanwhile; the answer names the manifest, for the index."""
        if self._merges and previous != ANY and self._others_wrote(cancel):
            return None
        documents = make_documents(config, self._style)
        session = self._find(cancel)
        for what, blob, raw in (
            ("config", documents.config, documents.config_raw),
            ("cache manifest", documents.manifest, documents.manifest_raw),
        ):
            with report.stage(f"writing {what} {blob.digest}"):
                if not self.is_there(blob, cancel):
                    write_blob(session, self._store, blob.digest, io.BytesIO(raw), len(raw), cancel)
        return {"cache.manifest": gojson.dumps(documents.manifest.to_json()).decode()}

    def _others_wrote(self, cancel: CancelToken) -> bool:
        """Whether the store has a cache that :meth:`load` did not see."""
        with self._lock:
            before = self._listed or {}
        now = self._list(cancel)
        return bool(self._caches({k: v for k, v in now.items() if k not in before}, cancel))
