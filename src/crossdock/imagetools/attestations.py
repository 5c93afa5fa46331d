"""Attestations of images in registries: provenance and bills of materials, by platform.

Spec: moby/buildkit ``docs/attestations/attestation-storage.md``; docker/buildx ``util/imagetools/loader.go`` for the shapes.
"""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING, Any

from crossdock.errors import LayerError
from crossdock.image.manifest import Index, parse_manifest
from crossdock.image.platform import Platform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from crossdock.image.descriptor import Descriptor
    from crossdock.image.manifest import Manifest
    from crossdock.imagetools.sources import Source
    from crossdock.registry import RegistryClient

__all__ = ["image_provenance", "image_sboms"]

#: the first is that of early versions
_REFERENCES = ("com.docker.reference.digest", "vnd.docker.reference.digest")
_PREDICATE = "in-toto.io/predicate-type"
_STATEMENT = "application/vnd.in-toto+json"
_ENVELOPE = re.compile(r"application/vnd\.in-toto\..*\+dsse\Z")
_PROVENANCE = "https://slsa.dev/provenance/"
_SPDX = "https://spdx.dev/Document"
_MAX_BYTES = 64 << 20


def image_provenance(client: RegistryClient, source: Source) -> dict[str, dict[str, Any]]:
    """Return ``{"SLSA": predicate}`` of every image by platform; an empty object for those without provenance.

    Raises: RegistryError and its kin, LayerError.
    """

    def shape(predicates: list[Any]) -> dict[str, Any]:
        return {"SLSA": predicates[0]} if predicates else {}

    return _by_platform(client, source, lambda kind: kind.startswith(_PROVENANCE), shape)


def image_sboms(client: RegistryClient, source: Source) -> dict[str, dict[str, Any]]:
    """Return ``{"SPDX": document, "AdditionalSPDXs": […]}`` of every image by platform.

    Raises: RegistryError and its kin, LayerError.
    """

    def shape(predicates: list[Any]) -> dict[str, Any]:
        if not predicates:
            return {}
        more = {"AdditionalSPDXs": predicates[1:]} if len(predicates) > 1 else {}
        return {"SPDX": predicates[0], **more}

    return _by_platform(client, source, lambda kind: kind == _SPDX, shape)


def _by_platform(
    client: RegistryClient,
    source: Source,
    wanted: Callable[[str], bool],
    shape: Callable[[list[Any]], dict[str, Any]],
) -> dict[str, dict[str, Any]]:
    parsed = source.parsed()
    if not isinstance(parsed, Index):
        return {_platform(client, source, parsed): shape([])}
    about: dict[str, list[Descriptor]] = {}
    images: dict[str, str] = {}
    for entry in parsed.manifests:
        target = next((entry.annotations[key] for key in _REFERENCES if key in entry.annotations), None)
        if target is not None:
            about.setdefault(target, []).append(entry)
        else:
            name = str(entry.platform) if entry.platform is not None else _of_entry(client, source, entry)
            images[name] = entry.digest
    return {
        name: shape(
            [p for entry in about.get(digest, ()) for p in _predicates(client, source, entry, wanted)]
        )
        for name, digest in images.items()
    }


def _of_entry(client: RegistryClient, source: Source, entry: Descriptor) -> str:
    manifest = _manifest(client, source, entry)
    return "unknown" if isinstance(manifest, Index) else _platform(client, source, manifest)


def _platform(client: RegistryClient, source: Source, manifest: Manifest) -> str:
    return str(Platform.from_json(json.loads(client.fetch_blob(source.ref, manifest.config))))


def _manifest(client: RegistryClient, source: Source, entry: Descriptor) -> Manifest | Index:
    ref = source.ref.with_digest(entry.digest)
    _, raw = client.fetch_manifest(ref)
    return parse_manifest(raw, entry.media_type, str(ref))


def _predicates(
    client: RegistryClient, source: Source, entry: Descriptor, wanted: Callable[[str], bool]
) -> Iterator[Any]:
    manifest = _manifest(client, source, entry)
    if isinstance(manifest, Index):
        return
    for layer in manifest.layers:
        envelope = _ENVELOPE.match(layer.media_type) is not None
        if (layer.media_type == _STATEMENT or envelope) and wanted(layer.annotations.get(_PREDICATE, "")):
            raw = client.fetch_blob(source.ref, layer, limit=_MAX_BYTES)
            yield _predicate(raw, layer.digest, envelope=envelope)


def _predicate(raw: bytes, name: str, *, envelope: bool) -> Any:
    try:
        if envelope:
            raw = base64.b64decode(json.loads(raw)["payload"])
        return json.loads(raw)["predicate"]
    except (ValueError, KeyError, TypeError) as exc:
        summary = f"attestation {name} is malformed: {exc}"
        raise LayerError(summary) from exc
