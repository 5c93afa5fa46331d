"""Make a small multi-platform base image from Debian's busybox-static packages.

    python3 scripts/baseimage.py --layout DIR                    write an OCI image layout
    python3 scripts/baseimage.py --push 127.0.0.1:5000/base:1    push to a registry (plain HTTP, loopback)

Written without Crossdock on purpose: the tests need an image that another maker made. The bytes depend only on the
packages. Only the standard library.

Spec: OCI image-spec 1.1 (image-layout.md, manifest.md, image-index.md), distribution-spec 1.1 (push).
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import http.client
import io
import json
import subprocess
import sys
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import privateapt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: platform -> (Debian architecture, architecture and variant as OCI names them)
PLATFORMS: Mapping[str, tuple[str, dict[str, str]]] = {
    "linux/amd64": ("amd64", {"architecture": "amd64"}),
    "linux/arm64": ("arm64", {"architecture": "arm64", "variant": "v8"}),
    "linux/arm/v7": ("armhf", {"architecture": "arm", "variant": "v7"}),
    "linux/386": ("i386", {"architecture": "386"}),
    "linux/ppc64le": ("ppc64el", {"architecture": "ppc64le"}),
    "linux/s390x": ("s390x", {"architecture": "s390x"}),
}
SUITE = "bookworm"
#: every file's time: that of the release, so that the same packages give the same digests
MTIME = 1686355200

_OCI = "application/vnd.oci.image"
_DOCKER = "application/vnd.docker"
MEDIA_TYPES = {
    "oci": {
        "index": f"{_OCI}.index.v1+json",
        "manifest": f"{_OCI}.manifest.v1+json",
        "config": f"{_OCI}.config.v1+json",
        "layer": f"{_OCI}.layer.v1.tar+gzip",
    },
    "docker": {
        "index": f"{_DOCKER}.distribution.manifest.list.v2+json",
        "manifest": f"{_DOCKER}.distribution.manifest.v2+json",
        "config": f"{_DOCKER}.container.image.v1+json",
        "layer": f"{_DOCKER}.image.rootfs.diff.tar.gzip",
    },
}


@dataclass(kw_only=True)
class Image:
    """A multi-platform image in memory."""

    index: bytes = b""
    media_type: str = ""
    #: manifests by digest
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    #: configs and layers by digest
    blobs: dict[str, bytes] = field(default_factory=dict)
    #: platform -> manifest digest
    platforms: dict[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Digest of the index."""
        return digest_of(self.index)


def digest_of(data: bytes) -> str:
    """The sha256 digest of ``data`` in OCI form."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def busybox_packages(architectures: Sequence[str]) -> dict[str, Path]:
    """The unpacked busybox binary of each Debian architecture; fetched once, verified by apt."""
    binaries = {}
    for arch in architectures:
        folder = privateapt.fetch_unpacked(
            f"busybox-{SUITE}-{arch}", suite=SUITE, packages=["busybox-static"], architecture=arch
        )
        binaries[arch] = next(p for p in (folder / "bin/busybox", folder / "usr/bin/busybox") if p.exists())
    return binaries


def busybox_image(platforms: Sequence[str] = tuple(PLATFORMS), *, media: str = "oci") -> Image:
    """An image with one layer per platform: busybox, its applets, /etc/passwd, /etc/group, /tmp.

    Raises: privateapt.AptError when the packages cannot be had.
    """
    native = privateapt.host_architecture()
    architectures = [PLATFORMS[platform][0] for platform in platforms]
    binaries = busybox_packages(list(dict.fromkeys([*architectures, native])))
    listing = subprocess.run(
        [str(binaries[native]), "--list-full"], capture_output=True, text=True, check=True
    )
    applets = sorted(set(listing.stdout.split()) - {"bin/busybox"})
    layers = {
        platform: layer_tar(binaries[PLATFORMS[platform][0]].read_bytes(), applets) for platform in platforms
    }
    return assemble(layers, media=media)


def assemble(layers: Mapping[str, bytes], *, media: str = "oci", env: Sequence[str] = ()) -> Image:
    """An image of one (uncompressed tar) layer per platform."""
    types = MEDIA_TYPES[media]
    image = Image(media_type=types["index"])
    manifests = []
    for platform, tar in layers.items():
        names = {"os": "linux", **PLATFORMS[platform][1]}
        layer = gzip.compress(tar, 6, mtime=0)
        config = _json(
            {
                "created": "2023-06-10T00:00:00Z",
                **names,
                "config": {
                    "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", *env],
                    "Cmd": ["sh"],
                },
                "rootfs": {"type": "layers", "diff_ids": [digest_of(tar)]},
                "history": [{"created": "2023-06-10T00:00:00Z", "created_by": "scripts/baseimage.py"}],
            }
        )
        for blob in (layer, config):
            image.blobs[digest_of(blob)] = blob
        manifest = _json(
            {
                "schemaVersion": 2,
                "mediaType": types["manifest"],
                "config": _descriptor(types["config"], config),
                "layers": [_descriptor(types["layer"], layer)],
            }
        )
        image.manifests[digest_of(manifest)] = (types["manifest"], manifest)
        image.platforms[platform] = digest_of(manifest)
        manifests.append({**_descriptor(types["manifest"], manifest), "platform": names})
    image.index = _json({"schemaVersion": 2, "mediaType": types["index"], "manifests": manifests})
    return image


def layer_tar(busybox: bytes, applets: Sequence[str]) -> bytes:
    """The root file system as a tar stream."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        modes = {"root": 0o700, "tmp": 0o1777, "var/tmp": 0o1777}
        for name in [
            "bin",
            "dev",
            "etc",
            "home",
            "proc",
            "root",
            "sbin",
            "sys",
            "tmp",
            "usr",
            "usr/bin",
            "usr/sbin",
            "usr/local",
            "usr/local/bin",
            "var",
            "var/tmp",
        ]:
            _add(tar, name, kind=tarfile.DIRTYPE, mode=modes.get(name, 0o755))
        _add(tar, "bin/busybox", busybox, mode=0o755)
        for applet in applets:
            _add(tar, applet, kind=tarfile.SYMTYPE, mode=0o777, link="/bin/busybox")
        _add(tar, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
        _add(tar, "etc/group", b"root:x:0:\ntty:x:5:\nnogroup:x:65534:\n")
    return out.getvalue()


def _add(
    tar: tarfile.TarFile,
    name: str,
    data: bytes = b"",
    *,
    kind: bytes = tarfile.REGTYPE,
    mode: int = 0o644,
    link: str = "",
) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname, info.mtime, info.size = kind, mode, link, MTIME, len(data)
    info.uname = info.gname = "root"
    tar.addfile(info, io.BytesIO(data))


def write_layout(image: Image, dest: Path, *, tag: str = "latest") -> None:
    """Write an OCI image layout into ``dest``."""
    blobs = dest / "blobs/sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    everything = {
        **image.blobs,
        **{d: raw for d, (_, raw) in image.manifests.items()},
        image.digest: image.index,
    }
    for digest, data in everything.items():
        (blobs / digest.removeprefix("sha256:")).write_bytes(data)
    entry = {
        **_descriptor(image.media_type, image.index),
        "annotations": {"org.opencontainers.image.ref.name": tag},
    }
    (dest / "index.json").write_bytes(
        _json({"schemaVersion": 2, "mediaType": MEDIA_TYPES["oci"]["index"], "manifests": [entry]})
    )
    (dest / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))


def push(
    image: Image, host: str, repository: str, tag: str, *, headers: Mapping[str, str] | None = None
) -> str:
    """Push over plain HTTP to a registry at ``host`` (host:port); returns the digest of the index.

    Raises: OSError when it is unreachable, ConnectionError when it refuses.
    """
    connection = http.client.HTTPConnection(host, timeout=60)
    try:
        for digest, data in image.blobs.items():
            _push_blob(connection, repository, digest, data, headers or {})
        entries = [(digest, *entry) for digest, entry in image.manifests.items()]
        for name, media_type, raw in [*entries, (tag, image.media_type, image.index)]:
            _request(
                connection,
                "PUT",
                f"/v2/{repository}/manifests/{name}",
                raw,
                {**(headers or {}), "Content-Type": media_type},
            )
    finally:
        connection.close()
    return image.digest


def read_manifest(host: str, repository: str, name: str) -> bytes:
    """The manifest or index ``name`` (tag or digest) as the registry at ``host`` has it.

    Raises: ConnectionError when it is refused.
    """
    accept = ", ".join(types[kind] for types in MEDIA_TYPES.values() for kind in ("index", "manifest"))
    connection = http.client.HTTPConnection(host, timeout=60)
    try:
        connection.request("GET", f"/v2/{repository}/manifests/{name}", headers={"Accept": accept})
        answer = connection.getresponse()
        data = answer.read()
    finally:
        connection.close()
    if answer.status != 200:
        msg = f"{repository}:{name} at {host}: HTTP {answer.status}: {data[:300]!r}"
        raise ConnectionError(msg)
    return data


def _push_blob(
    connection: http.client.HTTPConnection,
    repository: str,
    digest: str,
    data: bytes,
    headers: Mapping[str, str],
) -> None:
    started = _request(connection, "POST", f"/v2/{repository}/blobs/uploads/", b"", headers)
    separator = "&" if "?" in started else "?"
    target = started.split("://", 1)[-1]
    path = target[target.index("/") :]
    _request(
        connection,
        "PUT",
        f"{path}{separator}digest={digest}",
        data,
        {**headers, "Content-Type": "application/octet-stream"},
    )


def _request(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes, headers: Mapping[str, str]
) -> str:
    connection.request(method, path, body, dict(headers))
    answer = connection.getresponse()
    text = answer.read()
    if answer.status not in {201, 202}:
        msg = f"{method} {path}: HTTP {answer.status}: {text[:300]!r}"
        raise ConnectionError(msg)
    return answer.headers.get("Location", "")


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def main() -> int:
    """Command line; prints the digest of the index."""
    parser = argparse.ArgumentParser(description="Make the multi-platform busybox base image.")
    parser.add_argument(
        "--platform", default=",".join(PLATFORMS), help="comma-separated; default: %(default)s"
    )
    parser.add_argument("--media", choices=sorted(MEDIA_TYPES), default="oci")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--layout", type=Path, metavar="DIR")
    where.add_argument("--push", metavar="HOST:PORT/REPOSITORY:TAG")
    options = parser.parse_args()
    try:
        image = busybox_image(options.platform.split(","), media=options.media)
        if options.layout:
            write_layout(image, options.layout)
        else:
            host, _, rest = options.push.partition("/")
            repository, _, tag = rest.partition(":")
            push(image, host, repository, tag or "latest")
    except (privateapt.AptError, OSError) as error:
        print(f"baseimage: {error}", file=sys.stderr)
        return 1
    print(image.digest)
    return 0


if __name__ == "__main__":
    sys.exit(main())
