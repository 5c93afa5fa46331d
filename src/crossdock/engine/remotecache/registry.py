"""Caches in registries, and inline caches of images there.

Few registries replace a tag only if it is unchanged. So each is asked to, and the manifest is compared before it is replaced
and looked at again after a pause that grows with the time in which others could have overlooked it; who finds another one
there merges once more. Writers of one machine also take turns.

Spec: moby/buildkit ``cache/remotecache/registry``.
"""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

from crossdock.engine.remotecache import config as cacheconfig
from crossdock.engine.remotecache.backend import ANY, MAX_DOCUMENT, Stored
from crossdock.engine.remotecache.config import CacheConfig
from crossdock.engine.remotecache.inline import parse_inline
from crossdock.engine.remotecache.manifest import ManifestStyle, find_config, make_documents
from crossdock.engine.store.locks import hold
from crossdock.errors import CacheError, NotFoundError, RegistryError
from crossdock.image.manifest import Index, Manifest, parse_manifest
from crossdock.image.reference import parse_reference
from crossdock.layers.compression import parse_bool

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    from crossdock.cancel import CancelToken
    from crossdock.engine.exporters.report import Report
    from crossdock.engine.remotecache.backend import LayerToWrite, Readable
    from crossdock.engine.remotecache.manifest import CacheDocuments
    from crossdock.engine.remotecache.place import Surroundings
    from crossdock.image.descriptor import Descriptor
    from crossdock.image.digest import Digest
    from crossdock.registry.client import RegistryClient, Tagged

__all__ = ["RegistryBackend"]

#: seconds after which a manifest that another writer put in place of ours would be there: at least, at most, and as
#: a multiple of the time between our own look and the end of our write
_SETTLE_S, _LONGEST_SETTLE_S, _SLOWER = 0.2, 5.0, 4.0
_PRECONDITION_FAILED = 412
_ATTESTATION = "vnd.docker.reference.type"


class RegistryBackend:
    """The cache under one tag."""

    title = "exporting cache to registry"
    #: a manifest's layers are there: registries see to that
    senders = 4
    checks_layers = False

    def __init__(self, attrs: Mapping[str, str], around: Surroundings, *, exported: bool) -> None:
        self._around = around
        self._ref = parse_reference(attrs["ref"]).with_default_tag()
        self._insecure = parse_bool("registry.insecure", attrs.get("registry.insecure", "false"))
        self._style = ManifestStyle.from_attrs(attrs) if exported else ManifestStyle()
        #: an import may read a mirror; what is to be replaced is in the registry itself
        self._exported = exported
        self._there: Tagged | None = None
        self._conditional = True
        self.name = str(self._ref)
        self.repositories = (self._ref.repository,)

    def _client(self, cancel: CancelToken) -> RegistryClient:
        return self._around.client(cancel).scoped(insecure=self._insecure or None, cancel=cancel)

    def load(self, cancel: CancelToken) -> Stored | None:
        """Fetch manifest and config; of an image its inline caches, all platforms together."""
        client = self._client(cancel)
        if self._exported:
            self._there = client.read_tag(self._ref)
            if self._there is None:
                return None
            descriptor, raw, _ = self._there
        else:
            try:
                descriptor, raw = client.fetch_manifest(self._ref)
            except NotFoundError:
                return None
        document = parse_manifest(raw, descriptor.media_type, self.name)
        config, layers = find_config(document)
        if config is None:
            return Stored(self._inline(document, client), descriptor.digest)
        text = client.fetch_blob(self._ref, config, limit=MAX_DOCUMENT)
        return Stored(cacheconfig.parse(text, self.name, layers=layers), descriptor.digest)

    def _inline(self, document: Manifest | Index, client: RegistryClient) -> CacheConfig:
        found: list[CacheConfig] = []
        for manifest in self._manifests(document, client):
            where = f"{self.name}@{manifest.descriptor.digest}"
            raw = client.fetch_blob(self._ref, manifest.config, limit=MAX_DOCUMENT)
            config = parse_inline(manifest, raw, where)
            if config is not None:
                found.append(config)
        if not found:
            summary = f"{self.name} is not a build cache, nor an image with an inline one"
            raise CacheError(summary, hint="export with --cache-to type=registry or type=inline first")
        layers: dict[Digest, Descriptor] = {}
        for config in found:
            layers.update(config.layers)
        return CacheConfig(cacheconfig.merge(*(config.records for config in found)), layers)

    def _manifests(self, document: Manifest | Index, client: RegistryClient) -> Iterator[Manifest]:
        if isinstance(document, Manifest):
            yield document
            return
        for entry in document.manifests:
            if _ATTESTATION in entry.annotations:
                continue
            pinned = self._ref.with_digest(entry.digest)
            descriptor, raw = client.fetch_manifest(pinned)
            child = parse_manifest(raw, descriptor.media_type, str(pinned))
            if isinstance(child, Manifest):
                yield child

    def open_blob(self, blob: Descriptor, cancel: CancelToken, /) -> AbstractContextManager[Readable]:
        """Start a download."""
        return self._client(cancel).open_blob(self._ref, blob)

    def write_blob(self, layer: LayerToWrite, report: Report, cancel: CancelToken) -> None:
        """Mount or send a layer."""
        nearby = [name for name in layer.repositories if name != self._ref.repository]
        blob = layer.descriptor
        with report.transfer(blob.digest, "pushing", blob.size) as progress:
            self._client(cancel).push_blob(
                self._ref, blob, layer.open_at, mount_from=nearby, progress=progress
            )

    def is_there(self, blob: Descriptor, cancel: CancelToken) -> bool:
        """Ask for a layer."""
        return self._client(cancel).blob_exists(self._ref, blob.digest)

    def lock(self, cancel: CancelToken) -> AbstractContextManager[object]:
        """Take turns with other processes that use this store."""
        name = hashlib.sha256(self.name.encode()).hexdigest()[:32]
        return hold(self._around.locks / f"cache-{name}", cancel)

    def replace(
        self, config: CacheConfig, previous: str | None, report: Report, cancel: CancelToken
    ) -> Mapping[str, str] | None:
        """Push config and manifest, unless somebody else's manifest appeared meanwhile."""
        import io

        from crossdock.image import gojson

        client = self._client(cancel)
        documents = make_documents(config, self._style)
        manifest = documents.manifest
        response = {"cache.manifest": gojson.dumps(manifest.to_json()).decode()}
        if previous == manifest.digest:
            return response
        with report.stage(f"writing config {documents.config.digest}"):
            raw = documents.config_raw
            client.push_blob(self._ref, documents.config, lambda offset: io.BytesIO(raw[offset:]))
        began_s = time.monotonic()
        if previous != ANY and self._current(client) != previous:
            return None
        kind = "cache image manifest" if self._style.image else "cache manifest"
        with report.stage(f"writing {kind} {manifest.digest}"):
            if not self._push(client, documents, previous):
                return None
        if previous == ANY:
            return response
        elapsed_s = time.monotonic() - began_s
        cancel.sleep(min(max(_SETTLE_S, _SLOWER * elapsed_s), _LONGEST_SETTLE_S))
        return response if self._current(client) == manifest.digest else None

    def _push(self, client: RegistryClient, documents: CacheDocuments, previous: str | None) -> bool:
        """Push the manifest; False when the registry says that another one is there by now."""
        there = self._there
        known = there is not None and there.descriptor.digest == previous
        instead_of = there if known and self._conditional else None
        try:
            client.push_manifest(self._ref, documents.manifest, documents.manifest_raw, instead_of=instead_of)
        except RegistryError as exc:
            if exc.status != _PRECONDITION_FAILED or instead_of is None:
                raise
            if self._current(client) != previous:
                return False
            # It knows conditions but not its own entity tags.
            self._conditional = False
            client.push_manifest(self._ref, documents.manifest, documents.manifest_raw)
        return True

    def _current(self, client: RegistryClient) -> str | None:
        found = client.head_manifest(self._ref)
        if found is not None:
            return found.digest
        tagged = client.read_tag(self._ref)
        return None if tagged is None else tagged.descriptor.digest
