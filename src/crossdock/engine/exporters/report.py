"""Progress of an export: one vertex per exporter, one status per stage, in BuildKit's words."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from crossdock.errors import CrossdockError
from crossdock.hashing import sha256
from crossdock.progress.events import Vertex, VertexLog, VertexStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from crossdock.progress.events import EventSink

__all__ = ["Report", "reported"]

_INTERVAL_NS = 100_000_000


class Report:
    """Emits for one vertex. Safe from any thread."""

    def __init__(self, sink: EventSink, vertex: str) -> None:
        self._sink = sink
        self.vertex = vertex

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show ``name`` as running for the length of the block."""
        started = time.time_ns()
        self._status(name, "", started, None, 0, 0)
        try:
            yield
        finally:
            self._status(name, "", started, time.time_ns(), 0, 0)

    def note(self, text: str) -> None:
        """Write a line to the vertex's log."""
        self._sink.emit(
            VertexLog(vertex=self.vertex, stream=2, data=f"{text}\n".encode(), timestamp_ns=time.time_ns())
        )

    @contextmanager
    def transfer(self, what: str, action: str, total: int = 0) -> Iterator[Callable[[int], None]]:
        """Show bytes moved; yields a function that takes the position, called as often as one likes.

        With a ``total`` nothing is shown before something moves: what the other side has needs no line.
        """
        started = time.time_ns()
        latest = [0, 0]  # when it was shown, where it was

        def progress(position: int) -> None:
            now = time.time_ns()
            latest[1] = position
            if now - latest[0] >= _INTERVAL_NS:
                latest[0] = now
                self._status(what, action, started, None, position, total)

        if not total:
            progress(0)
        yield progress
        if latest[0]:
            self._status(what, action, started, time.time_ns(), total or latest[1], total)

    def _status(
        self, what: str, action: str, started: int, completed: int | None, current: int, total: int
    ) -> None:
        self._sink.emit(
            VertexStatus(
                id=what,
                vertex=self.vertex,
                name=action,
                current=current,
                total=total,
                timestamp_ns=completed or time.time_ns(),
                started_ns=started,
                completed_ns=completed,
            )
        )


@contextmanager
def reported(sink: EventSink, name: str, key: str) -> Iterator[Report]:
    """Show a vertex for the length of the block; ``key`` tells it from others of the same name.

    A vertex may be entered again under the same key: it is then shown as running once more.
    """
    vertex = "sha256:" + sha256(f"export\0{key}\0{name}".encode()).hexdigest()
    started = time.time_ns()
    sink.emit(Vertex(digest=vertex, name=name, started_ns=started))
    error = ""
    try:
        yield Report(sink, vertex)
    except BaseException as exc:
        error = exc.summary if isinstance(exc, CrossdockError) else str(exc) or type(exc).__name__
        raise
    finally:
        sink.emit(
            Vertex(digest=vertex, name=name, started_ns=started, completed_ns=time.time_ns(), error=error)
        )
