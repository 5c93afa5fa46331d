"""What a build reads from this machine: the Dockerfile and local contexts; and the frontend's attributes.

Spec: docker/buildx ``build/opt.go`` (loadInputs); moby/buildkit ``frontend/dockerui`` for the attributes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from crossdock.builders.attributes import frontend_attributes
from crossdock.builders.localpaths import context_directory, default_dockerfile, refuse_bake_contexts
from crossdock.builders.parse import is_remote_context
from crossdock.errors import ContextError, InternalError, translate
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossdock.builders.layouts import LayoutContext
    from crossdock.builders.request import BuildRequest

__all__ = ["STDIN", "Inputs", "gather"]

#: name of the local directory that holds an archive from standard input
STDIN = "stdin"
_MAX_DOCKERFILE_BYTES = 2 << 20


class Inputs(NamedTuple):
    """What was gathered."""

    #: ``None`` when it must be fetched
    dockerfile: bytes | None
    #: as shown in errors and progress, relative to its directory
    name: str
    #: local directories by the name that the graph uses
    directories: Mapping[str, Path]
    #: BuildKit's frontend attributes
    attrs: Mapping[str, str]
    #: OCI layouts by the name that the graph uses
    layouts: Mapping[str, LayoutContext] = {}


def gather(request: BuildRequest, empty: Path | None) -> Inputs:
    """Find everything a build reads; ``empty`` is an empty directory, given when context or Dockerfile have none.

    Raises: ContextError, UsageError, NotSupported; BuilderError for a host whose address is not known.
    """
    directories: dict[str, Path] = {}
    remote = request.context == "-" or is_remote_context(request.context)
    if request.context == "-":
        directories[STDIN] = _given(empty)
        _copy_stdin(directories[STDIN] / "context")
    if not remote:
        directories["context"] = context_directory(request.context) if request.context else _given(empty)
    dockerfile: bytes | None
    if request.dockerfile_text is not None:
        dockerfile, name = request.dockerfile_text, "Dockerfile"
        directories["dockerfile"] = _given(empty)
    elif _is_url(request.dockerfile) or (remote and not os.path.isabs(request.dockerfile)):
        dockerfile, name = None, request.dockerfile or "Dockerfile"
    else:
        path = _dockerfile_path(request, directories.get("context"))
        dockerfile, name = _read_dockerfile(path), path.name
        directories["dockerfile"] = path.parent
    attrs = frontend_attributes(request)
    if request.add_hosts:
        from crossdock.builders.drivers.abilities import extra_hosts

        attrs["add-hosts"] = extra_hosts(request.add_hosts, ())
    layouts: dict[str, LayoutContext] = {}
    for key, value in request.named_contexts.items():
        attrs[f"context:{key}"] = _named(key, value, directories, layouts)
    return Inputs(dockerfile, name, directories, attrs, layouts)


def _copy_stdin(path: Path) -> None:
    """Put an archive from standard input where the engine can read it."""
    import shutil

    def refuse(exc: BaseException) -> ContextError:
        return ContextError(f"cannot read the context from standard input: {exc}")

    with translate({OSError: refuse}), open(os.dup(0), "rb") as source, path.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)


def _given(empty: Path | None) -> Path:
    if empty is None:
        summary = "no empty directory was made for this build"
        raise InternalError(summary)
    return empty


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def _dockerfile_path(request: BuildRequest, context: Path | None) -> Path:
    if request.dockerfile or context is None:
        return Path(request.dockerfile).absolute()
    return default_dockerfile(context)


def _read_dockerfile(path: Path) -> bytes:
    def refuse(exc: BaseException) -> ContextError:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        text = f"failed to read dockerfile: open {path}: {reason}"
        return ContextError(text, hint="name the Dockerfile with -f, or give another directory")

    with translate({OSError: refuse}), path.open("rb") as file:
        data = file.read(_MAX_DOCKERFILE_BYTES + 1)
    if len(data) > _MAX_DOCKERFILE_BYTES:
        summary = f"{path} is larger than 2 MiB: not a Dockerfile"
        raise ContextError(summary)
    return data


def _named(name: str, value: str, directories: dict[str, Path], layouts: dict[str, LayoutContext]) -> str:
    if value.startswith("docker-image://") or is_remote_context(value):
        return value
    if value.startswith("oci-layout://"):
        from crossdock.builders.layouts import find_layout

        layout = find_layout(name, value)
        layouts[layout.store] = layout
        return layout.text
    refuse_bake_contexts(name, value)
    local = f"context:{name}"
    directories[local] = context_directory(value)
    return f"local:{local}"
