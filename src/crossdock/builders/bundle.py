"""Build records as ``.dockerbuild`` bundles: a gzipped tar of an OCI layout, one manifest for each record.

The config of a manifest is the record, its layers are the trace, the log, attestations and results.

Spec: docker/buildx ``util/desktop/bundle/export.go``.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from typing import TYPE_CHECKING, Any, BinaryIO

from crossdock.buildkit.history import finalize_record, read_blob
from crossdock.errors import RemoteError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from crossdock.builders.records import FoundRecord
    from crossdock.buildkit.client import Client
    from crossdock.image import Descriptor

__all__ = ["write_bundle"]

_RECORD = "application/vnd.buildkit.historyrecord.v0"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"
_ORIGINAL_TYPE = "vnd.export-build.descriptor.mediatype"


def write_bundle(records: Iterable[FoundRecord], out: BinaryIO, *, finalize: bool) -> None:
    """Write the records; what a daemon has dropped meanwhile (results, after a prune) is left out.

    Raises: BuilderError, RemoteError when a daemon fails; OSError of ``out``.
    """
    blobs: dict[str, bytes] = {}
    manifests = []
    for found in records:
        with found.client() as client:
            if finalize:
                finalize_record(client, found.record.ref)
            manifests.append(_manifest(client, found, blobs))
    index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": manifests}
    with (
        gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for folder in ("blobs/", "blobs/sha256/"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for digest, data in sorted(blobs.items()):
            _add(tar, f"blobs/sha256/{digest.removeprefix('sha256:')}", data, 0o444)
        _add(tar, "index.json", json.dumps(index, separators=(",", ":")).encode(), 0o644)
        _add(tar, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}', 0o444)


def _add(tar: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    tar.addfile(entry, io.BytesIO(data))


def _manifest(client: Client, found: FoundRecord, blobs: dict[str, bytes]) -> dict[str, Any]:
    record = found.record
    layers = []
    for blob in (record.trace, record.logs):
        layers += _layer(client, blob, blobs) if blob is not None else []
    for group in record.attestations.values():
        for blob in group:
            layers += _layer(client, blob, blobs)
    for results in record.results.values():
        for blob in results:
            layers += _layer(client, blob, blobs, as_json=True)
    local = found.local
    config = {
        **record.raw,
        "localState": {
            "Target": "default",
            "LocalPath": local.context,
            "DockerfilePath": local.dockerfile,
        },
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": _put(_json(config), _RECORD, blobs),
        "layers": layers,
    }
    return _put(_json(manifest), _MANIFEST, blobs)


def _layer(
    client: Client, blob: Descriptor, blobs: dict[str, bytes], *, as_json: bool = False
) -> list[dict[str, Any]]:
    try:
        data = b"".join(read_blob(client, blob))
    except RemoteError as exc:
        if exc.grpc_code == "NOT_FOUND":
            return []
        raise
    # Results are shown, not run: a bundle is no image.
    annotations = {_ORIGINAL_TYPE: blob.media_type} if as_json else dict(blob.annotations)
    return [_put(data, "application/json" if as_json else blob.media_type, blobs, annotations)]


def _put(
    data: bytes, media_type: str, blobs: dict[str, bytes], annotations: dict[str, str] | None = None
) -> dict[str, Any]:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    blobs[digest] = data
    out: dict[str, Any] = {"mediaType": media_type, "digest": digest, "size": len(data)}
    return {**out, "annotations": annotations} if annotations else out


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode()
