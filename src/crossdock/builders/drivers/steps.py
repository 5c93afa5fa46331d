"""Show what a driver does as build steps."""

from __future__ import annotations

import hashlib
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from crossdock.progress import Vertex, VertexLog, VertexStatus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from crossdock.progress import EventSink

__all__ = ["Step"]


class Step:
    """A step that is shown while a ``with`` block runs; its parts are shown below it."""

    def __init__(self, sink: EventSink, name: str) -> None:
        self._sink = sink
        self._name = name
        self._digest = "sha256:" + hashlib.sha256(f"step:{name}".encode()).hexdigest()
        self._started = 0

    def __enter__(self) -> Self:
        self._started = time.time_ns()
        self._sink.emit(Vertex(digest=self._digest, name=self._name, started_ns=self._started))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sink.emit(
            Vertex(
                digest=self._digest,
                name=self._name,
                started_ns=self._started,
                completed_ns=time.time_ns(),
                error=str(value) if value is not None else "",
            )
        )

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Show a part of the step."""
        started = time.time_ns()
        self._status(name, started, None)
        yield
        self._status(name, started, time.time_ns())

    def log(self, data: bytes) -> None:
        """Show output."""
        self._sink.emit(VertexLog(vertex=self._digest, stream=2, data=data, timestamp_ns=time.time_ns()))

    def _status(self, name: str, started: int, completed: int | None) -> None:
        self._sink.emit(
            VertexStatus(
                id=name,
                vertex=self._digest,
                name=name,
                timestamp_ns=time.time_ns(),
                started_ns=started,
                completed_ns=completed,
            )
        )
