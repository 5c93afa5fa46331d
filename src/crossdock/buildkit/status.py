"""BuildKit's status stream as our progress events.

Spec: moby/buildkit ``api/services/control/control.proto``, StatusResponse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.errors import Position, SourceFile, SourceRange
from crossdock.progress import Vertex, VertexLog, VertexStatus, VertexWarning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.timestamp_pb2 import Timestamp

    from crossdock.buildkit.proto import control_pb2
    from crossdock.progress import Event

__all__ = ["events"]


def events(response: control_pb2.StatusResponse) -> Iterator[Event]:
    """Yield the events of one batch, vertices first."""
    for v in response.vertexes:
        yield Vertex(
            digest=v.digest,
            name=v.name,
            inputs=tuple(v.inputs),
            started_ns=_time(v.started) if v.HasField("started") else None,
            completed_ns=_time(v.completed) if v.HasField("completed") else None,
            cached=v.cached,
            error=v.error,
            progress_group=v.progressGroup.id,
            progress_group_name=v.progressGroup.name,
        )
    for s in response.statuses:
        yield VertexStatus(
            id=s.ID,
            vertex=s.vertex,
            name=s.name,
            current=s.current,
            total=s.total,
            timestamp_ns=_time(s.timestamp),
            started_ns=_time(s.started) if s.HasField("started") else None,
            completed_ns=_time(s.completed) if s.HasField("completed") else None,
        )
    for log in response.logs:
        yield VertexLog(vertex=log.vertex, stream=log.stream, data=log.msg, timestamp_ns=_time(log.timestamp))
    for w in response.warnings:
        yield VertexWarning(
            vertex=w.vertex,
            level=w.level,
            short=w.short.decode(errors="replace"),
            detail=tuple(d.decode(errors="replace") for d in w.detail),
            url=w.url,
            source=_source(w),
        )


def _time(stamp: Timestamp) -> int:
    return stamp.seconds * 1_000_000_000 + stamp.nanos


def _source(warning: control_pb2.VertexWarning) -> SourceRange | None:
    if not warning.ranges:
        return None
    file = SourceFile(warning.info.filename, warning.info.data.decode(errors="replace"))
    start = min(Position(r.start.line, r.start.character) for r in warning.ranges)
    end = max(Position(r.end.line, r.end.character) for r in warning.ranges)
    return SourceRange(file, start, end)
