"""The progress of one build, kept so that clients who attach late see all of it.

Events are encoded once, as ``StatusResponse`` messages. Encoded messages joined are one message with all their
parts, so a reader gets whatever has gathered in one piece.

Spec: moby/buildkit ``api/services/control/control.proto``, StatusResponse.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from crossdock.buildkit.proto import control_pb2, ops_pb2
from crossdock.progress.events import Vertex, VertexLog, VertexStatus, VertexWarning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from crossdock.errors import SourceRange
    from crossdock.progress.events import Event

__all__ = ["StatusLog", "encode_event", "source_info"]

_BILLION = 1_000_000_000
#: bytes of one message to a reader
_PIECE = 1 << 20
#: seconds in which events gather before a reader is given them
_GATHER_S = 0.02
#: bytes of output of one step that are kept and shown; BuildKit's limit
_LOG_LIMIT = 2 << 20


class StatusLog:
    """Takes events (an ``EventSink``) and gives them to any number of readers. Safe from any thread."""

    def __init__(self, *, on_event: Callable[[Event], None] | None = None) -> None:
        # Guards everything below; notified when there is more.
        self._changed = threading.Condition()
        self._messages: list[bytes] = []
        self._finished = False
        self._on_event = on_event
        self._logged: dict[str, int] = {}
        self._vertices: dict[str, Vertex] = {}
        self.warnings = 0
        #: first vertex that failed
        self.failed: Vertex | None = None

    def emit(self, event: Event, /) -> None:
        """Take one event."""
        if self._on_event is not None:
            self._on_event(event)
        with self._changed:
            match event:
                case VertexLog():
                    limited = self._limited(event)
                    if limited is None:
                        return
                    event = limited
                case Vertex():
                    self._vertices[event.digest] = event
                    if event.error and self.failed is None:
                        self.failed = event
                case VertexWarning():
                    self.warnings += 1
                case VertexStatus():
                    pass
            self._messages.append(encode_event(event))
            self._changed.notify_all()

    def finish(self) -> None:
        """Say that nothing more comes."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def wake(self) -> None:
        """Have readers look whether they are still wanted."""
        with self._changed:
            self._changed.notify_all()

    def vertices(self) -> list[Vertex]:
        """Return the last state of each step."""
        with self._changed:
            return list(self._vertices.values())

    def counts(self) -> tuple[int, int, int]:
        """Return the number of steps that were cached, of all, and of those completed."""
        steps = self.vertices()
        done = [v for v in steps if v.completed_ns is not None]
        return sum(v.cached for v in steps), len(steps), len(done)

    def read(self, wanted: Callable[[], bool]) -> Iterator[bytes]:
        """Yield everything from the beginning, until the end or until no longer ``wanted``."""
        at = 0
        while True:
            with self._changed:
                while at == len(self._messages) and not self._finished and wanted():
                    self._changed.wait()
                if not wanted():
                    return
                pieces, at = self._take(at)
                ended = self._finished and at == len(self._messages)
            if pieces:
                yield b"".join(pieces)
            if ended:
                return
            with self._changed:
                # Let events gather: a step that writes a lot would else cost a message per line.
                self._changed.wait_for(lambda: self._finished or not wanted(), _GATHER_S)

    def messages(self) -> list[bytes]:
        """Return what there is so far."""
        with self._changed:
            return list(self._messages)

    def _take(self, at: int) -> tuple[list[bytes], int]:
        pieces: list[bytes] = []
        size = 0
        while at < len(self._messages) and (not pieces or size + len(self._messages[at]) <= _PIECE):
            pieces.append(self._messages[at])
            size += len(self._messages[at])
            at += 1
        return pieces, at

    def _limited(self, event: VertexLog) -> VertexLog | None:
        """Cut what a step writes beyond the limit, saying so once."""
        before = self._logged.get(event.vertex, 0)
        self._logged[event.vertex] = before + len(event.data)
        if before + len(event.data) <= _LOG_LIMIT:
            return event
        if before > _LOG_LIMIT:
            return None
        note = f"\n[output clipped, log limit {_LOG_LIMIT // (1 << 20)}MiB reached]\n".encode()
        kept = event.data[: max(0, _LOG_LIMIT - before)]
        return VertexLog(
            vertex=event.vertex, stream=event.stream, data=kept + note, timestamp_ns=event.timestamp_ns
        )


def encode_event(event: Event) -> bytes:
    """Return an event as an encoded ``StatusResponse``."""
    response = control_pb2.StatusResponse()
    match event:
        case Vertex():
            _vertex(response, event)
        case VertexStatus():
            _status(response, event)
        case VertexLog():
            response.logs.add(
                vertex=event.vertex,
                stream=event.stream,
                msg=event.data,
                timestamp=_stamp(event.timestamp_ns or time.time_ns()),
            )
        case VertexWarning():
            warning = response.warnings.add(
                vertex=event.vertex,
                level=event.level,
                short=event.short.encode(),
                detail=[d.encode() for d in event.detail],
                url=event.url,
            )
            if event.source is not None:
                info, ranges = source_info(event.source)
                warning.info.CopyFrom(info)
                warning.ranges.extend(ranges)
    return response.SerializeToString()


def _vertex(response: control_pb2.StatusResponse, event: Vertex) -> None:
    out = response.vertexes.add(
        digest=event.digest, name=event.name, inputs=event.inputs, cached=event.cached, error=event.error
    )
    if event.started_ns is not None:
        out.started.CopyFrom(_stamp(event.started_ns))
    if event.completed_ns is not None:
        out.completed.CopyFrom(_stamp(event.completed_ns))
    if event.progress_group:
        out.progressGroup.id = event.progress_group


def _status(response: control_pb2.StatusResponse, event: VertexStatus) -> None:
    out = response.statuses.add(
        ID=event.id, vertex=event.vertex, name=event.name, current=event.current, total=event.total
    )
    out.timestamp.CopyFrom(_stamp(event.timestamp_ns or time.time_ns()))
    if event.started_ns is not None:
        out.started.CopyFrom(_stamp(event.started_ns))
    if event.completed_ns is not None:
        out.completed.CopyFrom(_stamp(event.completed_ns))


def source_info(source: SourceRange) -> tuple[ops_pb2.SourceInfo, list[ops_pb2.Range]]:
    """Return the file and ranges of a place in a Dockerfile."""
    info = ops_pb2.SourceInfo(
        filename=source.file.name,
        data=source.file.text.encode("utf-8", "surrogateescape"),
        language="Dockerfile",
    )
    # BuildKit's parser makes one range per line.
    ranges = [
        ops_pb2.Range(start=ops_pb2.Position(line=line), end=ops_pb2.Position(line=line))
        for line in range(source.start.line, max(source.start.line, source.end.line) + 1)
    ]
    return info, ranges


def _stamp(ns: int) -> Timestamp:
    return Timestamp(seconds=ns // _BILLION, nanos=ns % _BILLION)
