"""From the outputs of a request to the engine's exporters; loading into a Docker Engine.

Spec: docker/buildx ``build/opt.go`` (exporter rewriting), ``util/buildflags/export.go`` (annotations).
"""

from __future__ import annotations

import os
import re
import threading
from queue import Empty, Full, Queue
from typing import TYPE_CHECKING, Any

from crossdock.builders.result import BuildResult, BuiltImage, BuiltIndex
from crossdock.cancel import CancelToken
from crossdock.errors import ExportError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from crossdock.builders.dockerconfig import DockerEndpoint
    from crossdock.builders.request import BuildRequest, OutputSpec
    from crossdock.dockerfile.convert.options import PlatformResult
    from crossdock.engine.exporters.model import ExporterSpec, ExportResult
    from crossdock.progress.events import EventSink, VertexWarning

__all__ = ["DockerLoader", "annotation_attrs", "build_result", "plan_outputs", "reproducible"]

_IMAGES = frozenset(["image", "oci", "docker"])
_ANNOTATION_TYPE = re.compile(r"([a-z-]+)(\[[A-Za-z0-9_/-]+\])?\Z")
_POLL_S = 0.1


def plan_outputs(
    request: BuildRequest, *, multi_platform: bool, sink: EventSink, cancel: CancelToken
) -> tuple[list[ExporterSpec], list[DockerLoader]]:
    """Make the exporters; loaders must be finished after the export.

    Raises: UsageError; ExportError when an engine to load into does not answer, or cannot hold the image.
    """
    specs: list[ExporterSpec] = []
    loaders: list[DockerLoader] = []
    annotations = annotation_attrs(request.annotations)
    for output in request.outputs:
        _check_delete(output, request.allow)
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


def _spec(kind: str, attrs: Mapping[str, str], loader: DockerLoader | None = None) -> ExporterSpec:
    from crossdock.engine.exporters.model import ExporterSpec

    return ExporterSpec(kind, attrs, loader)


def _check_delete(output: OutputSpec, allow: Sequence[str]) -> None:
    """A mirror that deletes outside the working directory must be allowed."""
    if output.type != "local" or output.attrs.get("mode") != "delete" or "buildx.local.delete" in allow:
        return
    here, dest = os.path.realpath("."), os.path.realpath(output.dest)
    if dest == here or not dest.startswith(here + os.sep):
        summary = f"local output with mode=delete would delete files in {output.dest}"
        raise UsageError(
            summary, hint="add --allow buildx.local.delete, or write below the working directory"
        )


def _load_spec(
    attrs: dict[str, str], *, multi_platform: bool, sink: EventSink, cancel: CancelToken
) -> tuple[DockerLoader, ExporterSpec]:
    from crossdock.builders.dockerconfig import current_context, endpoint_of
    from crossdock.builders.dockerengine import has_containerd_store, ping

    endpoint = endpoint_of(attrs.pop("context", "") or current_context())
    if ping(endpoint) is None:
        summary = f"cannot load the image: no Docker Engine answers at {endpoint.host}"
        raise ExportError(summary, hint="write an archive instead: -o type=docker,dest=image.tar")
    kind = "docker"
    if has_containerd_store(endpoint):
        kind = "oci"
    elif multi_platform:
        summary = "the Docker Engine's image store holds one platform of an image: it cannot take several"
        raise ExportError(
            summary,
            detail="Turn on its containerd image store, build one platform at a time, push to a registry with --push,\n"
            "or write an OCI archive of all platforms with -o type=oci,dest=image.tar.",
        )
    loader = DockerLoader(endpoint, sink, cancel)
    return loader, _spec(kind, attrs, loader)


def reproducible(specs: Sequence[ExporterSpec], epoch_s: int | None) -> list[ExporterSpec]:
    """With an epoch, clamp file times in layers too, unless the output says otherwise.

    BuildKit leaves that to ``rewrite-timestamp=true``; here SOURCE_DATE_EPOCH alone makes the same inputs give the same
    digests.
    """
    if epoch_s is None:
        return list(specs)
    return [
        s._replace(attrs={"rewrite-timestamp": "true", **s.attrs})
        if s.type in _IMAGES and s.attrs.get("unpack", "false") in ("false", "0")
        else s
        for s in specs
    ]


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


class DockerLoader:
    """Takes an image archive and streams it into a Docker Engine as it is written."""

    def __init__(self, endpoint: DockerEndpoint, sink: EventSink, cancel: CancelToken) -> None:
        self._endpoint = endpoint
        self._sink = sink
        self._cancel = CancelToken(cancel)
        self._queue: Queue[bytes | None] = Queue(8)
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    def write(self, data: bytes) -> int:
        """Take a part of the archive; blocks while the engine is slow.

        Raises: what loading raised; Cancelled.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="docker-load", daemon=True)
            self._thread.start()
        self._put(bytes(data))
        return len(data)

    def finish(self) -> None:
        """Wait until the engine has the image.

        Raises: BuilderError when it refuses.
        """
        if self._thread is None:
            return
        self._put(None)
        while self._thread.is_alive():
            self._thread.join(_POLL_S)
        self._cancel.close()
        if self._failure is not None:
            raise self._failure

    def abort(self) -> None:
        """Break off, after a failed export; idempotent."""
        self._cancel.cancel()
        if self._thread is not None:
            self._thread.join(1.0)
        self._cancel.close()

    def _put(self, item: bytes | None) -> None:
        while True:
            if self._failure is not None:
                raise self._failure
            self._cancel.check()
            try:
                self._queue.put(item, timeout=_POLL_S)
            except Full:
                continue
            return

    def _chunks(self) -> Iterator[bytes]:
        while True:
            self._cancel.check()
            try:
                item = self._queue.get(timeout=_POLL_S)
            except Empty:
                continue
            if item is None:
                return
            yield item

    def _run(self) -> None:
        from crossdock.builders.dockerengine import load_image
        from crossdock.builds.steps import shown

        try:
            with shown(self._sink, "importing to docker") as step:
                load_image(self._endpoint, self._chunks(), on_message=step.log, cancel=self._cancel)
        except BaseException as exc:  # noqa: BLE001 - the top of a thread; finish() and write() raise it again
            self._failure = exc


def annotation_attrs(annotations: Sequence[str]) -> dict[str, str]:
    """Read ``[type[platform],…:]key=value`` into exporter attributes.

    Raises: UsageError.
    """
    out: dict[str, str] = {}
    for text in annotations:
        name, equals, value = text.partition("=")
        if not equals:
            summary = f"invalid annotation {text!r}, expected key=value"
            raise UsageError(summary)
        types, colon, key = name.partition(":")
        if not colon:
            out[f"annotation.{name}"] = value
            continue
        for item in types.split(","):
            match = _ANNOTATION_TYPE.match(item)
            if match is None:
                summary = f"invalid annotation type {item!r}, expected type and optional platform in square brackets"
                raise UsageError(summary)
            out[f"annotation-{match[1]}{match[2] or ''}.{key}"] = value
    return out
