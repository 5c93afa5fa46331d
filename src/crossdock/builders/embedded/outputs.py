"""From the outputs of a request to the engine's exporters; loading into a Docker Engine.

Spec: docker/buildx ``build/opt.go`` (exporter rewriting), ``util/buildflags/export.go`` (annotations).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from crossdock.builders.result import BuildResult, BuiltImage, BuiltIndex

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from crossdock.builders.dockerload import DockerLoader
    from crossdock.builders.request import BuildRequest
    from crossdock.cancel import CancelToken
    from crossdock.dockerfile.convert.options import PlatformResult
    from crossdock.engine.exporters.model import ExporterSpec, ExportResult
    from crossdock.layers.compression import Compression
    from crossdock.progress.events import EventSink, VertexWarning

__all__ = ["build_result", "clamping", "packing", "plan_outputs", "reproducible"]

_IMAGES = frozenset(["image", "oci", "docker"])
#: attributes for which an image's layers are not what the steps made, or are needed as files too
_NOT_AS_MADE = frozenset(["rewrite-timestamp", "source-date-epoch", "unpack"])


def plan_outputs(
    request: BuildRequest, *, multi_platform: bool, sink: EventSink, cancel: CancelToken
) -> tuple[list[ExporterSpec], list[DockerLoader]]:
    """Make the exporters; loaders must be finished after the export.

    Raises: UsageError; ExportError when an engine to load into does not answer, or cannot hold the image.
    """
    specs: list[ExporterSpec] = []
    loaders: list[DockerLoader] = []
    annotations = _annotations(request)
    for output in request.outputs:
        if output.attrs.get("mode") == "delete":
            from crossdock.builders.localpaths import check_delete

            check_delete(output, request.allow)
        attrs = dict(output.attrs)
        if output.type in _IMAGES:
            attrs = {**annotations, **attrs}
            if os.environ.get("BUILDX_NO_DEFAULT_OCI_ARTIFACT", "") in ("1", "true"):
                attrs.setdefault("oci-artifact", "false")
            if request.tags:
                attrs["name"] = ",".join(request.tags)
        if output.type == "docker" and not output.dest:
            loader, spec = _load_spec(attrs, multi_platform=multi_platform, sink=sink, cancel=cancel)
            loaders.append(loader)
        else:
            spec = _spec(output.type, {**attrs, **({"dest": output.dest} if output.dest else {})})
        specs.append(spec)
    return specs, loaders


def _annotations(request: BuildRequest) -> dict[str, str]:
    if not request.annotations:
        return {}
    from crossdock.builders.annotations import annotation_attrs

    return annotation_attrs(request.annotations)


def _spec(kind: str, attrs: Mapping[str, str], loader: DockerLoader | None = None) -> ExporterSpec:
    from crossdock.engine.exporters.model import ExporterSpec

    return ExporterSpec(kind, attrs, loader)


def _load_spec(
    attrs: dict[str, str], *, multi_platform: bool, sink: EventSink, cancel: CancelToken
) -> tuple[DockerLoader, ExporterSpec]:
    from crossdock.builders.dockerload import find_loader

    kind, loader = find_loader(
        attrs.pop("context", ""), multi_platform=multi_platform, sink=sink, cancel=cancel
    )
    return loader, _spec(kind, attrs, loader)


def reproducible(specs: Sequence[ExporterSpec], epoch_s: int | None) -> list[ExporterSpec]:
    """With an epoch, clamp file times in layers too, unless the output says otherwise.

    BuildKit leaves that to ``rewrite-timestamp=true``; here SOURCE_DATE_EPOCH alone makes the same inputs give the same
    digests.
    """
    if epoch_s is None:
        return list(specs)
    return [s._replace(attrs=clamping(s.type, s.attrs)) for s in specs]


def clamping(kind: str, attrs: Mapping[str, str]) -> Mapping[str, str]:
    """Return the attributes of an output with which its layers' times are clamped, where it has layers of its own."""
    if kind in _IMAGES and attrs.get("unpack", "false") in ("false", "0"):
        return {"rewrite-timestamp": "true", **attrs}
    return attrs


def packing(specs: Sequence[ExporterSpec], epoch_s: int | None) -> Compression | None:
    """Return how the layers of results are packed, when they go into images as they are, all packed alike; else ``None``."""
    if epoch_s is not None or not all(
        spec.type in _IMAGES and _NOT_AS_MADE.isdisjoint(spec.attrs) for spec in specs
    ):
        return None
    from crossdock.layers.compression import Compression

    found = {Compression.from_attrs(spec.attrs)._replace(force=False) for spec in specs}
    return found.pop() if len(found) == 1 else None


def build_result(
    results: Sequence[PlatformResult],
    exported: ExportResult | None,
    metadata: Mapping[str, Any],
    warnings: Sequence[VertexWarning],
) -> BuildResult:
    """Put together what a build gives back; ``metadata`` is added to what the exporters say."""
    images = {str(r.platform): BuiltImage(platform=r.platform, config=r.config) for r in results}
    index = None
    image = exported.image if exported is not None else None
    if image is not None:
        for one in image.platforms:
            images[str(one.platform)] = BuiltImage(
                platform=one.platform,
                config=one.config,
                digest=one.descriptor.digest,
                config_digest=one.manifest.config.digest,
            )
        if image.index is not None:
            top = image.descriptor
            index = BuiltIndex(digest=top.digest, media_type=top.media_type, size=top.size)
    told: dict[str, Any] = {**(exported.merged if exported is not None else {}), **metadata}
    return BuildResult(images=images, index=index, metadata=told, warnings=tuple(warnings))
