"""Builds whose ``# syntax=`` names an image: the server's services run in this process, and are asked as any daemon is.

So frontends in images are run in one way everywhere. Contexts, secrets, agents and outputs take the session's way. What
fails is raised as on this builder always, not as what has come over an API.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

from crossdock.builders.attributes import entitlements
from crossdock.builders.drivers.buildkit import BuildKitDriver
from crossdock.builders.embedded.attests import asks_for_attestations, metadata_mode
from crossdock.builders.embedded.explain import Explainer
from crossdock.builders.embedded.inputs import STDIN
from crossdock.builders.embedded.outputs import clamping
from crossdock.buildkit.client import Client
from crossdock.buildkit.rpc.status import RpcError
from crossdock.errors import CrossdockError, InternalError, NotSupported, RemoteError, SolveError
from crossdock.record import replace
from crossdock.server.inprocess import serving

if TYPE_CHECKING:
    from collections.abc import Callable

    from crossdock.builders.embedded.inputs import Inputs
    from crossdock.builders.request import BuildRequest
    from crossdock.builders.result import BuildResult
    from crossdock.buildkit.transport import ByteStream
    from crossdock.cancel import CancelToken
    from crossdock.engine.facade import Engine
    from crossdock.progress.events import EventSink
    from crossdock.server.inprocess import Services

__all__ = ["build_by_image"]

_NAME = "the embedded builder"


def build_by_image(
    engine: Engine, request: BuildRequest, inputs: Inputs, image: str, sink: EventSink, cancel: CancelToken
) -> BuildResult:
    """Build, or answer a question, by the frontend in ``image``; ``inputs`` hold what came on standard input.

    Raises: everything a build can fail with; SolveError for what the frontend itself reports.
    """
    request = _as_here(request)
    granted = frozenset(name.partition("=")[0] for name in entitlements(request))
    explainer = Explainer(request)
    try:
        with serving(engine, granted, recorder=explainer) as services:
            try:
                result = _Driver(services.dial, inputs).build(request, sink, cancel)
            except CrossdockError as exc:
                cancel.check()
                raise _own(exc, services, image) from exc
    finally:
        why = explainer.finish(engine.store)
    if request.explain:
        result = replace(result, metadata={**result.metadata, "crossdock.explain": why})
    return result


def _as_here(request: BuildRequest) -> BuildRequest:
    """Ask for what this builder gives.

    No provenance in outputs unless it is asked for, and in the metadata with it; with an epoch, clamped times.
    """
    mode = request.metadata_provenance
    if not mode:
        wanted = asks_for_attestations(request)
        mode = metadata_mode(wanted=wanted) if wanted or "provenance" not in request.attests else ""
    outputs = request.outputs
    if request.build_args.get("SOURCE_DATE_EPOCH"):
        outputs = tuple(replace(one, attrs=clamping(one.type, one.attrs)) for one in outputs)
    attests = {"provenance": None, **request.attests}
    return replace(request, attests=attests, metadata_provenance=mode, outputs=outputs)


def _own(error: CrossdockError, services: Services, image: str) -> CrossdockError:
    """Return the error as it was before it went through calls."""
    status = _status(error)
    if status is None:
        return error
    found = services.origin(status.message)
    if found is not None:
        if found.source is None:
            found.source = error.source  # the frontend knew where
        return found
    if not isinstance(error, RemoteError):
        return error
    summary = status.message
    if status.code == "INTERNAL":
        return InternalError(summary)
    if status.code == "UNIMPLEMENTED":
        hint = f"the frontend {image} does not have it, or asks for what this version lacks"
        return NotSupported(summary, hint=hint)
    return SolveError(summary, detail=error.detail, hint=error.hint, source=error.source, vertex=error.vertex)


def _status(error: BaseException | None) -> RpcError | None:
    """Return the status of the call that an error comes from."""
    while error is not None:
        if isinstance(error, RpcError):
            return error
        error = error.__cause__
    return None


class _Driver(BuildKitDriver):
    """The services in this process, as a node."""

    def __init__(self, dial: Callable[[], ByteStream], inputs: Inputs) -> None:
        super().__init__(lambda: Client(dial, name=_NAME), name=_NAME, path="")
        self._inputs = inputs

    def standard_input(self) -> BinaryIO:
        """Open the archive: it has been read, to see what frontend it asks for."""
        return (self._inputs.directories[STDIN] / "context").open("rb")

    def remember(self, ref: str, request: BuildRequest) -> None:
        """Do nothing: no record is kept that could be asked for."""
