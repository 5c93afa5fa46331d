"""Outputs of a BuildKit build: the exporters the daemon runs, and where the client puts what it receives.

Spec: docker/buildx ``build/opt.go`` (exporter rewriting); moby/buildkit ``client/solve.go``.
"""

from __future__ import annotations

import contextlib
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from crossdock.builders.localpaths import check_delete
from crossdock.builders.values import is_true
from crossdock.buildkit.session.layout import LayoutStore
from crossdock.buildkit.session.targets import DirectoryTarget, StreamTarget
from crossdock.buildkit.solve import Export
from crossdock.errors import BuilderError, ExportError, UsageError
from crossdock.record import Record, field

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossdock.builders.request import BuildRequest, OutputSpec
    from crossdock.cancel import CancelToken
    from crossdock.progress import EventSink

__all__ = ["Outputs", "plan_outputs"]

_IMAGES = frozenset({"image", "registry", "oci", "docker"})
#: exporters that make attestation manifests
_ARTIFACTS = frozenset({"image", "moby", "oci"})


class Outputs(Record, frozen=False):
    """What is asked of the daemon, and the client's side of each."""

    exports: list[Export] = field(default_factory=list)
    targets: dict[int, DirectoryTarget | StreamTarget] = field(default_factory=dict)
    stores: dict[str, LayoutStore] = field(default_factory=dict)
    #: OCI directories whose index is written after the build
    layouts: list[Path] = field(default_factory=list)
    #: ends what was begun
    stack: ExitStack = field(default_factory=ExitStack)


def plan_outputs(
    request: BuildRequest, *, engine: bool, classic: bool = False, sink: EventSink, cancel: CancelToken
) -> Outputs:
    """Plan every output; the caller closes ``stack`` of the result after the build.

    ``engine``: the daemon is a Docker Engine's own BuildKit, which keeps images itself; ``classic``: in a store that holds
    one platform of an image. Raises: UsageError, ExportError, BuilderError.
    """
    planner = _Planner(request, engine=engine, classic=classic, sink=sink, cancel=cancel)
    with planner.out.stack:
        for spec in request.outputs:
            if spec.type != "cacheonly":
                planner.add(spec)
        planner.out.stack = planner.out.stack.pop_all()
    return planner.out


class _Planner:
    def __init__(
        self, request: BuildRequest, *, engine: bool, classic: bool, sink: EventSink, cancel: CancelToken
    ) -> None:
        self.out = Outputs()
        self._request = request
        self._engine, self._classic = engine, classic
        self._sink, self._cancel = sink, cancel
        #: the result is more than one manifest
        self._many = len(request.platforms) > 1 or any(p is not None for p in request.attests.values())
        self._annotations: Mapping[str, str] = {}
        if request.annotations:
            from crossdock.builders.annotations import annotation_attrs

            self._annotations = annotation_attrs(request.annotations)

    def add(self, spec: OutputSpec) -> None:
        attrs = self._image_attrs(spec) if spec.type in _IMAGES else dict(spec.attrs)
        number, kind = len(self.out.exports), spec.type
        match kind:
            case "local":
                check_delete(spec, self._request.allow)
                mirror = attrs.get("mode") == "delete"
                self.out.targets[number] = DirectoryTarget(path=Path(spec.dest).absolute(), mirror=mirror)
            case "docker" if not spec.dest:
                kind = self._load(attrs, number)
            case "tar" | "oci" | "docker":
                self._check_archive(kind)
                _archive(spec, attrs, number, self.out)
            case "image" | "registry":
                kind = self._image(kind, attrs)
            case _:
                summary = f"unknown output type {kind!r}"
                raise UsageError(summary, hint="use image, registry, oci, docker, local, tar or cacheonly")
        if kind in _ARTIFACTS and is_true(os.environ.get("BUILDX_NO_DEFAULT_OCI_ARTIFACT", "")):
            attrs.setdefault("oci-artifact", "false")
        self.out.exports.append(Export(type=kind, attrs=attrs))

    def _image_attrs(self, spec: OutputSpec) -> dict[str, str]:
        request = self._request
        attrs = {**self._annotations, **spec.attrs}
        if request.tags:
            attrs["name"] = ",".join(request.tags)
        if "BUILDKIT_INLINE_BUILDINFO_ATTRS" in request.build_args:
            attrs["buildinfo-attrs"] = request.build_args["BUILDKIT_INLINE_BUILDINFO_ATTRS"]
        index = [key for key in attrs if key.startswith("annotation-index")]
        if self._classic and index:
            summary = "the Docker Engine's classic image store makes no indexes, which could be annotated"
            raise UsageError(summary, hint="annotate the manifest, or switch to the containerd image store")
        return attrs

    def _image(self, kind: str, attrs: dict[str, str]) -> str:
        if kind == "registry":
            attrs.setdefault("push", "true")
        if not self._engine:
            return "image"
        if is_true(attrs.get("push", "")) and is_true(attrs.get("push-by-digest", "")):
            summary = "the docker driver cannot push by digest"
            raise UsageError(summary, hint="use another builder: `create --driver docker-container`")
        if not self._classic:
            attrs["prefer-image-digest"] = "true"
        return "moby"

    def _load(self, attrs: dict[str, str], number: int) -> str:
        context = attrs.pop("context", "")
        if self._engine:
            return self._image("image", attrs)
        from crossdock.builders.dockerload import find_loader

        kind, loader = find_loader(context, multi_platform=self._many, sink=self._sink, cancel=self._cancel)
        if kind == "oci":
            attrs["prefer-image-digest"] = "true"
        self.out.stack.callback(loader.abort)
        self.out.targets[number] = StreamTarget(
            open=lambda _metadata: loader,
            finish=lambda _stream, ok: loader.finish() if ok else loader.abort(),
        )
        return kind

    def _check_archive(self, kind: str) -> None:
        if kind == "docker" and self._many:
            summary = "an archive of type=docker holds one manifest, not several platforms or attestations"
            raise UsageError(summary, hint="use -o type=oci,dest=FILE")
        if kind in ("oci", "docker") and self._classic:
            summary = (
                f"output type={kind} to a file is not supported by the Docker Engine's classic image store"
            )
            hint = "use --builder embedded, or switch the Engine to the containerd image store"
            raise BuilderError(summary, hint=hint)


def _archive(spec: OutputSpec, attrs: dict[str, str], number: int, out: Outputs) -> None:
    if not spec.dest:
        summary = f"output type={spec.type} needs dest=FILE (or dest=- for standard output)"
        raise UsageError(summary)
    if attrs.get("tar", "true").lower() in ("false", "0"):
        root = Path(spec.dest).absolute()
        root.mkdir(parents=True, exist_ok=True)
        out.stores["export"] = LayoutStore(root, writable=True)
        out.layouts.append(root)
        return
    if spec.dest == "-":
        if sys.stdout.isatty():
            summary = "refusing to write an archive to the terminal"
            raise ExportError(summary, hint="redirect standard output, or give dest=FILE")
        out.targets[number] = StreamTarget(
            open=lambda _md: sys.stdout.buffer, finish=lambda s, _ok: s.flush()
        )
        return
    target = _FileTarget(Path(spec.dest).absolute())
    out.targets[number] = StreamTarget(open=target.open, finish=target.finish)


class _FileTarget:
    """A file that appears under its name only when complete."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = ""
        if path.is_dir():
            summary = f"cannot write {path}: it is a directory"
            raise ExportError(summary, hint="name a file, or use tar=false for a directory")

    def open(self, _metadata: Mapping[str, str]) -> BinaryIO:
        """Open a temporary file beside the destination."""
        import tempfile

        try:
            fd, self._temporary = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        except OSError as exc:
            summary = f"cannot write {self._path}: {exc.strerror}"
            raise ExportError(summary, hint="check that the directory exists and is writable") from exc
        umask = os.umask(0)
        os.umask(umask)
        os.fchmod(fd, 0o666 & ~umask)
        return os.fdopen(fd, "wb")

    def finish(self, stream: BinaryIO, ok: bool) -> None:
        """Rename into place, or remove. Raises: ExportError when the end of it cannot be written."""
        try:
            stream.close()
            if ok:
                os.replace(self._temporary, self._path)
                return
        except OSError as exc:
            if ok:  # else what went wrong before says more
                summary = f"cannot write {self._path}: {exc.strerror}"
                hint = "check the free space and permissions of the destination"
                raise ExportError(summary, hint=hint) from exc
        finally:
            with contextlib.suppress(OSError):  # it is not there any more when all went well
                os.unlink(self._temporary)
