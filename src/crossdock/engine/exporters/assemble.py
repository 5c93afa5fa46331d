"""Make images of results: layers, configs, manifests and the index, put into the store.

Spec: image-spec 1.1; BuildKit ``exporter/containerimage/writer.go``.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from crossdock.engine.exporters.history import clamp_times, format_time, normalise
from crossdock.engine.exporters.model import BuiltImage, PlatformManifest
from crossdock.engine.exporters.parallel import run_parallel
from crossdock.errors import UsageError
from crossdock.image.config import ImageConfig
from crossdock.image.descriptor import Descriptor
from crossdock.image.digest import sha256_digest
from crossdock.image.manifest import make_index, make_manifest
from crossdock.image.mediatypes import DOCKER_CONFIG, OCI_CONFIG, compression_of, layer_type
from crossdock.record import replace

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from crossdock.cancel import CancelToken
    from crossdock.engine.exporters.attestation import AttestationManifest
    from crossdock.engine.exporters.attrs import ImageOptions
    from crossdock.engine.exporters.blobs import LayerBlobs, LayerPart
    from crossdock.engine.exporters.model import ExportContext, PlatformImage
    from crossdock.engine.exporters.report import Report
    from crossdock.engine.store import LayerId

__all__ = ["assemble", "layer_parts"]

# Each layer is compressed by several threads already; more of them would only take more memory.
_WORKERS = 2
_DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_INLINE_CACHE = "moby.buildkit.cache.v0"
_INTERNAL = ("io.crossdock.", "containerd.io/distribution.source.")
_INTERNAL_KEYS = frozenset({"containerd.io/uncompressed", "buildkit/createdat"})


def assemble(
    context: ExportContext,
    images: Sequence[PlatformImage],
    options: ImageOptions,
    *,
    multi_platform: bool,
    blobs: LayerBlobs,
    report: Report,
) -> BuiltImage:
    """Put manifests and configs into the store and return the image; what is there already costs a look.

    With ``multi_platform`` there is an index even of one. Layers of registries stay where they are.
    Raises: UsageError when options do not fit the result; what writing layers raises.
    """
    if not multi_platform and len(images) != 1:
        summary = "cannot export multiple platforms without multi-platform enabled"
        raise UsageError(summary)
    platforms = [image.platform.normalised() for image in images]
    indexed = multi_platform or _attested(images, options)
    options.annotations.check(platforms, indexed=indexed)
    parts = layer_parts(context, images, options, blobs, report)
    manifests = [
        _manifest(context, image, parts[number], options, blobs, report)
        for number, image in enumerate(images)
    ]
    if not indexed:
        only = manifests[0]
        return BuiltImage(only.descriptor, only.manifest.raw, manifests, None)
    attestations = _attestations(context, images, manifests, options, report)
    index = make_index(
        [*(one.descriptor for one in manifests), *(one.descriptor for one in attestations)],
        oci=options.oci_types,
        annotations=options.annotations.get("index"),
    )
    descriptor = replace(index.descriptor, annotations=options.annotations.get("index-descriptor"))
    with report.stage(f"exporting manifest list {descriptor.digest}"):
        context.store.content.put_bytes(index.raw, context.lease)
    return BuiltImage(descriptor, index.raw, manifests, index, attestations)


def _attested(images: Sequence[PlatformImage], options: ImageOptions) -> bool:
    if not any(image.attestations for image in images):
        return False
    from crossdock.engine.exporters.attestation import wants_index

    return wants_index(images, options)


def _attestations(
    context: ExportContext,
    images: Sequence[PlatformImage],
    manifests: Sequence[PlatformManifest],
    options: ImageOptions,
    report: Report,
) -> list[AttestationManifest]:
    """Make the attestation manifests: in an index all go in, those for inline use too."""
    made: list[AttestationManifest] = []
    for image, manifest in zip(images, manifests, strict=True):
        if image.attestations:
            from crossdock.engine.exporters.attestation import put_manifest, wants_index

            wants_index(images, options)
            layers = dict(zip(image.ref, manifest.manifest.layers, strict=True))
            made.append(put_manifest(context, image, manifest.descriptor, layers, options, report))
    return made


def layer_parts(
    context: ExportContext,
    images: Sequence[PlatformImage],
    options: ImageOptions,
    blobs: LayerBlobs,
    report: Report,
) -> list[list[LayerPart]]:
    """Return the layers of images as their manifests will have them, packed where they are not. Raises: as :func:`assemble`."""
    plan = [_clamps(image, options, blobs) for image in images]
    wanted = dict.fromkeys(item for layers in plan for item in layers)

    found = {item: blobs.known(item[0], options.compression, clamp_s=item[1]) for item in wanted}
    missing = [item for item, part in found.items() if part is None]

    def write(item: tuple[LayerId, int | None], cancel: CancelToken) -> LayerPart:
        layer, clamp_s = item
        return blobs.get(layer, options.compression, clamp_s=clamp_s, report=report, cancel=cancel)

    with report.stage("exporting layers"), _rewriting(options, report):
        written = run_parallel(write, missing, workers=_WORKERS, cancel=context.cancel)
    by_item = {item: part for item, part in found.items() if part is not None}
    by_item.update(zip(missing, written, strict=True))
    return [[by_item[item] for item in layers] for layers in plan]


def _rewriting(options: ImageOptions, report: Report) -> AbstractContextManager[None]:
    """Show that times are cut, or say why they are not."""
    if not options.rewrite_timestamp:
        return nullcontext()
    if options.epoch_s is None:
        report.note("warning: rewrite-timestamp is specified, but no source-date-epoch was found")
        return nullcontext()
    when = format_time(options.epoch_s * 1_000_000_000)
    return report.stage(f"rewriting layers with source-date-epoch {options.epoch_s} ({when})")


def _clamps(
    image: PlatformImage, options: ImageOptions, blobs: LayerBlobs
) -> list[tuple[LayerId, int | None]]:
    """Pair each layer with the time its files are cut at; the base image's layers are left alone."""
    if not options.rewrite_timestamp or options.epoch_s is None:
        return [(layer, None) for layer in image.ref]
    plan: list[tuple[LayerId, int | None]] = []
    base = image.base_config.diff_ids if image.base_config else []
    in_base = True
    for number, layer in enumerate(image.ref):
        in_base = in_base and number < len(base) and blobs.info(layer).diff_id == base[number]
        plan.append((layer, None if in_base else options.epoch_s))
    return plan


def _manifest(
    context: ExportContext,
    image: PlatformImage,
    parts: Sequence[LayerPart],
    options: ImageOptions,
    blobs: LayerBlobs,
    report: Report,
) -> PlatformManifest:
    platform = image.platform.normalised()
    config = _config(image, parts, options, blobs)
    _set_inline_cache(context, config, image, parts)
    config_raw = config.to_json()
    config_type = OCI_CONFIG if options.oci_types else DOCKER_CONFIG
    config_descriptor = Descriptor(config_type, sha256_digest(config_raw), len(config_raw))
    layers = [_as_manifest_has_it(part.descriptor, options) for part in parts]
    manifest = make_manifest(
        config_descriptor,
        layers,
        oci=options.oci_types,
        annotations=options.annotations.get("manifest", platform),
    )
    descriptor = replace(
        manifest.descriptor,
        platform=platform,
        annotations=options.annotations.get("manifest-descriptor", platform),
    )
    with report.stage(f"exporting manifest {descriptor.digest}"):
        context.store.content.put_bytes(manifest.raw, context.lease)
    with report.stage(f"exporting config {config_descriptor.digest}"):
        if not context.store.content.has(config_descriptor.digest):
            context.made.add(config_descriptor.digest)
        context.store.content.put_bytes(config_raw, context.lease)
    repositories = {part.descriptor.digest: part.repositories for part in parts}
    return PlatformManifest(
        platform, descriptor, manifest, config, config_raw, repositories, tuple(image.ref)
    )


def _config(
    image: PlatformImage, parts: Sequence[LayerPart], options: ImageOptions, blobs: LayerBlobs
) -> ImageConfig:
    given = image.config or ImageConfig(platform=image.platform, env=[_DEFAULT_PATH], working_dir="/")
    if not given.platform.os or not given.platform.architecture:
        summary = "invalid image config for export: missing os or architecture"
        raise UsageError(summary)
    infos = [blobs.info(layer) for layer in image.ref]
    config = replace(
        given,
        diff_ids=[part.diff_id for part in parts],
        history=normalise(given.history, infos),
    )
    if options.epoch_s is not None:
        clamp_times(config, image.base_config, options.epoch_s)
    if config.created is None:
        times = [entry.created for entry in config.history if entry.created is not None]
        config.created = times[-1] if times else None
    return config


def _set_inline_cache(
    context: ExportContext, config: ImageConfig, image: PlatformImage, parts: Sequence[LayerPart]
) -> None:
    """Put the build's inline cache in place of the one that came with the base image."""
    config.extra = {key: value for key, value in config.extra.items() if key != _INLINE_CACHE}
    if context.inline is not None:
        digests = [part.descriptor.digest for part in parts]
        text = context.inline(image.platform, image.ref, digests)
        if text:
            config.extra[_INLINE_CACHE] = text


def _as_manifest_has_it(blob: Descriptor, options: ImageOptions) -> Descriptor:
    """Return a layer's descriptor in the manifest's family of media types, without our own annotations."""
    kind = compression_of(blob.media_type)
    urls = blob.urls
    if options.prefer_nondist and _is_nondistributable(blob.media_type):
        media_type = _nondistributable(kind, oci=options.oci_types)
    else:
        media_type, urls = layer_type(kind, oci=options.oci_types), ()
    annotations: dict[str, str] = {}
    if options.oci_types:
        annotations = {
            key: value
            for key, value in blob.annotations.items()
            if not key.startswith(_INTERNAL) and key not in _INTERNAL_KEYS
        }
    return Descriptor(media_type, blob.digest, blob.size, annotations, urls=urls)


def _is_nondistributable(media_type: str) -> bool:
    return ".nondistributable." in media_type or ".foreign." in media_type


def _nondistributable(kind: str, *, oci: bool) -> str:
    suffix = "" if kind == "uncompressed" else kind
    if oci:
        base = "application/vnd.oci.image.layer.nondistributable.v1.tar"
        return f"{base}+{suffix}" if suffix else base
    base = "application/vnd.docker.image.rootfs.foreign.diff.tar"
    return f"{base}.{suffix}" if suffix else base
