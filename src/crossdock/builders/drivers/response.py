"""What a daemon answers to a build, as callers see it: metadata, the index, layouts on disk, provenance.

Spec: features "Metadata-file / exporter response keys"; docker/buildx ``build/result.go``, ``build/provenance.go``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from crossdock.builders.result import BuiltImage, BuiltIndex
from crossdock.errors import ExportError
from crossdock.image.config import ImageConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from crossdock.buildkit.client import Client
    from crossdock.buildkit.gateway import GatewayResult

__all__ = ["built_images", "built_index", "decode_metadata", "layout_tags", "provenance", "write_index"]

_REF_NAME = "org.opencontainers.image.ref.name"
_PREDICATE = "in-toto.io/predicate-type"


def decode_metadata(response: dict[str, str]) -> dict[str, Any]:
    """Decode values that BuildKit sends as JSON, plain or in base64."""
    out: dict[str, Any] = dict(response)
    if text := response.get("containerimage.descriptor"):
        out["containerimage.descriptor"] = _decode(text)
    if text := response.get("cache.manifest"):
        out["cache.manifest"] = json.loads(text)
    return out


def _decode(text: str) -> Any:
    import base64

    return json.loads(base64.b64decode(text))


def built_index(metadata: Mapping[str, Any]) -> BuiltIndex | None:
    """Return the index that was made; ``None`` when it was a manifest, or no image at all."""
    descriptor = metadata.get("containerimage.descriptor")
    if not descriptor or not _is_index(descriptor):
        return None
    media_type = str(descriptor.get("mediaType", ""))
    return BuiltIndex(digest=str(descriptor["digest"]), media_type=media_type, size=int(descriptor["size"]))


def _is_index(descriptor: Mapping[str, Any]) -> bool:
    media_type = str(descriptor.get("mediaType", ""))
    return "index" in media_type or "manifest.list" in media_type


def built_images(
    client: Client, result: GatewayResult | None, metadata: Mapping[str, Any]
) -> dict[str, BuiltImage]:
    """Return the images of a build by platform, with what its frontend said of them and the daemon of their digests.

    Digests inside an index are told while the daemon has it: not of one that went into an archive.
    """
    configs = _configs(result.metadata) if result is not None else {}
    if not configs:
        return {}
    lone = str(metadata.get("containerimage.digest", ""))
    if built_index(metadata) is None:
        digests = dict.fromkeys(configs, lone)
    else:
        digests = _manifests(client, metadata["containerimage.descriptor"])
    image_id = str(metadata.get("containerimage.config.digest", "")) if len(configs) == 1 else ""
    return {
        name: BuiltImage(
            platform=config.platform, config=config, digest=digests.get(name, ""), config_digest=image_id
        )
        for name, config in configs.items()
    }


def _configs(metadata: Mapping[str, bytes]) -> dict[str, ImageConfig]:
    key = "containerimage.config"
    found = [
        ImageConfig.from_json(raw, "the frontend's answer")
        for name, raw in metadata.items()
        if name == key or name.startswith(f"{key}/")
    ]
    return {str(config.platform.normalised()): config for config in found}


def _manifests(client: Client, descriptor: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests of an index's manifests by platform; none when the daemon does not have it."""
    from crossdock.buildkit.history import has_blob, read_blob
    from crossdock.image import Descriptor, Index, parse_manifest

    top = Descriptor.from_json(descriptor, "the daemon's answer")
    if not has_blob(client, top):
        return {}
    raw = b"".join(read_blob(client, top))
    index = parse_manifest(raw, top.media_type, "the build's index")
    entries = index.manifests if isinstance(index, Index) else ()
    return {str(e.platform.normalised()): e.digest for e in entries if e.platform is not None}


def write_index(root: Path, descriptor: Mapping[str, Any], tags: Sequence[str]) -> None:
    """Add what was written to the layout's ``index.json``, replacing entries of the same name.

    Raises: ExportError.
    """
    path = root / "index.json"
    try:
        index = json.loads(path.read_bytes())
    except FileNotFoundError:
        index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}
    except (OSError, ValueError) as exc:
        summary = f"cannot read {path}: {exc}"
        raise ExportError(summary, hint="name another directory") from exc
    kept = [m for m in index["manifests"] if (m.get("annotations") or {}).get(_REF_NAME) not in tags]
    for tag in tags:
        annotations = {**descriptor.get("annotations", {}), **({_REF_NAME: tag} if tag else {})}
        kept.append({**descriptor, **({"annotations": annotations} if annotations else {})})
    index["manifests"] = kept
    temporary = path.with_name(".index.json.new")
    try:
        temporary.write_text(json.dumps(index))
        temporary.replace(path)
        (root / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    except OSError as exc:
        summary = f"cannot write {path}: {exc.strerror}"
        raise ExportError(summary) from exc


def layout_tags(tags: Sequence[str]) -> list[str]:
    """Return the names that an image's entries in a layout get: its tags, or one without a name."""
    return [t.rpartition(":")[2] if ":" in t.rpartition("/")[2] else "latest" for t in tags] or [""]


def provenance(client: Client, ref: str, mode: str) -> dict[str, Any]:
    """Return ``buildx.build.provenance`` entries of a finished build, which the daemon's history keeps.

    ``mode`` is ``min`` (how it was built is left out) or ``max``. Empty where the daemon has no history.
    """
    from crossdock.buildkit.history import history, read_blob
    from crossdock.builds.attest.provenance import metadata_predicate
    from crossdock.errors import RemoteError

    try:
        records = history(client, ref=ref)
    except RemoteError as exc:
        if exc.grpc_code == "UNIMPLEMENTED":
            return {}
        raise
    found: dict[str, Any] = {}
    for record in records:
        for platform, blobs in record.attestations.items():
            for blob in blobs:
                if not blob.annotations.get(_PREDICATE, "").startswith("https://slsa.dev/provenance/"):
                    continue
                predicate = json.loads(b"".join(read_blob(client, blob)))
                key = f"buildx.build.provenance/{platform}" if platform else "buildx.build.provenance"
                found[key] = metadata_predicate(predicate, blob.annotations[_PREDICATE], mode)
    return found
