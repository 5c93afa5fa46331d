"""Manifests of caches: what holds config and layers together in a registry or an OCI layout.

Either an image manifest whose config is the cache config, or (older) an index of layers and config.

Spec: moby/buildkit ``cache/remotecache/export.go``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.engine.remotecache import config as cacheconfig
from crossdock.errors import UsageError
from crossdock.image.descriptor import Descriptor
from crossdock.image.digest import sha256_digest
from crossdock.image.manifest import Index, Manifest, make_index, make_manifest
from crossdock.image.mediatypes import compression_of, is_layer, layer_type
from crossdock.layers.compression import parse_bool
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossdock.engine.remotecache.config import CacheConfig
    from crossdock.image.digest import Digest

__all__ = [
    "REF_NAME",
    "USUAL_TAG",
    "CacheDocuments",
    "ManifestStyle",
    "find_config",
    "make_documents",
    "tag_of",
]

#: annotation of an entry in a layout's index, and of a manifest
REF_NAME = "org.opencontainers.image.ref.name"
USUAL_TAG = "latest"


class ManifestStyle(NamedTuple):
    """Attributes ``image-manifest``, ``oci-mediatypes`` and ``tag``."""

    image: bool = True
    oci: bool = True
    #: what a layout knows the cache by; only one of its own is noted in the manifest, for who sees no index
    tag: str = ""

    @classmethod
    def from_attrs(cls, attrs: Mapping[str, str]) -> ManifestStyle:
        """Read the attributes. Raises: UsageError."""
        oci = parse_bool("oci-mediatypes", attrs.get("oci-mediatypes", "true"))
        image = parse_bool("image-manifest", attrs["image-manifest"]) if "image-manifest" in attrs else oci
        if image and not oci:
            summary = "a cache with image-manifest=true needs OCI media types"
            raise UsageError(summary, hint="leave out oci-mediatypes=false, or add image-manifest=false")
        return cls(image, oci, tag_of(attrs))


def tag_of(attrs: Mapping[str, str]) -> str:
    """Return a tag that is a cache's own; ``""`` for the usual one."""
    tag = attrs.get("tag", "")
    return "" if tag == USUAL_TAG else tag


class CacheDocuments(NamedTuple):
    """What is written besides layers."""

    config: Descriptor
    config_raw: bytes
    manifest: Descriptor
    manifest_raw: bytes


def make_documents(config: CacheConfig, style: ManifestStyle) -> CacheDocuments:
    """Make config and manifest of a cache; equal caches give equal bytes."""
    raw = cacheconfig.dump(config, annotated=False)
    described = Descriptor(cacheconfig.MEDIA_TYPE, sha256_digest(raw), len(raw))
    layers = [_typed(config.layers[blob], style) for blob in cacheconfig.describe_layers(config)]
    noted = {REF_NAME: style.tag} if style.tag else {}
    document: Manifest | Index
    if style.image:
        document = make_manifest(described, layers, oci=True, annotations=noted)
    else:
        document = make_index([*layers, described], oci=style.oci, annotations=noted)
    return CacheDocuments(described, raw, document.descriptor, document.raw)


def _typed(layer: Descriptor, style: ManifestStyle) -> Descriptor:
    media_type = layer_type(compression_of(layer.media_type), oci=style.oci)
    return Descriptor(media_type, layer.digest, layer.size, layer.annotations)


def find_config(
    document: Manifest | Index,
) -> tuple[Descriptor | None, dict[Digest, Descriptor]]:
    """Return the cache config of a manifest, ``None`` when it is not a cache's, and its layers."""
    if isinstance(document, Manifest):
        own = document.config if document.config.media_type == cacheconfig.MEDIA_TYPE else None
        entries = document.layers
    else:
        own = next((d for d in document.manifests if d.media_type == cacheconfig.MEDIA_TYPE), None)
        entries = document.manifests
    layers = {
        d.digest: d for d in entries if is_layer(d.media_type) and cacheconfig.UNCOMPRESSED in d.annotations
    }
    return own, layers
