"""Steps that are not vertices of the graph: reading the Dockerfile, resolving images, booting."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from crossdock.hashing import sha256
from crossdock.progress.events import Vertex, VertexLog, VertexStatus, VertexWarning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crossdock.dockerfile.lint import LintWarning
    from crossdock.progress.events import Event, EventSink

__all__ = ["EventKeeper", "ShownStep", "lint_warning", "shown"]


def lint_warning(vertex: str, warning: LintWarning) -> VertexWarning:
    """Return a finding of the build checks as the event that shows it at a step."""
    return VertexWarning(
        vertex=vertex,
        level=1,
        short=warning.short,
        detail=(warning.description,),
        url=warning.url,
        source=warning.where,
    )


class ShownStep:
    """A step under way."""

    __slots__ = ("_sink", "digest", "started_ns")

    def __init__(self, sink: EventSink, digest: str) -> None:
        self._sink = sink
        self.digest = digest
        self.started_ns = time.time_ns()

    def log(self, text: str) -> None:
        """Show a line of output."""
        event = VertexLog(
            vertex=self.digest, stream=1, data=text.encode() + b"\n", timestamp_ns=time.time_ns()
        )
        self._sink.emit(event)

    def transferred(self, what: str, size_bytes: int) -> None:
        """Show a finished transfer."""
        now = time.time_ns()
        self._sink.emit(
            VertexStatus(
                id=what,
                vertex=self.digest,
                current=size_bytes,
                timestamp_ns=now,
                started_ns=self.started_ns,
                completed_ns=now,
            )
        )


@contextmanager
def shown(sink: EventSink, name: str) -> Iterator[ShownStep]:
    """Show a step for the length of a block; an exception becomes its error."""
    digest = "sha256:" + sha256(name.encode() + os.urandom(8)).hexdigest()
    step = ShownStep(sink, digest)

    def emit(completed_ns: int | None, error: str = "") -> None:
        sink.emit(
            Vertex(
                digest=digest, name=name, started_ns=step.started_ns, completed_ns=completed_ns, error=error
            )
        )

    emit(None)
    try:
        yield step
    except BaseException as exc:
        emit(time.time_ns(), str(exc) or type(exc).__name__)
        raise
    emit(time.time_ns())


class EventKeeper:
    """Passes events on and keeps what the end of a build needs: the warnings, and the first step that failed."""

    __slots__ = ("_sink", "failed", "warnings")

    def __init__(self, sink: EventSink) -> None:
        self._sink = sink
        self.warnings: list[VertexWarning] = []
        self.failed: Vertex | None = None

    def emit(self, event: Event) -> None:
        """Take one event; from any thread."""
        if isinstance(event, VertexWarning):
            self.warnings.append(event)
        elif isinstance(event, Vertex) and event.error and self.failed is None:
            self.failed = event
        self._sink.emit(event)
