"""The trace of a build as Jaeger's JSON, which its UI and ``history trace`` of buildx show.

A daemon keeps spans as Go's OpenTelemetry SDK writes them, one JSON object after the other.

Spec: docker/buildx ``util/otelutil/jaeger``; jaegertracing ``model/json``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from crossdock.errors import BuilderError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["jaeger_trace"]

_KINDS = {2: "server", 3: "client", 4: "producer", 5: "consumer"}
_NO_SPAN = "0" * 16
_TYPES = {"STRING": "string", "BOOL": "bool", "INT64": "int64", "FLOAT64": "float64"}


def jaeger_trace(raw: bytes) -> dict[str, Any]:
    """Convert the spans that a daemon keeps.

    Raises: BuilderError when they are not what they should be.
    """
    try:
        spans = list(_objects(raw.decode()))
        traces: dict[str, dict[str, Any]] = {}
        for number, span in enumerate(spans):
            identity = span["SpanContext"]["TraceID"]
            trace = traces.setdefault(
                identity, {"traceID": identity, "spans": [], "processes": {}, "warnings": None}
            )
            process = f"p{number}"
            trace["spans"].append(_span(span, process))
            trace["processes"][process] = _process(span)
    except (ValueError, KeyError, TypeError) as exc:
        summary = f"the daemon's trace cannot be read: {exc}"
        raise BuilderError(summary) from exc
    return {"data": list(traces.values())}


def _objects(text: str) -> Iterator[dict[str, Any]]:
    decoder, at = json.JSONDecoder(), 0
    while (rest := text[at:].lstrip()) != "":
        at = len(text) - len(rest)
        value, at = decoder.raw_decode(text, at)
        yield value


def _span(span: dict[str, Any], process: str) -> dict[str, Any]:
    context, parent = span["SpanContext"], span.get("Parent") or {}
    references = []
    if parent.get("SpanID", _NO_SPAN) != _NO_SPAN:
        references.append({"refType": "CHILD_OF", "traceID": parent["TraceID"], "spanID": parent["SpanID"]})
    start, end = _nanoseconds(span["StartTime"]), _nanoseconds(span["EndTime"])
    return {
        "traceID": context["TraceID"],
        "spanID": context["SpanID"],
        "flags": int(context.get("TraceFlags") or "0", 16),
        "operationName": span["Name"],
        "references": references,
        "startTime": start // 1000,
        "duration": (end - start) // 1000,
        "tags": _span_tags(span),
        "logs": [_log(e) for e in span.get("Events") or ()] or None,
        "processID": process,
        "warnings": None,
    }


def _span_tags(span: dict[str, Any]) -> list[dict[str, Any]]:
    tags = [_tag(a) for a in span.get("Attributes") or ()]
    library = span.get("InstrumentationLibrary") or {}
    pairs: list[tuple[str, Any]] = [
        ("otel.library.name", library.get("Name")),
        ("otel.library.version", library.get("Version")),
        ("span.kind", _KINDS.get(span.get("SpanKind", 0))),
    ]
    status = span.get("Status") or {}
    if status.get("Code") in (1, "Error"):
        pairs += [("otel.status_code", "ERROR"), ("otel.status_description", status.get("Description"))]
        tags.append({"key": "error", "type": "bool", "value": True})
    tags += [{"key": k, "type": "string", "value": v} for k, v in pairs if v]
    return tags


def _tag(attribute: dict[str, Any]) -> dict[str, Any]:
    value = attribute["Value"]
    kind = _TYPES.get(value.get("Type", ""))
    if kind is None:
        return {"key": attribute["Key"], "type": "string", "value": json.dumps(value.get("Value"))}
    return {"key": attribute["Key"], "type": kind, "value": value["Value"]}


def _log(event: dict[str, Any]) -> dict[str, Any]:
    fields = [{"key": "event", "type": "string", "value": event["Name"]}]
    fields += [_tag(a) for a in event.get("Attributes") or ()]
    return {"timestamp": _nanoseconds(event["Time"]) // 1000, "fields": fields}


def _process(span: dict[str, Any]) -> dict[str, Any]:
    tags = [_tag(a) for a in span.get("Resource") or ()]
    name = next((t["value"] for t in tags if t["key"] == "service.name"), "unknown")
    return {"serviceName": name, "tags": [t for t in tags if t["key"] != "service.name"]}


def _nanoseconds(text: str) -> int:
    """Read Go's RFC 3339 time, whose fraction has up to nine digits."""
    from datetime import datetime

    head, dot, tail = text.partition(".")
    fraction = "".join(c for c in tail if c.isdigit()) if dot and tail.endswith("Z") else ""
    if dot and not tail.endswith("Z"):
        digits = tail.split("+")[0].split("-")[0]
        fraction, head = digits, head + tail[len(digits) :]
    else:
        head = head.removesuffix("Z") + "+00:00"
    seconds = int(datetime.fromisoformat(head).timestamp())
    return seconds * 1_000_000_000 + int((fraction + "000000000")[:9])
