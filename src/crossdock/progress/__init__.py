"""Progress: typed events and the printers that show them."""

from crossdock.progress.events import (
    Event,
    EventSink,
    NullSink,
    Vertex,
    VertexLog,
    VertexStatus,
    VertexWarning,
)

__all__ = ["Event", "EventSink", "NullSink", "Vertex", "VertexLog", "VertexStatus", "VertexWarning"]
