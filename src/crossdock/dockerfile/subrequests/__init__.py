"""What a build can be asked instead of building: checks, outline, targets, the list of methods.

Each answer is a :class:`SubResult` with BuildKit's JSON and text forms. The modules are loaded on use.

Spec: moby/buildkit ``frontend/subrequests``; ``docker buildx build --call``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.errors import UsageError
from crossdock.record import Record

if TYPE_CHECKING:
    from crossdock.dockerfile.convert.options import (
        ContextFiles,
        ConvertOptions,
        ImageResolver,
        SourceTimes,
    )

__all__ = ["METHODS", "SubResult", "answer", "check", "describe", "outline", "targets"]

#: ``--call`` name -> frontend request
METHODS = {
    "check": "frontend.lint",
    "lint": "frontend.lint",
    "outline": "frontend.outline",
    "targets": "frontend.targets",
    "subrequests.describe": "frontend.subrequests.describe",
}


class SubResult(Record):
    """An answer: ``result.json``, ``result.txt`` and, for checks, a status."""

    #: version of the method
    version: str
    #: JSON, indented by two spaces
    json: str
    text: str
    #: checks only: 0, or 1 when they found something; it becomes the exit code
    status: int | None = None

    def metadata(self) -> dict[str, bytes]:
        """Return the entries BuildKit's frontend puts into the result."""
        out = {
            "result.json": self.json.encode(),
            "result.txt": self.text.encode(),
            "version": self.version.encode(),
        }
        if self.status is not None:
            out["result.statuscode"] = str(self.status).encode()
        return out


def check(
    data: bytes,
    name: str,
    options: ConvertOptions,
    *,
    images: ImageResolver,
    context: ContextFiles,
    sources: SourceTimes | None = None,
) -> SubResult:
    """Run the build checks; without a target, on every stage.

    An error of the build (a wrong file, a base image that cannot be resolved) is part of the answer.
    Raises: Cancelled, InternalError.
    """
    from crossdock.dockerfile.subrequests.call_check import run_checks

    return run_checks(data, name, options, images=images, context=context, sources=sources)


def outline(
    data: bytes,
    name: str,
    options: ConvertOptions,
    *,
    images: ImageResolver,
    context: ContextFiles,
    sources: SourceTimes | None = None,
) -> SubResult:
    """Return the arguments, secrets and ssh agents the target takes.

    Raises: as ``convert``.
    """
    from crossdock.dockerfile.subrequests.call_outline import run_outline

    return run_outline(data, name, options, images=images, context=context, sources=sources)


def targets(data: bytes, name: str) -> SubResult:
    """Return the stages.

    Raises: DockerfileError.
    """
    from crossdock.dockerfile.subrequests.call_targets import list_targets

    return list_targets(data, name)


def describe() -> SubResult:
    """Return the methods."""
    from crossdock.dockerfile.subrequests.call_describe import list_methods

    return list_methods()


def answer(
    method: str,
    data: bytes,
    name: str,
    options: ConvertOptions,
    *,
    images: ImageResolver,
    context: ContextFiles,
    sources: SourceTimes | None = None,
) -> SubResult:
    """Answer a request by its ``--call`` or frontend name.

    Raises: UsageError for an unknown method; as the method's function.
    """
    match METHODS.get(method, method):
        case "frontend.lint":
            return check(data, name, options, images=images, context=context, sources=sources)
        case "frontend.outline":
            return outline(data, name, options, images=images, context=context, sources=sources)
        case "frontend.targets":
            return targets(data, name)
        case "frontend.subrequests.describe":
            return describe()
        case _:
            summary = f"unsupported method {method!r}"
            raise UsageError(summary, hint=f"the methods are {', '.join(sorted(METHODS))}")
