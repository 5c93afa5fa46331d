"""Attestations beside what is exported: manifests in an index, or files among files.

An attestation here is a predicate that is made when it is written, since it may tell of the layers of the image it is
about. The statement around it, with the image or the files as subjects, is made by the exporter.

Spec: in-toto attestation framework, Statement v1; BuildKit ``docs/attestations/attestation-storage.md``.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossdock.errors import ExportError, UsageError
from crossdock.image import gojson
from crossdock.image.descriptor import Descriptor
from crossdock.image.digest import sha256_digest
from crossdock.image.manifest import dump_json
from crossdock.image.mediatypes import OCI_CONFIG, OCI_EMPTY, OCI_MANIFEST
from crossdock.image.platform import Platform
from crossdock.image.purl import image_purl
from crossdock.image.reference import parse_reference
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager, ExitStack

    from crossdock.cancel import CancelToken
    from crossdock.engine.exporters.attrs import ImageOptions
    from crossdock.engine.exporters.model import ExportContext, PlatformImage
    from crossdock.engine.exporters.report import Report
    from crossdock.engine.store import LayerId

__all__ = [
    "ARTIFACT_TYPE",
    "IN_TOTO",
    "PREDICATE_TYPE",
    "REFERENCE_DIGEST",
    "REFERENCE_TYPE",
    "STATEMENT_TYPE",
    "Attestation",
    "AttestationManifest",
    "Subject",
    "check_attested",
    "put_manifest",
    "wants_index",
    "with_statements",
    "write_statements",
]

IN_TOTO = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
ARTIFACT_TYPE = "application/vnd.docker.attestation.manifest.v1+json"
REFERENCE_TYPE = "vnd.docker.reference.type"
REFERENCE_DIGEST = "vnd.docker.reference.digest"
PREDICATE_TYPE = "in-toto.io/predicate-type"
_EMPTY_CONFIG = b"{}"
_UNKNOWN = Platform("unknown", "unknown")
_CHUNK = 1 << 20
#: as BuildKit writes them: readable by their owner
_FILE_MODE = 0o600


class Subject(NamedTuple):
    """What a statement is about."""

    name: str
    #: algorithm to hexadecimal digits
    digest: Mapping[str, str]


class Attestation(NamedTuple):
    """One statement to be made about a result."""

    #: URI of the kind of predicate
    predicate_type: str
    #: name of the file it becomes among files
    path: str
    #: makes the predicate, a JSON document: of the image's layers, bottom first, as its manifest has them; of an empty
    #: mapping when there is no image. May be called by several threads, for several outputs
    content: Callable[[Mapping[LayerId, Descriptor]], bytes]
    #: none: the image, or the files, themselves
    subjects: tuple[Subject, ...] = ()
    #: only for outputs that are images
    inline_only: bool = False


class AttestationManifest(NamedTuple):
    """What was put into the store for one platform."""

    #: as the index holds it
    descriptor: Descriptor
    raw: bytes
    #: config and statements
    blobs: tuple[Descriptor, ...]


def check_attested(kind: str, attrs: Mapping[str, str], *, inline_only: bool) -> None:
    """Refuse, before anything is built, outputs that cannot hold the build's attestations.

    Raises: ExportError for ``docker`` archives, which hold one manifest; UsageError for Docker's media types.
    """
    if kind == "docker" and not inline_only:
        summary = "docker exporter does not currently support exporting attestations"
        hint = (
            "use -o type=oci, an Engine with the containerd image store, or leave out --provenance and --sbom"
        )
        raise ExportError(summary, hint=hint)
    if kind in ("image", "registry") or (kind == "oci" and not inline_only):
        _check_types(oci_types=attrs.get("oci-mediatypes", "true").lower() not in ("false", "0", "f"))


def _check_types(*, oci_types: bool) -> None:
    if not oci_types:
        summary = 'cannot export attestations with "oci-mediatypes=false"'
        raise UsageError(summary, hint="leave out oci-mediatypes=false, --provenance and --sbom")


def wants_index(images: Sequence[PlatformImage], options: ImageOptions) -> bool:
    """Whether attestations make an index of what would be a single manifest.

    Raises: UsageError with Docker's media types, which know no such thing.
    """
    wanted = any(
        options.force_attestations or not attestation.inline_only
        for image in images
        for attestation in image.attestations
    )
    if wanted:
        _check_types(oci_types=options.oci_types)
    return wanted


def put_manifest(
    context: ExportContext,
    image: PlatformImage,
    target: Descriptor,
    layers: Mapping[LayerId, Descriptor],
    options: ImageOptions,
    report: Report,
) -> AttestationManifest:
    """Put the statements about one platform's image, and the manifest that lists them, into the store.

    Raises: StoreError, StoreFull; what making a predicate raises.
    """
    subjects = _image_subjects(image, target, options.names)
    blobs: list[Descriptor] = []
    for attestation in image.attestations:
        context.cancel.check()
        data = gojson.dumps(_statement(attestation, attestation.content(layers), subjects))
        context.store.content.put_bytes(data, context.lease)
        annotations = {PREDICATE_TYPE: attestation.predicate_type}
        blobs.append(Descriptor(IN_TOTO, sha256_digest(data), len(data), annotations))
    config, config_raw = _config(blobs, artifact=options.oci_artifact)
    context.store.content.put_bytes(config_raw, context.lease)
    manifest: dict[str, object] = {"schemaVersion": 2, "mediaType": OCI_MANIFEST}
    if options.oci_artifact:
        manifest["artifactType"] = ARTIFACT_TYPE
    manifest["config"] = config.to_json()
    manifest["layers"] = [blob.to_json() for blob in blobs]
    if options.oci_artifact:
        manifest["subject"] = Descriptor(target.media_type, target.digest, target.size).to_json()
    raw = dump_json(manifest)
    digest = sha256_digest(raw)
    with report.stage(f"exporting attestation manifest {digest}"):
        context.store.content.put_bytes(raw, context.lease)
    annotations = {REFERENCE_TYPE: "attestation-manifest", REFERENCE_DIGEST: target.digest}
    descriptor = Descriptor(OCI_MANIFEST, digest, len(raw), annotations, platform=_UNKNOWN)
    return AttestationManifest(descriptor, raw, (config, *blobs))


def _image_subjects(image: PlatformImage, target: Descriptor, names: Sequence[str]) -> list[Subject]:
    algorithm, _, digits = target.digest.partition(":")
    # BuildKit lists no subject of an image without a name; "_" is its stand-in for what has none.
    texts = [image_purl(parse_reference(name), image.platform) for name in names] or ["_"]
    return [Subject(text, {algorithm: digits}) for text in texts]


def _statement(attestation: Attestation, content: bytes, default: Sequence[Subject]) -> dict[str, object]:
    subjects = attestation.subjects or default
    predicate: Any = json.loads(content) if content else None
    return {
        "_type": STATEMENT_TYPE,
        "predicateType": attestation.predicate_type,
        "subject": [{"name": subject.name, "digest": dict(subject.digest)} for subject in subjects],
        "predicate": predicate,
    }


def _config(blobs: Sequence[Descriptor], *, artifact: bool) -> tuple[Descriptor, bytes]:
    """Return the config: OCI's empty one, or an image config that lists the statements as if they were layers."""
    if artifact:
        raw = _EMPTY_CONFIG
        return Descriptor(OCI_EMPTY, sha256_digest(raw), len(raw), data="e30="), raw
    data = {
        "architecture": _UNKNOWN.architecture,
        "os": _UNKNOWN.os,
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [blob.digest for blob in blobs]},
    }
    raw = gojson.dumps(data)
    return Descriptor(OCI_CONFIG, sha256_digest(raw), len(raw)), raw


def with_statements(
    stack: ExitStack,
    mount: Callable[[Sequence[Path]], AbstractContextManager[Path]],
    image: PlatformImage,
    *,
    scratch: Path,
    prefix: str = "",
    suffix: str = "",
    fixed_ns: int | None = None,
    cancel: CancelToken,
) -> Path:
    """Show a result's files until ``stack`` ends, the statements about them among them.

    ``mount`` shows the files below the directories it is given; ``scratch`` is where those are made.
    Raises: as :func:`write_statements`; what mounting raises.
    """
    import tempfile

    root = stack.enter_context(mount(()))
    if not any(not a.inline_only for a in image.attestations):
        return root
    made = tempfile.TemporaryDirectory(prefix="crossdock-statements-", dir=scratch)
    directory = Path(stack.enter_context(made))
    # A lower directory shows through as it is, its mode too.
    directory.chmod(stat.S_IMODE(root.stat().st_mode))
    write_statements(image, root, directory, prefix=prefix, suffix=suffix, fixed_ns=fixed_ns, cancel=cancel)
    return stack.enter_context(mount((directory,)))


def write_statements(
    image: PlatformImage,
    root: Path,
    target: Path,
    *,
    prefix: str,
    suffix: str,
    fixed_ns: int | None,
    cancel: CancelToken,
) -> None:
    """Write statements about the files below ``root`` into the empty directory ``target``.

    ``prefix`` goes before the names, ``suffix`` (a platform) before their extensions; ``fixed_ns`` is their time.
    Raises: ExportError for two statements of one name; OSError; what making a predicate raises; the token's cause.
    """
    wanted = [a for a in image.attestations if not a.inline_only]
    subjects = _file_subjects(root, cancel)
    for attestation in wanted:
        name = prefix + posixpath.basename(attestation.path)
        if suffix:
            stem, extension = posixpath.splitext(name)
            name = f"{stem}.{suffix}{extension}"
        path = target / name
        if path.parent != target or path.exists():
            summary = f"cannot write an attestation to {name}: " + (
                "two have this name" if path.exists() else "a prefix cannot name a directory"
            )
            raise ExportError(summary, hint="choose names with filename= and attestation-prefix=")
        data = dump_json(_statement(attestation, attestation.content({}), subjects))
        path.write_bytes(data)
        path.chmod(_FILE_MODE)
        if fixed_ns is not None:
            os.utime(path, ns=(fixed_ns, fixed_ns))


def _file_subjects(root: Path, cancel: CancelToken) -> list[Subject]:
    """Hash every regular file, in the order of their names."""
    found: dict[str, str] = {}
    waiting = [(os.fspath(root), "")]
    while waiting:
        folder, prefix = waiting.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                cancel.check()
                path = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((entry.path, path + "/"))
                elif entry.is_file(follow_symlinks=False):
                    found[path] = _sha256(entry.path, cancel)
    return [Subject(_text(path), {"sha256": found[path]}) for path in sorted(found)]


def _text(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "replace")


def _sha256(path: str, cancel: CancelToken) -> str:
    hasher = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while data := file.read(_CHUNK):
            cancel.check()
            hasher.update(data)
    return hasher.hexdigest()
