"""One JSON object per line, in the shape of BuildKit's ``SolveStatus``.

Spec: moby/buildkit ``client/graph.go``.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from crossdock.progress.events import Vertex, VertexLog, VertexStatus

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TextIO

    from crossdock.errors import SourceRange
    from crossdock.progress.events import Event, VertexWarning

__all__ = ["RawJsonPrinter", "event_to_json"]

_NS = 1_000_000_000


class RawJsonPrinter:
    """Prints every batch of events at once; used by one thread."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def update(self, events: Iterable[Event]) -> None:
        """Print the events as one status."""
        status: dict[str, list[dict[str, Any]]] = {}
        for event in events:
            kind, body = event_to_json(event)
            status.setdefault(kind, []).append(body)
        if status:
            self._out.write(json.dumps(status, separators=(",", ":"), ensure_ascii=False) + "\n")
            self._out.flush()

    def refresh(self) -> None:
        """Nothing waits."""

    def done(self) -> None:
        """Nothing waits."""
        self._out.flush()


def event_to_json(event: Event) -> tuple[str, dict[str, Any]]:
    """Return the list an event belongs to and its object."""
    if isinstance(event, Vertex):
        return "vertexes", _vertex(event)
    if isinstance(event, VertexStatus):
        return "statuses", _status(event)
    if isinstance(event, VertexLog):
        return "logs", {
            "vertex": event.vertex,
            "stream": event.stream,
            "data": base64.b64encode(event.data).decode(),
            "timestamp": _stamp(event.timestamp_ns),
        }
    return "warnings", _warning(event)


def _vertex(event: Vertex) -> dict[str, Any]:
    pairs = (
        ("digest", event.digest),
        ("inputs", list(event.inputs)),
        ("name", event.name),
        ("started", _stamp(event.started_ns)),
        ("completed", _stamp(event.completed_ns)),
        ("cached", event.cached),
        ("error", event.error),
    )
    return {k: v for k, v in pairs if v}


def _status(event: VertexStatus) -> dict[str, Any]:
    body: dict[str, Any] = {"id": event.id, "vertex": event.vertex}
    if event.name:
        body["name"] = event.name
    if event.total:
        body["total"] = event.total
    body["current"] = event.current
    for key, value in (
        ("timestamp", event.timestamp_ns),
        ("started", event.started_ns),
        ("completed", event.completed_ns),
    ):
        if value:
            body[key] = _stamp(value)
    return body


def _warning(event: VertexWarning) -> dict[str, Any]:
    body: dict[str, Any] = {"vertex": event.vertex, "level": event.level, "short": _b64(event.short)}
    if event.detail:
        body["detail"] = [_b64(line) for line in event.detail]
    if event.url:
        body["url"] = event.url
    if event.source is not None:
        body["sourceInfo"] = {"filename": event.source.file.name, "data": _b64(event.source.file.text)}
        body["range"] = [_range(event.source)]
    return body


def _range(source: SourceRange) -> dict[str, Any]:
    ends = {"start": source.start, "end": source.end}
    return {k: {"line": p.line, **({"character": p.column} if p.column else {})} for k, p in ends.items()}


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _stamp(ns: int | None) -> str | None:
    """Format as Go's RFC 3339 with nanoseconds."""
    if not ns:
        return None
    from datetime import UTC, datetime

    seconds, fraction = divmod(ns, _NS)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{fraction:09d}".rstrip("0").rstrip(".") + "Z"
