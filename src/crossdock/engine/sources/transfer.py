"""Progress of transfers and extractions, in BuildKit's shape: one status per blob, updated now and then."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from crossdock.progress.events import VertexStatus

if TYPE_CHECKING:
    from types import TracebackType

    from crossdock.progress.events import EventSink

__all__ = ["Transfer"]

_EVERY_NS = 100_000_000


class Transfer:
    """One status of a vertex: started on entry, completed on success; not thread-safe.

    A failed transfer is never reported complete: the vertex's error says what happened.
    """

    __slots__ = ("_current", "_id", "_last_ns", "_sink", "_started_ns", "_total", "_vertex")

    def __init__(self, sink: EventSink, vertex: str, status_id: str, *, total: int = 0) -> None:
        """``total`` in bytes, 0 when there is nothing to count."""
        self._sink = sink
        self._vertex = vertex
        self._id = status_id
        self._total = total
        self._current = 0
        self._started_ns = 0
        self._last_ns = 0

    def __enter__(self) -> Transfer:
        self._started_ns = time.time_ns()
        self._emit(self._started_ns)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if exc is None:
            self._current = self._total
            now = time.time_ns()
            self._emit(now, completed_ns=now)

    def at(self, position: int) -> None:
        """Note the position in bytes; reported at most ten times a second."""
        self._current = position
        now = time.time_ns()
        if now - self._last_ns >= _EVERY_NS:
            self._emit(now)

    def _emit(self, now: int, *, completed_ns: int | None = None) -> None:
        self._last_ns = now
        self._sink.emit(
            VertexStatus(
                id=self._id,
                vertex=self._vertex,
                current=self._current,
                total=self._total,
                timestamp_ns=now,
                started_ns=self._started_ns,
                completed_ns=completed_ns,
            )
        )
