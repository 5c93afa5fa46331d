"""The frontend ``dockerfile.v0`` for builds of the server: our Dockerfile frontend, fed by a client's session.

Spec: moby/buildkit ``frontend/dockerui`` (attributes, contexts), ``frontend/dockerfile/builder``.
"""

from __future__ import annotations

import json
import os
import posixpath
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from crossdock.builds.steps import lint_warning, shown
from crossdock.builds.times import EngineTimes
from crossdock.dockerfile.contexts import (
    GitContext,
    HttpContext,
    InputContext,
    context_output,
    definition_source,
    is_archive,
    local_source,
)
from crossdock.engine.cache.layerview import LayerView
from crossdock.engine.cache.view import resolve
from crossdock.engine.solver import OpContext
from crossdock.engine.sources.http import UPLOAD_HOST
from crossdock.errors import ContextError, UsageError
from crossdock.image.platform import local_platform
from crossdock.llb.graph import Node, Output
from crossdock.llb.ops import FileAction, FileActionCopy, FileOp, OpMetadata
from crossdock.record import replace
from crossdock.server.failures import Unsupported
from crossdock.server.results import ResultRef, Results, platform_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import TypeGuard

    from crossdock.dockerfile.contexts import ContextSpec
    from crossdock.dockerfile.convert.options import ConvertOptions, PlatformResult
    from crossdock.dockerfile.lint import LintWarning
    from crossdock.engine.cache.refs import Ref
    from crossdock.engine.facade import FileInfo
    from crossdock.image.config import ImageConfig
    from crossdock.image.digest import Digest
    from crossdock.server.jobs import Job

__all__ = ["run_dockerfile"]

_MAX_DOCKERFILE_BYTES = 2 << 20
_SNIFFED_BYTES = 1024
#: features a client may demand of the frontend
_CAPS = frozenset(
    [
        "moby.buildkit.frontend.inputs",
        "moby.buildkit.frontend.subrequests",
        "moby.buildkit.frontend.contexts",
    ]
)


def run_dockerfile(
    job: Job,
    attrs: Mapping[str, str],
    inputs: Mapping[str, Output | None],
    other: Callable[[str], Results],
) -> Results:
    """Convert a Dockerfile, or answer a question about it. Nothing of the result is made yet.

    ``other`` runs the frontend in an image, where the file asks for one.

    Raises: DockerfileError with the place; ContextError, UsageError, NotSupported; what resolving images raises.
    """
    _check_caps(attrs)
    return _Frontend(job, attrs, inputs, other).run()


def _check_caps(attrs: Mapping[str, str]) -> None:
    for cap in filter(None, attrs.get("frontend.caps", "").split(",")):
        # "+forward" asks that an image frontend be given the request, which ours does not need.
        if cap.removesuffix("+forward") not in _CAPS:
            summary = f"unsupported frontend capability {cap}"
            raise Unsupported(summary, capability=cap)


class _Frontend:
    """One run."""

    def __init__(
        self,
        job: Job,
        attrs: Mapping[str, str],
        inputs: Mapping[str, Output | None],
        other: Callable[[str], Results],
    ) -> None:
        self._job = job
        self._other = other
        self._attrs = dict(attrs)
        self._inputs = inputs
        self._filename = attrs.get("filename") or "Dockerfile"
        self._local = attrs.get("dockerfilekey", "dockerfile")
        #: vertex that stands for reading the Dockerfile; warnings belong to it
        self._definition = ""
        self._dockerfile_root: Path | None = None
        sessions = {
            k.removeprefix("local-sessionid:"): v
            for k, v in attrs.items()
            if k.startswith("local-sessionid:")
        }
        job.directories.owners.update(sessions)

    def run(self) -> Results:
        from crossdock.dockerfile.attrs import options_from_attrs

        given = {k: InputContext(output=v, config=self._input_config(k)) for k, v in self._inputs.items()}
        options = options_from_attrs(self._attrs, build_platforms=(local_platform(),), inputs=given)
        options, data = self._load(options)
        image = self._syntax(data, options)
        if image:
            return self._other(image)
        request = self._attrs.get("requestid", "")
        images = self._job.images
        times = EngineTimes(self._job.solve_output, self._read_dir)
        if request:
            from crossdock.dockerfile.subrequests import METHODS, answer

            if request not in METHODS.values():
                summary = f"unsupported request {request}"
                raise Unsupported(summary, question=request)
            found = answer(request, data, self._filename, options, images=images, context=self, sources=times)
            return Results.empty(found.metadata())
        from crossdock.dockerfile.convert import convert
        from crossdock.dockerfile.parser import parse

        results = convert(
            parse(data, self._filename), options, images=images, context=self, warn=self._warn, sources=times
        )
        return _as_results(results, multi_platform=options.multi_platform)

    def _syntax(self, data: bytes, options: ConvertOptions) -> str:
        """Return the image whose frontend the file asks for, ``""`` when ours serves it."""
        # With a command line the client has chosen already: BuildKit looks no further then.
        if "cmdline" in self._attrs:
            return ""
        from crossdock.dockerfile.syntax import foreign_frontend

        return foreign_frontend(data, self._filename, options.build_args)

    def _input_config(self, name: str) -> ImageConfig | None:
        """Inputs bring an image config in ``input-metadata:NAME``."""
        from crossdock.image.config import ImageConfig

        text = self._attrs.get(f"input-metadata:{name}", "")
        if not text:
            return None
        try:
            raw = json.loads(text).get("containerimage.config")
        except (ValueError, AttributeError) as exc:
            summary = f"failed to unmarshal input metadata of {name}"
            raise UsageError(summary) from exc
        if not raw:
            return None
        import base64

        return ImageConfig.from_json(base64.b64decode(raw), f"input {name}")

    # --- context and Dockerfile ---

    def _load(self, options: ConvertOptions) -> tuple[ConvertOptions, bytes]:
        """Find the main context and the Dockerfile."""
        spec = self._main_context(options.main_context)
        data: bytes | None = None
        forced = "dockerfilekey" in self._attrs
        if isinstance(spec, HttpContext):
            file = self._read_output(context_output(spec), "/context") or b""
            if is_archive(file[:_SNIFFED_BYTES]):
                spec = HttpContext(url=spec.url, archive=True)
            elif not forced:
                data, self._filename = file, "context"
        if data is None and not forced and "dockerfile" in self._inputs:
            data = self._remote_dockerfile(self._inputs["dockerfile"])
        if data is None and not forced and self._holds_dockerfile(spec):
            data = self._remote_dockerfile(context_output(spec))
        subdirectory = self._attrs.get("contextsubdir", "")
        if subdirectory and spec is not None:
            if not isinstance(spec, GitContext | HttpContext | InputContext):
                summary = "contextsubdir is for remote contexts"
                raise UsageError(summary)
            spec = InputContext(output=_subdirectory(context_output(spec), subdirectory))
        if data is None:
            data = self._local_dockerfile()
        if len(data) > _MAX_DOCKERFILE_BYTES:
            summary = f"{self._filename} is larger than 2 MiB: not a Dockerfile"
            raise ContextError(summary)
        return replace(options, main_context=spec), data

    def _holds_dockerfile(
        self, spec: ContextSpec | None
    ) -> TypeGuard[GitContext | HttpContext | InputContext]:
        """Whether the Dockerfile is in a remote context; one that the client gave as an input comes alone."""
        if isinstance(spec, InputContext):
            return spec.output is None or spec.output is not self._inputs.get("context")
        return isinstance(spec, GitContext | HttpContext)

    def _main_context(self, spec: ContextSpec | None) -> ContextSpec | None:
        """Replace a context that the client uploads by what it uploads."""
        if not isinstance(spec, HttpContext) or urlsplit(spec.url).hostname != UPLOAD_HOST:
            return spec
        name = f"upload-{urlsplit(spec.url).path.strip('/')}"
        with self._job.uploading:
            if name not in self._job.uploaded:
                self._job.uploaded[name] = self._uploaded(name, urlsplit(spec.url).path)
            return InputContext(output=self._job.uploaded[name])

    def _uploaded(self, name: str, path_there: str) -> Output:
        """Receive an upload; returns the files of an archive, or the file."""
        store = self._job.engine.store
        directory = Path(tempfile.mkdtemp(prefix="crossdock-upload-", dir=store.root))
        self._job.on_close(lambda: _remove(directory))
        with shown(self._job.log, "[internal] load remote build context") as step:

            def keep(blocks: Iterable[bytes]) -> Digest:
                with store.content.writer(self._job.engine.lease) as writer:
                    for data in blocks:
                        writer.write(data)
                    return writer.commit()[0]

            blob = store.content.path(self._job.uploads(path_there, keep, self._job.cancel))
            step.transferred("transferring context:", blob.stat().st_size)
            with blob.open("rb") as file:
                archive = is_archive(file.read(_SNIFFED_BYTES))
            _place(blob, directory / "context", linked=archive)
        self._job.directories.add(name, directory)
        source = local_source(name, title="[internal] load uploaded build context", hint=name)
        return _unpacked(source) if archive else source

    def _remote_dockerfile(self, output: Output | None) -> bytes:
        for name in self._names():
            data = self._read_output(output, name)
            if data is not None:
                return data
        summary = f"failed to read dockerfile: open {self._filename}: no such file or directory"
        raise ContextError(summary)

    def _local_dockerfile(self) -> bytes:
        names = [*self._names(), f"{self._filename}.dockerignore"]
        attrs = {
            "local.followpaths": json.dumps(names),
            "local.sharedkeyhint": self._local,
            "local.differ": "none",
        }
        self._job.asked.definition = definition_source(self._filename, local=self._local)
        with shown(self._job.log, f"[internal] load build definition from {self._filename}") as step:
            self._definition = step.digest
            root = self._directory(self._local, attrs, step.digest)
            self._dockerfile_root = root
            for name in self._names():
                data = _read(root, name)
                if data is not None:
                    return data
            summary = f"failed to read dockerfile: open {self._filename}: no such file or directory"
            raise ContextError(summary)

    def _names(self) -> list[str]:
        head, base = posixpath.split(self._filename)
        return (
            [self._filename, posixpath.join(head, "dockerfile")] if base == "Dockerfile" else [self._filename]
        )

    def _directory(self, name: str, attrs: Mapping[str, str], vertex: str) -> Path:
        if name not in self._job.asked.locals:
            self._job.asked.locals.append(name)
        return self._job.directories(name, attrs, vertex, OpContext(self._job.cancel, self._job.log)).path

    def _read_output(self, output: Output | None, path: str) -> bytes | None:
        if output is not None:
            self._job.asked.also.append(output)
        ref = self._job.solve_output(output)
        return self._job.engine.read_file(
            ref, "/" + path.lstrip("/"), cancel=self._job.cancel, sink=self._job.log
        )

    def _read_dir(self, ref: Ref, path: str) -> list[FileInfo] | None:
        return self._job.engine.read_dir(ref, path, cancel=self._job.cancel, sink=self._job.log)

    def read_file(self, path: str, *, local: str = "context") -> bytes | None:
        """Return a file of the client's; ``None`` when there is none (``ContextFiles``)."""
        if local == "dockerfile":
            return _read(self._dockerfile_root, path) if self._dockerfile_root is not None else None
        attrs = {
            "local.followpaths": json.dumps([path]),
            "local.sharedkeyhint": f"{local}-{path}",
            "local.differ": "none",
        }
        title = f"[internal] load {path}" if local == "context" else f"[context {local}] load {path}"
        with shown(self._job.log, title) as step:
            return _read(self._directory(local, attrs, step.digest), path)

    def _warn(self, warning: LintWarning) -> None:
        self._job.log.emit(lint_warning(self._definition, warning))


def _read(root: Path, path: str) -> bytes | None:
    """Read a file of a received directory; links are followed inside it only."""
    view = LayerView([root])
    node = resolve(view, path, follow=True)
    if node is None or not node.is_file:
        return None
    with os.fdopen(view.open(node), "rb") as file:
        return file.read(_MAX_DOCKERFILE_BYTES + 1)


def _place(blob: Path, target: Path, *, linked: bool) -> None:
    """Make a blob a file of a context; one that is only read may be the blob itself."""
    if linked:
        with suppress(OSError):  # not on every file system
            os.link(blob, target)
            return
    shutil.copyfile(blob, target)


def _remove(directory: Path) -> None:
    with suppress(OSError):
        (directory / "context").unlink(missing_ok=True)
        directory.rmdir()


def _unpacked(source: Output) -> Output:
    """Return the files of an archive that was uploaded."""
    copy = FileActionCopy(src="/context", dest="/", attempt_unpack=True)
    action = FileAction(action=copy, input=-1, secondary_input=0, output=0)
    metadata = OpMetadata(description={"llb.customname": "[internal] unpack build context"})
    return Output(Node(FileOp((action,)), [source], metadata=metadata))


def _subdirectory(source: Output | None, path: str) -> Output | None:
    if source is None:
        return None
    copy = FileActionCopy(src=path, dest="/", dir_copy_contents=True)
    action = FileAction(action=copy, input=-1, secondary_input=0, output=0)
    return Output(Node(FileOp((action,)), [source]))


def _as_results(results: Sequence[PlatformResult], *, multi_platform: bool) -> Results:
    """Put conversions into BuildKit's form: file systems by platform, the rest as metadata."""
    metadata: dict[str, bytes] = {}
    listed = []
    refs: dict[str, ResultRef | None] = {}
    for result in results:
        platform = result.platform.normalised()
        name = str(platform)
        suffix = f"/{name}" if multi_platform else ""
        metadata[f"containerimage.config{suffix}"] = result.config.to_json()
        if result.base_config is not None:
            metadata[f"containerimage.base.config{suffix}"] = result.base_config.to_json()
        if result.epoch is not None:
            metadata[f"source.date.epoch{suffix}"] = str(result.epoch).encode()
        refs[name if multi_platform else ""] = (
            ResultRef(result.output, result.scan, ignore_cache=result.ignore_cache)
            if result.output is not None
            else None
        )
        listed.append({"ID": name, "Platform": platform_json(platform)})
    metadata["refs.platforms"] = json.dumps({"Platforms": listed}, separators=(",", ":")).encode()
    return Results(refs, metadata, single=not multi_platform)
