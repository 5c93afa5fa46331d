"""Software bills of materials: a scanner image that looks at the result, run as a step of the build.

The scanner finds the result under ``$BUILDKIT_SCAN_SOURCE`` and other file systems in directories below
``$BUILDKIT_SCAN_SOURCE_EXTRAS``, and writes in-toto statements or SPDX documents into ``$BUILDKIT_SCAN_DESTINATION``.

Spec: moby/buildkit ``docs/attestations/sbom-protocol.md``, ``frontend/attestations/sbom``, ``exporter/attestation``.
"""

from __future__ import annotations

import json
import os
import posixpath
import stat
from typing import TYPE_CHECKING, Any

from crossdock.errors import SolveError
from crossdock.image import gojson
from crossdock.image.config import ImageConfig
from crossdock.image.digest import Digest
from crossdock.image.reference import parse_reference
from crossdock.llb.graph import Node, Output
from crossdock.llb.ops import ExecMeta, ExecOp, Mount, MountType, OpMetadata, SourceOp
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from crossdock.builds.attest.requests import SbomOptions
    from crossdock.builds.images import EngineImages
    from crossdock.engine.facade import FileInfo
    from crossdock.image.descriptor import Descriptor
    from crossdock.image.platform import Platform

__all__ = ["SPDX", "Document", "Scanner", "read_documents", "with_layers"]

SPDX = "https://spdx.dev/Document"
_CORE = "sbom"
_SOURCE = "/run/src"
_DESTINATION = "/run/out"
_MAX_BYTES = 40 << 20


class Scanner:
    """A scanner image, found once for all platforms. It runs on the build machine's platform, whatever it scans."""

    def __init__(self, options: SbomOptions, images: EngineImages, platform: Platform, *, mode: str) -> None:
        """Find the image. Raises: RegistryError and its kin; SolveError when it has nothing to run."""
        self._params = options.params
        self._platform = platform
        name = str(options.generator)
        found = images.resolve_image(
            name, platform=platform, mode=mode, log_name=f"resolve image config for docker-image://{name}"
        )
        self._name = found.ref
        ref = parse_reference(found.ref)
        self._ref = ref if ref.digest else ref.with_digest(Digest(found.digest))
        self._config = ImageConfig.from_json(found.config, name)
        if not (self._config.entrypoint or self._config.cmd):
            summary = f"scanner {name} does not have cmd"
            raise SolveError(summary, hint="give an image that follows BuildKit's SBOM scanner protocol")

    def step(
        self, name: str, core: Output | None, extras: Mapping[str, Output], *, ignore_cache: bool = False
    ) -> Output:
        """Return the step that scans the result of the platform ``name``: its output holds what the scanner writes."""
        image = Node(
            SourceOp(f"docker-image://{self._ref}", {}),
            platform=self._platform,
            metadata=OpMetadata(description={"llb.customname": f"[sbom] {self._name}"}),
        )
        inputs = [Output(image)]
        source = posixpath.join(_SOURCE, "core", _CORE)
        mounts = [Mount(dest="/", input=0), Mount(dest=_DESTINATION, input=-1, output=0)]
        scanned = {source: core}
        for extra in sorted(extras):
            scanned[posixpath.join(_SOURCE, "extras", f"{_CORE}-{extra}")] = extras[extra]
        for dest, output in scanned.items():
            number = -1
            if output is not None:
                number = len(inputs)
                inputs.append(output)
            mounts.append(Mount(dest=dest, input=number, readonly=True))
        mounts.append(Mount(dest="/tmp", mount_type=MountType.TMPFS, tmpfs_size=0))  # noqa: S108
        config = self._config
        env = [
            *config.env,
            f"BUILDKIT_SCAN_DESTINATION={_DESTINATION}/",
            f"BUILDKIT_SCAN_SOURCE={source}",
        ]
        if extras:
            env.append(f"BUILDKIT_SCAN_SOURCE_EXTRAS={_SOURCE}/extras/")
        env += [f"BUILDKIT_SCAN_{key}={self._params[key]}" for key in sorted(self._params)]
        meta = ExecMeta(
            args=(*(config.entrypoint or ()), *(config.cmd or ())),
            env=tuple(env),
            cwd=config.working_dir or "/",
        )
        shown = f"[{name}] generating sbom using {self._name}"
        metadata = OpMetadata(ignore_cache=ignore_cache, description={"llb.customname": shown})
        ordered = tuple(sorted(mounts, key=lambda mount: mount.dest))
        return Output(
            Node(ExecOp(meta=meta, mounts=ordered), inputs, platform=self._platform, metadata=metadata)
        )


class Document(NamedTuple):
    """One document that a scanner wrote."""

    #: name of its file
    name: str
    predicate: Any
    #: name and digest set, of statements that say what they are about
    subjects: tuple[tuple[str, dict[str, str]], ...] = ()

    @property
    def core(self) -> bool:
        """Whether it is about the result itself."""
        return self.name.partition(".")[0] == _CORE


def read_documents(entries: Sequence[FileInfo] | None, read: Callable[[str], bytes | None]) -> list[Document]:
    """Read what a scanner wrote, that about the result itself first.

    Raises: SolveError for what is no SPDX document, is too large, or is no file; also when there is nothing.
    """
    if not entries:
        summary = "the SBOM scanner wrote no document"
        raise SolveError(summary, hint="it must write NAME.spdx.json into $BUILDKIT_SCAN_DESTINATION")
    found = [_document(entry, read) for entry in entries]
    return sorted(found, key=lambda document: (not document.core, document.name))


def _document(entry: FileInfo, read: Callable[[str], bytes | None]) -> Document:
    if not stat.S_ISREG(entry.mode):
        summary = f"{entry.name} of the SBOM scanner is not a regular file"
        raise SolveError(summary)
    if entry.size > _MAX_BYTES:
        summary = f"{entry.name} of the SBOM scanner exceeds {_MAX_BYTES} bytes"
        raise SolveError(summary)
    try:
        data = json.loads(read(entry.name) or b"")
    except (ValueError, RecursionError) as exc:
        summary = f"{entry.name} of the SBOM scanner is not JSON: {exc}"
        raise SolveError(summary) from exc
    if isinstance(data, dict) and "predicateType" in data:
        if data["predicateType"] != SPDX:
            summary = f"bundle entry {data['predicateType']} does not match required predicate type {SPDX}"
            raise SolveError(summary)
        return Document(entry.name, data.get("predicate"), _subjects(data.get("subject"), entry.name))
    if isinstance(data, dict) and ("spdxVersion" in data or "SPDXID" in data):
        return Document(entry.name, data)
    summary = f"{entry.name} of the SBOM scanner is neither an SPDX document nor a statement about one"
    raise SolveError(summary)


def _subjects(data: Any, name: str) -> tuple[tuple[str, dict[str, str]], ...]:
    try:
        return tuple(
            (str(one.get("name") or "_"), {str(k): str(v) for k, v in one["digest"].items()})
            for one in data or ()
        )
    except (AttributeError, KeyError, TypeError) as exc:
        summary = f"{name} of the SBOM scanner has malformed subjects"
        raise SolveError(summary) from exc


def with_layers(predicate: Any, layers: Sequence[tuple[Path, Descriptor]], *, creator: str) -> bytes:
    """Return a document about an image's files, each of its files with the layer that it comes from.

    ``layers`` are directories, bottom first, and what the manifest has of them. Files that have a comment keep it.
    """
    if isinstance(predicate, dict) and layers:
        predicate = dict(predicate)
        if isinstance(predicate.get("files"), list):
            predicate["files"] = [_with_layer(file, layers) for file in predicate["files"]]
        if isinstance(predicate.get("creationInfo"), dict):
            info = dict(predicate["creationInfo"])
            info["creators"] = [*(info.get("creators") or ()), f"Tool: {creator}"]
            predicate["creationInfo"] = info
    return gojson.dumps(predicate)


def _with_layer(file: Any, layers: Sequence[tuple[Path, Descriptor]]) -> Any:
    if not isinstance(file, dict) or file.get("comment") or not isinstance(file.get("fileName"), str):
        return file
    path = posixpath.normpath("/" + file["fileName"]).strip("/")
    for directory, descriptor in reversed(layers):
        if path and _holds(os.fspath(directory), path):
            return {**file, "comment": f"layerID: {descriptor.digest}"}
    return file


def _holds(directory: str, path: str) -> bool:
    """Whether a layer has the file itself, not reached through a link, nor the mark that it was deleted."""
    at = directory
    *parents, name = path.split("/")
    try:
        for parent in parents:
            at = f"{at}/{parent}"
            if not stat.S_ISDIR(os.lstat(at).st_mode):
                return False
        status = os.lstat(f"{at}/{name}")
    except (OSError, ValueError):
        return False
    return not (stat.S_ISCHR(status.st_mode) and status.st_rdev == 0)
