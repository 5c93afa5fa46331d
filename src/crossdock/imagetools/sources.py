"""Images in registries, read: manifests, indexes, and the configs of their platforms."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from crossdock.image.manifest import Index, parse_manifest
from crossdock.image.platform import Platform
from crossdock.image.reference import parse_reference
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from crossdock.image.descriptor import Descriptor
    from crossdock.image.manifest import Manifest
    from crossdock.image.reference import Reference
    from crossdock.registry import RegistryClient

__all__ = ["Source", "image_configs", "load"]

_ATTESTATION = "attestation-manifest"
_REFERENCE_TYPE = "vnd.docker.reference.type"


class Source(NamedTuple):
    """A manifest or index, and where it lies."""

    ref: Reference
    descriptor: Descriptor
    raw: bytes

    def parsed(self) -> Manifest | Index:
        """Parse it; Raises: LayerError."""
        return parse_manifest(self.raw, self.descriptor.media_type, str(self.ref))


def load(client: RegistryClient, text: str) -> Source:
    """Fetch what a reference names.

    Raises: UsageError, RegistryError and its kin, LayerError.
    """
    ref = parse_reference(text).with_default_tag()
    descriptor, raw = client.fetch_manifest(ref)
    return Source(ref, descriptor, raw)


def image_configs(client: RegistryClient, source: Source) -> dict[str, dict[str, Any]]:
    """Return the config of every image by platform; attestations are no images.

    Raises: RegistryError and its kin, LayerError.
    """
    parsed = source.parsed()
    if not isinstance(parsed, Index):
        config = _config(client, source.ref, parsed)
        return {str(Platform.from_json(config)): config}
    found: dict[str, dict[str, Any]] = {}
    for entry in parsed.manifests:
        if entry.annotations.get(_REFERENCE_TYPE) == _ATTESTATION:
            continue
        ref = source.ref.with_digest(entry.digest)
        _, raw = client.fetch_manifest(ref)
        manifest = parse_manifest(raw, entry.media_type, str(ref))
        if isinstance(manifest, Index):
            continue
        config = _config(client, ref, manifest)
        found[str(entry.platform or Platform.from_json(config))] = config
    return found


def _config(client: RegistryClient, ref: Reference, manifest: Manifest) -> dict[str, Any]:
    data = json.loads(client.fetch_blob(ref, manifest.config))
    return data if isinstance(data, dict) else {}
