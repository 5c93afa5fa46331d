"""What a daemon answers to a build, as callers see it: metadata, the index, layouts on disk, provenance.

Spec: features "Metadata-file / exporter response keys"; docker/buildx ``build/result.go``, ``build/provenance.go``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from crossdock.builders.result import BuiltIndex
from crossdock.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from crossdock.buildkit.client import Client

__all__ = ["built_index", "decode_metadata", "layout_tags", "provenance", "write_index"]

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


def built_index(response: dict[str, str]) -> BuiltIndex | None:
    """Return the index that was made; ``None`` when it was a manifest, or no image at all."""
    text = response.get("containerimage.descriptor")
    if not text:
        return None
    descriptor = _decode(text)
    media_type = str(descriptor.get("mediaType", ""))
    if "index" not in media_type and "manifest.list" not in media_type:
        return None
    return BuiltIndex(digest=str(descriptor["digest"]), media_type=media_type, size=int(descriptor["size"]))


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
                statement = json.loads(b"".join(read_blob(client, blob)))
                key = f"buildx.build.provenance/{platform}" if platform else "buildx.build.provenance"
                found[key] = _short(statement) if mode == "min" else statement
    return found


def _short(document: Any) -> Any:
    """Leave out what ``mode=min`` does: the steps, and times."""
    if not isinstance(document, dict):
        return document
    if "predicate" in document:
        return {**document, "predicate": _short(document["predicate"])}
    return {k: v for k, v in document.items() if k not in ("buildConfig", "metadata", "runDetails")}
