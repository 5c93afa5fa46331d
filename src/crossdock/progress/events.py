"""Typed progress events, in the shape of BuildKit's ``SolveStatus``.

Both engines emit these; printers, JSON lines and API callers subscribe. An event is a
snapshot: a later :class:`Vertex` or :class:`VertexStatus` of the same id replaces the earlier.
Times are nanoseconds since the epoch.

Spec: moby/buildkit ``api/services/control/control.proto``, StatusResponse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

from crossdock.record import Record

if TYPE_CHECKING:
    from crossdock.errors import SourceRange

__all__ = ["Event", "EventSink", "NullSink", "Vertex", "VertexLog", "VertexStatus", "VertexWarning"]


class Vertex(Record):
    """State of one step."""

    digest: str
    #: as displayed, e.g. ``[linux/arm64 build 2/4] RUN make``
    name: str
    inputs: tuple[str, ...] = ()
    started_ns: int | None = None
    completed_ns: int | None = None
    cached: bool = False
    #: empty while all is well
    error: str = ""
    #: platform the step is for, ``""`` when it has none (not on BuildKit's wire)
    platform: str = ""
    #: id and name of the group this vertex is displayed as part of
    progress_group: str = ""
    progress_group_name: str = ""
    internal: bool = False


class VertexStatus(Record):
    """Progress of a part of a step: a transfer, an extraction, an export stage."""

    id: str
    vertex: str
    name: str = ""
    #: bytes or items done / in all; 0 when unknown
    current: int = 0
    total: int = 0
    timestamp_ns: int = 0
    started_ns: int | None = None
    completed_ns: int | None = None


class VertexLog(Record):
    """Raw output of a step; ``data`` may end in the middle of a line or character."""

    vertex: str
    #: 1 stdout, 2 stderr
    stream: int
    data: bytes
    timestamp_ns: int = 0


class VertexWarning(Record):
    """A warning, shown once."""

    vertex: str
    level: int
    short: str
    detail: tuple[str, ...] = ()
    url: str = ""
    source: SourceRange | None = None


Event: TypeAlias = Vertex | VertexStatus | VertexLog | VertexWarning


class EventSink(Protocol):
    """Receives events; called from several threads, must not block for long or raise."""

    def emit(self, event: Event, /) -> None:
        """Take one event."""
        ...


class NullSink:
    """Drops every event."""

    __slots__ = ()

    def emit(self, event: Event, /) -> None:
        """Drop the event."""
