"""Builds whose ``# syntax=`` names an image: the server's services run in this process, and are asked as any daemon is.

So frontends in images are run in one way everywhere. Contexts, secrets, agents and outputs take the session's way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

from crossdock.builders.attributes import entitlements
from crossdock.builders.drivers.buildkit import BuildKitDriver
from crossdock.builders.embedded.inputs import STDIN
from crossdock.buildkit.client import Client
from crossdock.errors import NotSupported
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

__all__ = ["build_by_image"]

_NAME = "the embedded builder"


def build_by_image(
    engine: Engine, request: BuildRequest, inputs: Inputs, image: str, sink: EventSink, cancel: CancelToken
) -> BuildResult:
    """Build, or answer a question, by the frontend in ``image``; ``inputs`` hold what came on standard input.

    Raises: NotSupported for ``--explain``; as a build on a BuildKit daemon.
    """
    if request.explain:
        summary = f"--explain cannot tell of builds by the frontend image {image}"
        raise NotSupported(summary, hint="build without --explain")
    # As everywhere on this builder: no provenance unless it is asked for.
    request = replace(request, attests={"provenance": None, **request.attests})
    granted = frozenset(name.partition("=")[0] for name in entitlements(request))
    with serving(engine, granted) as dial:
        return _Driver(dial, inputs).build(request, sink, cancel)


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
