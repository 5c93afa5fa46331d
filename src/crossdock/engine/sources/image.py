"""Images as build sources: from a reference and a platform to a manifest, a config and layers.

Nothing of a layer is fetched here: layers are noted in the store as remote, and ``pull`` fetches those whose bytes are needed.
Manifests and configs are kept in the content store, so that a reference pinned by digest needs no network the second time.

Spec: BuildKit ``source/containerimage``; image-spec 1.1, image-index.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

from crossdock.engine.store.locks import OncePerKey
from crossdock.errors import (
    DigestMismatch,
    LayerError,
    NotFoundError,
    PlatformNotFound,
    RegistryError,
    StoreError,
    UsageError,
)
from crossdock.image.config import ImageConfig
from crossdock.image.descriptor import Descriptor
from crossdock.image.digest import DiffId, Digest, parse_digest, sha256_digest
from crossdock.image.manifest import Index, Manifest, parse_manifest, select_platform
from crossdock.image.mediatypes import is_layer
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from crossdock.cancel import CancelToken
    from crossdock.engine.store import LayerId, Lease, Store
    from crossdock.image.platform import Platform
    from crossdock.image.reference import Reference
    from crossdock.registry import RegistryClient

__all__ = ["ClientSource", "DocumentSource", "ImageFinder", "ImageSource", "ResolvedImage", "has_bytes"]

_MAX_DEPTH = 4
_MODES = ("default", "pull", "local")


class DocumentClient(Protocol):
    """Reads manifests and configs, verified."""

    def fetch_manifest(self, ref: Reference, /) -> tuple[Descriptor, bytes]:
        """Return a manifest or index."""
        ...

    def fetch_blob(self, ref: Reference, blob: Descriptor, /) -> bytes:
        """Return a small blob."""
        ...


class DocumentSource(Protocol):
    """Gives what reads documents: a registry's client, or an OCI layout."""

    def scoped(self, *, cancel: CancelToken) -> DocumentClient:
        """Return a client whose waits end with ``cancel``."""
        ...


class ClientSource(Protocol):
    """Gives registry clients: a client itself, or what makes one when it is first wanted."""

    def scoped(self, *, cancel: CancelToken) -> RegistryClient:
        """Return a client whose waits end with ``cancel``."""
        ...


class ResolvedImage(NamedTuple):
    """An image for one platform."""

    #: canonical reference as asked, without the digest found
    ref: str
    #: of what the reference names: the index when there is one
    digest: Digest
    manifest: Manifest
    #: raw image config
    config: bytes
    #: of the layers, bottom first
    diff_ids: tuple[DiffId, ...]
    #: ``host/path`` the layers can be fetched from; empty for an image that is only in the store
    repository: str


class ImageSource:
    """Resolves images for one build: what a tag means is asked once, so that all platforms see the same image.

    Safe from any thread.
    """

    def __init__(
        self, store: Store, registry: ClientSource, *, warn: Callable[[str], None] | None = None
    ) -> None:
        """``warn`` is told when an image of the store stands in for one that a registry did not give."""
        self._store = store
        self._registry = registry
        self._warn = warn
        self._once = OncePerKey()
        # Single dict operations only; each key is written by the one thread that holds it in _once.
        self._tops: dict[str, tuple[Descriptor, str]] = {}
        self._resolved: dict[tuple[str, Platform], ResolvedImage] = {}

    def resolve(
        self, ref: Reference, *, platform: Platform, mode: str = "default", lease: Lease, cancel: CancelToken
    ) -> ResolvedImage:
        """Find the image of ``platform``.

        ``mode``: ``default`` asks the registry what a tag means and falls back on an image of that name in the
        store; ``pull`` never falls back; ``local`` asks the store first.
        Raises: PlatformNotFound listing what there is; NotFoundError, AuthError, RegistryError; DigestMismatch;
        LayerError for a malformed image; StoreError, StoreFull; UsageError; the token's cause.
        """
        if mode not in _MODES:
            summary = f"invalid image resolve mode {mode!r}"
            raise UsageError(summary, hint=f"it is one of {', '.join(_MODES)}")
        ref = ref.with_default_tag()
        memo = (f"{mode} {ref}", platform)
        found = self._resolved.get(memo)
        if found is None:
            top, repository = self._top(ref, mode, lease, cancel)
            finder = ImageFinder(self._store, self._registry, self._once, ref, repository, lease, cancel)
            found = self._resolved[memo] = finder.find(top, platform)
        return found

    def add_layers(self, image: ResolvedImage, *, lease: Lease) -> tuple[LayerId, ...]:
        """Note the image's layers in the store, bottom first; known ones are found by diff id. Fetches nothing.

        Raises: StoreError, StoreFull.
        """
        layers = self._store.layers
        repositories = (image.repository,) if image.repository else ()
        ids: list[LayerId] = []
        for diff_id, blob in zip(image.diff_ids, image.manifest.layers, strict=True):
            layer_id = layers.find(diff_id, lease)
            if layer_id is None or not self._is_noted(layer_id, blob, repositories):
                layer_id = layers.add_remote(
                    lease,
                    diff_id=diff_id,
                    blob=blob,
                    repositories=repositories,
                    description=f"pulled from {image.ref}",
                )
            ids.append(layer_id)
        return tuple(ids)

    def open_blob(self, ref: Reference, digest: Digest, cancel: CancelToken) -> tuple[int, BinaryIO] | None:
        """Open a blob of a repository, giving its size too; ``None`` when it has none of that digest. Close it.

        Raises: AuthError, RegistryError; the token's cause.
        """
        client = self._registry.scoped(cancel=cancel)
        size = client.blob_size(ref, digest)
        if size is None:
            return None
        return size, cast("BinaryIO", client.open_blob(ref, Descriptor("", digest, size)))

    def _is_noted(self, layer_id: LayerId, blob: Descriptor, repositories: tuple[str, ...]) -> bool:
        return any(
            known.descriptor.digest == blob.digest and set(repositories) <= set(known.repositories)
            for known in self._store.layers.blobs(layer_id)
        )

    def _top(self, ref: Reference, mode: str, lease: Lease, cancel: CancelToken) -> tuple[Descriptor, str]:
        """Return the descriptor that a reference means, and the repository it is in (``""``: the store alone)."""
        if ref.digest is not None and (size := self._store.content.size(ref.digest, lease)) is not None:
            return Descriptor("", ref.digest, size), ref.repository
        key = f"{mode} {ref}"
        with self._once.holding(key, cancel):
            known = self._tops.get(key)
            if known is None:
                known = self._tops[key] = self._ask(ref, mode, cancel)
            return known

    def _ask(self, ref: Reference, mode: str, cancel: CancelToken) -> tuple[Descriptor, str]:
        stored = self._store.images.get(str(ref)) if mode != "pull" else None
        if stored is not None and mode == "local":
            return stored.descriptor, ""
        try:
            return self._registry.scoped(cancel=cancel).resolve(ref), ref.repository
        except RegistryError as exc:
            if stored is None:
                raise
            if self._warn is not None:
                self._warn(f"{ref}: using the image of that name in the store: {exc.summary}")
            return stored.descriptor, ""


class ImageFinder(NamedTuple):
    """One search: from the top descriptor to a platform's manifest and config."""

    store: Store
    registry: DocumentSource
    once: OncePerKey
    ref: Reference
    repository: str
    lease: Lease
    cancel: CancelToken

    def find(self, top: Descriptor, platform: Platform) -> ResolvedImage:
        """Find the manifest for ``platform`` below ``top``."""
        descriptor = top
        for _ in range(_MAX_DEPTH):
            where = f"{self.ref.repository}@{descriptor.digest}"
            document = parse_manifest(self._document(descriptor), descriptor.media_type, where)
            if isinstance(document, Manifest):
                return self._image(top.digest, document, where)
            descriptor = self._choose(document, platform)
        summary = f"{self.ref}: its index nests more than {_MAX_DEPTH} levels deep"
        raise LayerError(summary)

    def _choose(self, index: Index, platform: Platform) -> Descriptor:
        chosen = select_platform(index, platform)
        if chosen is None:
            chosen = self._without_platform(index, platform)
        if chosen is None:
            available = tuple(
                dict.fromkeys(
                    str(d.platform.normalised())
                    for d in index.manifests
                    if d.platform is not None and d.platform.os != "unknown"
                )
            )
            summary = f"{self.ref} has no image for {platform}"
            raise PlatformNotFound(
                summary,
                host=self.ref.domain,
                platform=str(platform),
                available=available,
                hint=f"it has: {', '.join(available) or 'no platform at all'}",
            )
        return chosen

    def _without_platform(self, index: Index, platform: Platform) -> Descriptor | None:
        """Look into manifests whose index entry names no platform: their config does."""
        for entry in index.manifests:
            if entry.platform is not None or "vnd.docker.reference.type" in entry.annotations:
                continue
            where = f"{self.ref.repository}@{entry.digest}"
            document = parse_manifest(self._document(entry), entry.media_type, where)
            if not isinstance(document, Manifest) or not _is_image(document):
                continue
            config = ImageConfig.from_json(self._document(document.config, blob=True), f"{where}: config")
            listed = Descriptor(entry.media_type, entry.digest, entry.size, platform=config.platform)
            if select_platform(Index(b"", index.media_type, (listed,)), platform) is not None:
                return entry
        return None

    def _image(self, digest: Digest, manifest: Manifest, where: str) -> ResolvedImage:
        if not _is_image(manifest):
            summary = (
                f"{where} is not a container image: its config is {manifest.config.media_type or 'missing'!r}"
            )
            raise LayerError(summary, hint="the reference names another kind of artifact")
        raw = self._document(manifest.config, blob=True)
        config = ImageConfig.from_json(raw, f"{where}: config")
        diff_ids = tuple(DiffId(parse_digest(text)) for text in config.diff_ids)
        if len(diff_ids) != len(manifest.layers):
            summary = f"{where}: {len(manifest.layers)} layers, but its config lists {len(diff_ids)} diff ids"
            raise LayerError(summary, hint="the image is malformed: push it anew")
        return ResolvedImage(str(self.ref), digest, manifest, raw, diff_ids, self.repository)

    def _document(self, descriptor: Descriptor, *, blob: bool = False) -> bytes:
        """Return a manifest, or with ``blob`` a config, from the store or, once, from the registry."""
        with self.once.holding(descriptor.digest, self.cancel):
            raw = self._stored(descriptor.digest)
            if raw is None:
                raw = self._fetch(descriptor, blob=blob)
                self._keep(raw, descriptor)
            return raw

    def _stored(self, digest: Digest) -> bytes | None:
        content = self.store.content
        if not content.has(digest, self.lease):
            return None
        try:
            return content.read(digest)
        except (DigestMismatch, StoreError):
            content.forget(digest)  # missing or damaged: what is fetched replaces it
            return None

    def _fetch(self, descriptor: Descriptor, *, blob: bool) -> bytes:
        if not self.repository:
            summary = f"{self.ref}: the store has its name, but not its part {descriptor.digest}"
            raise StoreError(summary, hint="build that image again, or pull with `--pull`")
        registry = self.registry.scoped(cancel=self.cancel)
        pinned = self.ref.with_digest(descriptor.digest)
        if blob:
            return registry.fetch_blob(pinned, descriptor)
        try:
            return registry.fetch_manifest(pinned)[1]
        except NotFoundError as exc:
            exc.hint = exc.hint or "the index names a manifest that the registry does not have: push it anew"
            raise

    def _keep(self, raw: bytes, descriptor: Descriptor) -> None:
        digest = descriptor.digest if not descriptor.digest.startswith("sha256:") else sha256_digest(raw)
        exact = Descriptor(descriptor.media_type, digest, len(raw))
        with self.store.content.writer(self.lease) as writer:
            writer.write(raw)
            writer.commit(exact)


def _is_image(manifest: Manifest) -> bool:
    return all(is_layer(layer.media_type) for layer in manifest.layers) and manifest.config.size > 2


def has_bytes(store: Store, layer_id: LayerId, lease: Lease) -> bool:
    """Return whether a layer's content is here, unpacked or as a blob."""
    if store.layers.directory(layer_id) is not None:
        return True
    return any(store.content.has(blob.descriptor.digest, lease) for blob in store.layers.blobs(layer_id))
