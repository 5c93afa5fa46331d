"""The ``oci`` and ``docker`` exporters: an image as one tar, or as a layout directory.

Entries are sorted, dated 1970 and read-only where they are blobs, as containerd writes them; a docker
archive also has the ``manifest.json`` that ``docker load`` of any age reads.

Spec: image-spec 1.1, image-layout.md; containerd ``core/images/archive/exporter.go``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.engine.exporters.assemble import assemble
from crossdock.engine.exporters.attrs import parse_image
from crossdock.engine.exporters.destination import check_output, open_output
from crossdock.engine.exporters.history import format_time
from crossdock.engine.exporters.parallel import run_parallel
from crossdock.engine.exporters.response import image_response
from crossdock.errors import ExportError, UsageError
from crossdock.image import gojson
from crossdock.image.digest import digest_hex
from crossdock.image.mediatypes import OCI_INDEX
from crossdock.image.reference import parse_reference
from crossdock.record import NamedTuple, replace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.cancel import CancelToken
    from crossdock.engine.exporters.blobs import LayerBlobs
    from crossdock.engine.exporters.model import (
        BuiltImage,
        ExportContext,
        ExporterSpec,
        Output,
        PlatformImage,
    )
    from crossdock.engine.exporters.report import Report
    from crossdock.image.descriptor import Descriptor

__all__ = ["ArchiveExporter", "layout_index", "stream_archive"]

LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_IMAGE_NAME = "io.containerd.image.name"
_REF_NAME = "org.opencontainers.image.ref.name"
_CREATED = "org.opencontainers.image.created"
_WORKERS = 4
_READ_ONLY = 0o444


class ArchiveExporter:
    """One ``-o type=oci`` or ``type=docker``."""

    def __init__(self, spec: ExporterSpec, epoch_s: int | None) -> None:
        self._spec = spec
        #: how its layers are packed, and where they go
        self.packs = self._options = parse_image(spec, epoch_s)
        self.title = f"exporting to {spec.type} image format"
        self.image: BuiltImage | None = None
        if not self._options.tar and spec.type == "docker":
            summary = "tar=false is for the oci exporter: docker load takes archives"
            raise UsageError(summary)
        if not self._options.tar and not self._options.dest:
            summary = "dest directory is required for the oci exporter with tar=false"
            raise UsageError(summary)

    def check(self, *, multi_platform: bool) -> None:
        """Check destination and number of platforms before any work.

        Raises: ExportError.
        """
        if self._spec.type == "docker" and multi_platform:
            summary = "docker exporter does not currently support exporting manifest lists"
            hint = "build one platform, use -o type=oci, or an Engine with the containerd image store"
            raise ExportError(summary, hint=hint)
        if self._options.tar:
            check_output(self._spec, self._options.dest)
        else:
            from crossdock.engine.exporters.layout import check_layout

            check_layout(self._options.dest)

    def export(
        self,
        context: ExportContext,
        images: Sequence[PlatformImage],
        *,
        multi_platform: bool,
        blobs: LayerBlobs,
        report: Report,
    ) -> dict[str, object]:
        """Assemble the image and write it out; returns the response.

        Raises: UsageError, ExportError, StoreError, LayerError.
        """
        options = self._options
        image = assemble(context, images, options, multi_platform=multi_platform, blobs=blobs, report=report)
        self.image = image
        root = _dated(image, options.epoch_s)
        _fetch_layers(context, image, blobs, report)
        entries = layout_entries(root, options.names)
        if options.tar:
            docker = self._spec.type == "docker"
            with report.stage("sending tarball"), open_output(self._spec, options.dest) as out:
                stream_archive(context, image, entries, out, docker_names=options.names if docker else None)
        else:
            from crossdock.engine.exporters.layout import write_layout

            with report.stage("copying files"):
                write_layout(context, image, entries, options.dest)
        return image_response(image, options.names, descriptor=root)

    finishes = False

    def finish(self, context: ExportContext, *, blobs: LayerBlobs, report: Report) -> None:
        """Nothing is left to do."""


def _dated(image: BuiltImage, epoch_s: int | None) -> Descriptor:
    """Return the root descriptor with its creation date.

    BuildKit puts the present time, unless there is an epoch; the image's own keeps archives reproducible.
    """
    created = image.platforms[0].config.created
    if epoch_s is not None:
        created = format_time(epoch_s * 1_000_000_000)
    if not created or _CREATED in image.descriptor.annotations:
        return image.descriptor
    whole = created.partition(".")[0].removesuffix("Z") + "Z"
    return replace(image.descriptor, annotations={**image.descriptor.annotations, _CREATED: whole})


def _fetch_layers(context: ExportContext, image: BuiltImage, blobs: LayerBlobs, report: Report) -> None:
    layers = {
        layer.digest: (layer, one.repositories.get(layer.digest, ()))
        for one in image.platforms
        for layer in one.manifest.layers
    }

    def fetch(item: tuple[Descriptor, Sequence[str]], cancel: CancelToken) -> None:
        blobs.ensure_local(item[0], item[1], report, cancel)

    run_parallel(fetch, layers.values(), workers=_WORKERS, cancel=context.cancel)


def layout_entries(root: Descriptor, names: Sequence[str]) -> list[Descriptor]:
    """Return the entries of ``index.json``: one per name, or one without."""
    if not names:
        return [root]
    entries = []
    for name in names:
        tag = parse_reference(name).tag or name
        annotations = {**root.annotations, _IMAGE_NAME: name, _REF_NAME: tag}
        entries.append(replace(root, annotations=annotations))
    return entries


def layout_index(entries: Sequence[Descriptor]) -> bytes:
    """Serialise ``index.json`` of a layout."""
    data = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [entry.to_json() for entry in entries],
    }
    return gojson.dumps(data)


class _Member(NamedTuple):
    """A file of the archive: bytes at hand, or a blob of the store."""

    mode: int
    data: bytes | None
    blob: Descriptor | None


def stream_archive(
    context: ExportContext,
    image: BuiltImage,
    entries: Sequence[Descriptor],
    out: Output,
    *,
    docker_names: Sequence[str] | None,
) -> None:
    """Write the archive of an image whose layers are in the store; with ``docker_names`` for ``docker load``.

    Raises: ExportError and OSError of ``out``; StoreError, DigestMismatch; the token's cause.
    """
    from crossdock.layers.tarwriter import TarWriter  # only archives need it

    members: dict[str, _Member] = {"oci-layout": _Member(_READ_ONLY, LAYOUT, None)}
    members["index.json"] = _Member(0o644, layout_index(entries), None)
    for one in image.platforms:
        for blob in (one.descriptor, one.manifest.config, *one.manifest.layers):
            members[_blob_path(blob)] = _Member(_READ_ONLY, None, blob)
    for attested in image.attestations:
        for blob in (attested.descriptor, *attested.blobs):
            members[_blob_path(blob)] = _Member(_READ_ONLY, None, blob)
    if image.index is not None:
        members[_blob_path(image.descriptor)] = _Member(_READ_ONLY, None, image.descriptor)
    if docker_names is not None:
        members["manifest.json"] = _Member(0o644, _docker_manifest(image, docker_names), None)
    writer = TarWriter(out)
    folders = {"blobs/", "blobs/sha256/"}
    for name in sorted([*members, *folders]):
        context.cancel.check()
        if name in folders:
            writer.add_directory(name)
            continue
        member = members[name]
        if member.blob is None:
            writer.add_bytes(name, member.data or b"", mode=member.mode)
        else:
            with context.store.content.open(member.blob.digest) as stream:
                writer.add_stream(name, stream, member.blob.size, mode=member.mode)
    writer.close()


def _docker_manifest(image: BuiltImage, names: Sequence[str]) -> bytes:
    one = image.platforms[0]
    data = {
        "Config": _blob_path(one.manifest.config),
        "RepoTags": [parse_reference(name).familiar for name in names] or None,
        "Layers": [_blob_path(layer) for layer in one.manifest.layers],
    }
    return gojson.dumps([data])


def _blob_path(blob: Descriptor) -> str:
    algorithm = blob.digest.partition(":")[0]
    return f"blobs/{algorithm}/{digest_hex(blob.digest)}"
