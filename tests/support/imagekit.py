"""Tiny images, and a server that has them."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crossdock.image import Descriptor, make_index, make_manifest, parse_platform, sha256_digest
from crossdock.image.mediatypes import OCI_CONFIG, OCI_LAYER_GZIP
from support.scripted import Reply, ScriptedServer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from crossdock.image import Index, Manifest


def tar(files: Mapping[str, bytes]) -> bytes:
    """An archive of regular files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


@dataclass(frozen=True)
class Layer:
    """A layer's archive and its blob."""

    archive: bytes
    blob: bytes
    media_type: str = OCI_LAYER_GZIP

    @property
    def diff_id(self) -> str:
        return sha256_digest(self.archive)

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(self.media_type, sha256_digest(self.blob), len(self.blob))


def layer(files: Mapping[str, bytes]) -> Layer:
    """A gzip layer of regular files."""
    archive = tar(files)
    return Layer(archive, gzip.compress(archive, 1, mtime=0))


def config(platform: str, diff_ids: Sequence[str]) -> bytes:
    """An image config."""
    data = {
        **parse_platform(platform).to_json(),
        "config": {"Env": [f"PLATFORM={platform}"]},
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        "history": [],
    }
    return json.dumps(data).encode()


@dataclass
class Shelf:
    """What one repository of a scripted server holds."""

    server: ScriptedServer
    name: str = "app"
    #: digest -> descriptor of images by platform
    images: dict[str, Manifest] = field(default_factory=dict)

    @property
    def repository(self) -> str:
        return f"{self.server.host}/{self.name}"

    def blob(self, data: bytes, *replies: Reply) -> None:
        digest = sha256_digest(data)
        self.server.on("GET", f"/v2/{self.name}/blobs/{digest}", *(replies or (Reply(200, data),)))

    def manifest(self, raw: bytes, media_type: str, tag: str = "") -> None:
        digest = sha256_digest(raw)
        reply = Reply(200, raw, {"content-type": media_type, "docker-content-digest": digest})
        for name in filter(None, (digest, tag)):
            for method in ("GET", "HEAD"):
                self.server.on(method, f"/v2/{self.name}/manifests/{name}", reply)

    def image(self, platform: str, layers: Sequence[Layer], *, raw_config: bytes | None = None) -> Manifest:
        """Put an image on the shelf, untagged."""
        raw = config(platform, [one.diff_id for one in layers]) if raw_config is None else raw_config
        self.blob(raw)
        for one in layers:
            self.blob(one.blob)
        manifest = make_manifest(
            Descriptor(OCI_CONFIG, sha256_digest(raw), len(raw)), [one.descriptor for one in layers], oci=True
        )
        self.manifest(manifest.raw, manifest.media_type)
        self.images[platform] = manifest
        return manifest

    def index(self, tag: str, entries: Sequence[Descriptor] = ()) -> Index:
        """Put an index of all images (and ``entries``) on the shelf."""
        listed = [
            Descriptor(m.media_type, m.descriptor.digest, len(m.raw), platform=parse_platform(p))
            for p, m in self.images.items()
        ]
        index = make_index([*listed, *entries], oci=True)
        self.manifest(index.raw, index.media_type, tag)
        return index
