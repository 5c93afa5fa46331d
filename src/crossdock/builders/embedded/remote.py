"""Builds whose context, or whose Dockerfile, is a URL: the engine fetches it, and the Dockerfile is read from the result.

Spec: moby/buildkit ``frontend/dockerui/context.go``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crossdock.builders.embedded.inputs import STDIN
from crossdock.dockerfile.contexts import (
    HttpContext,
    InputContext,
    context_output,
    http_source,
    is_archive,
    local_source,
    parse_context,
)
from crossdock.errors import ContextError
from crossdock.llb.graph import Node, Output
from crossdock.llb.ops import FileAction, FileActionCopy, FileOp, OpMetadata

if TYPE_CHECKING:
    from collections.abc import Callable

    from crossdock.builders.request import BuildRequest
    from crossdock.dockerfile.contexts import ContextSpec, GitContext
    from crossdock.engine.cache.refs import Ref
    from crossdock.engine.facade import Engine

    Solve = Callable[[Output | None], Ref]

__all__ = ["RemoteInputs"]

_MAX_DOCKERFILE_BYTES = 2 << 20
_SNIFFED_BYTES = 1024


class RemoteInputs:
    """Fetches what is remote; ``solve`` runs one output on the engine."""

    def __init__(self, engine: Engine, solve: Solve, read: Callable[[Ref, str], bytes | None]) -> None:
        self._engine = engine
        self._solve = solve
        self._read = read

    def context(self, request: BuildRequest) -> tuple[ContextSpec, bytes | None, str]:
        """Fetch the context; returns how the graph names it, and the Dockerfile in it with its name.

        The Dockerfile is ``None`` when it is a local file or a URL of its own.
        Raises: ContextError when it is not there; what fetching raises.
        """
        if request.context == "-":
            spec: ContextSpec = InputContext(output=_unpacked_stdin())
        else:
            spec = parse_context(request.context)
        if isinstance(spec, HttpContext):
            file = self._read(self._solve(context_output(spec)), "/context") or b""
            if not is_archive(file[:_SNIFFED_BYTES]):
                # A single file is the Dockerfile itself.
                return spec, self._limited(file, request.context), "context"
            spec = HttpContext(url=spec.url, archive=True)
        if (
            request.dockerfile_text is not None
            or os.path.isabs(request.dockerfile)
            or _is_url(request.dockerfile)
        ):
            return spec, None, ""
        return spec, *self._dockerfile_in(spec, request)

    def dockerfile(self, url: str) -> tuple[bytes, str]:
        """Fetch a Dockerfile by URL; returns it and its name.

        Raises: ContextError when it is too large; what fetching raises.
        """
        name = url.partition("?")[0].rstrip("/").rpartition("/")[2] or "Dockerfile"
        metadata = OpMetadata(
            description={"llb.customname": f"[internal] load remote build definition {url}"}
        )
        output = Output(Node(http_source(url, filename="Dockerfile"), metadata=metadata))
        data = self._read(self._solve(output), "/Dockerfile")
        if data is None:
            summary = f"failed to read dockerfile: {url} gave no file"
            raise ContextError(summary)
        return self._limited(data, url), name

    def _dockerfile_in(self, spec: ContextSpec, request: BuildRequest) -> tuple[bytes, str]:
        ref = self._solve(context_output(_remote(spec)))
        names = (request.dockerfile,) if request.dockerfile else ("Dockerfile", "dockerfile")
        for name in names:
            data = self._read(ref, "/" + name.lstrip("/"))
            if data is not None:
                return self._limited(data, name), name
        where = "the archive on standard input" if request.context == "-" else request.context
        summary = f"failed to read dockerfile: {names[0]} is not in {where}"
        raise ContextError(summary, hint="name it with -f, relative to the context")

    @staticmethod
    def _limited(data: bytes, name: str) -> bytes:
        if len(data) > _MAX_DOCKERFILE_BYTES:
            summary = f"{name} is larger than 2 MiB: not a Dockerfile"
            raise ContextError(summary)
        return data


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def _unpacked_stdin() -> Output:
    """Return the files of an archive that came on standard input."""
    source = local_source(STDIN, title="load build context from standard input", hint="stdin")
    copy = FileActionCopy(src="/context", dest="/", attempt_unpack=True)
    action = FileAction(action=copy, input=-1, secondary_input=0, output=0)
    metadata = OpMetadata(description={"llb.customname": "[internal] unpack build context"})
    return Output(Node(FileOp((action,)), [source], metadata=metadata))


def _remote(spec: ContextSpec) -> GitContext | HttpContext | InputContext:
    from crossdock.dockerfile.contexts import GitContext

    if isinstance(spec, GitContext | HttpContext | InputContext):
        return spec
    summary = f"{spec} is not a remote context"
    raise ContextError(summary)
