"""Manifests and indexes: parsed values beside the raw bytes they came from.

The raw bytes are what is hashed and pushed; a manifest that was read is never re-serialised.

Spec: image-spec 1.1, manifest.md, image-index.md; Docker schema 2.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from crossdock.errors import LayerError
from crossdock.image import gojson, mediatypes
from crossdock.image.descriptor import Descriptor
from crossdock.image.digest import sha256_digest
from crossdock.image.platform import match_order
from crossdock.record import Record, field

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from crossdock.image.platform import Platform

__all__ = [
    "Index",
    "Manifest",
    "dump_json",
    "make_index",
    "make_manifest",
    "parse_manifest",
    "select_platform",
]


class Manifest(Record, kw_only=False):
    """One platform's image: config and layers, bottom first."""

    raw: bytes = field(repr=False)
    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def descriptor(self) -> Descriptor:
        """Descriptor of the manifest itself."""
        return Descriptor(self.media_type, sha256_digest(self.raw), len(self.raw))


class Index(Record, kw_only=False):
    """Manifests by platform."""

    raw: bytes = field(repr=False)
    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def descriptor(self) -> Descriptor:
        """Descriptor of the index itself."""
        return Descriptor(self.media_type, sha256_digest(self.raw), len(self.raw))


def dump_json(value: object) -> bytes:
    """Serialise as BuildKit writes manifests: two-space indent, no trailing newline."""
    return gojson.dumps(value, indent=2)


def _loads(raw: bytes, where: str) -> dict[str, Any]:
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        summary = f"{where}: not valid JSON: {exc}"
        raise LayerError(summary) from exc
    if not isinstance(data, dict):
        summary = f"{where}: not a JSON object"
        raise LayerError(summary)
    return data


def _descriptors(data: dict[str, Any], name: str, where: str) -> tuple[Descriptor, ...]:
    items = data.get(name)
    if items is None:
        return ()
    if not isinstance(items, list):
        summary = f"{where}: {name}: not a list"
        raise LayerError(summary)
    return tuple(Descriptor.from_json(item, f"{where}: {name}[{i}]") for i, item in enumerate(items))


def _annotations(data: dict[str, Any], where: str) -> dict[str, str]:
    items = data.get("annotations")
    if items is None:
        return {}
    if not isinstance(items, dict):
        summary = f"{where}: annotations: not an object"
        raise LayerError(summary)
    return {str(name): str(value) for name, value in items.items()}


def parse_manifest(raw: bytes, media_type: str, where: str) -> Manifest | Index:
    """Parse a manifest or index; ``media_type`` is the server's, used when the document has none.

    Raises: LayerError naming ``where`` when it is neither, is schema 1, or a part is malformed.
    """
    data = _loads(raw, where)
    own_type = data.get("mediaType")
    kind = own_type if isinstance(own_type, str) and own_type else media_type.partition(";")[0].strip()
    if data.get("schemaVersion") == 1 or "fsLayers" in data:
        summary = f"{where}: Docker schema 1 manifests are not accepted"
        raise LayerError(summary, hint="push the image again with a registry client made after 2016")
    annotations = _annotations(data, where)
    if kind in mediatypes.INDEX_TYPES or (kind not in mediatypes.MANIFEST_TYPES and "manifests" in data):
        entries = _descriptors(data, "manifests", where)
        return Index(
            raw, kind if kind in mediatypes.INDEX_TYPES else mediatypes.OCI_INDEX, entries, annotations
        )
    if kind in mediatypes.MANIFEST_TYPES or "config" in data:
        config = Descriptor.from_json(data.get("config"), f"{where}: config")
        layers = _descriptors(data, "layers", where)
        kind = kind if kind in mediatypes.MANIFEST_TYPES else mediatypes.OCI_MANIFEST
        return Manifest(raw, kind, config, layers, annotations)
    summary = f"{where}: neither an image manifest nor an index (media type {kind or 'missing'!r})"
    raise LayerError(summary)


def make_manifest(
    config: Descriptor,
    layers: Sequence[Descriptor],
    *,
    oci: bool,
    annotations: Mapping[str, str] | None = None,
) -> Manifest:
    """Build a manifest in BuildKit's field order."""
    media_type = mediatypes.OCI_MANIFEST if oci else mediatypes.DOCKER_MANIFEST
    data: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": config.to_json(),
        "layers": [d.to_json() for d in layers],
    }
    if annotations and oci:
        data["annotations"] = dict(sorted(annotations.items()))
    return Manifest(dump_json(data), media_type, config, tuple(layers), dict(annotations or {}))


def make_index(
    manifests: Sequence[Descriptor], *, oci: bool, annotations: Mapping[str, str] | None = None
) -> Index:
    """Build an index (or Docker manifest list) in BuildKit's field order."""
    media_type = mediatypes.OCI_INDEX if oci else mediatypes.DOCKER_INDEX
    data: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "manifests": [d.to_json() for d in manifests],
    }
    if annotations and oci:
        data["annotations"] = dict(sorted(annotations.items()))
    return Index(dump_json(data), media_type, tuple(manifests), dict(annotations or {}))


def select_platform(index: Index, wanted: Platform) -> Descriptor | None:
    """Return the entry that satisfies ``wanted`` best; attestation manifests never do."""
    candidates = [
        (d.platform.normalised(), d)
        for d in index.manifests
        if d.platform is not None and d.annotations.get("vnd.docker.reference.type") is None
    ]
    for accepted in match_order(wanted):
        for have, descriptor in candidates:
            if (have.os, have.architecture, have.variant) == (
                accepted.os,
                accepted.architecture,
                accepted.variant,
            ):
                return descriptor
    return None
