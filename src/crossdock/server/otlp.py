"""Spans that clients export, read from OpenTelemetry's protobuf into the form in which BuildKit keeps them.

BuildKit stores a build's trace as one JSON object per span, as Go's SDK writes its ``SpanStub``.

Spec: opentelemetry-proto ``collector/trace/v1``, ``trace/v1``, ``common/v1``; opentelemetry-go ``sdk/trace/tracetest``.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from crossdock.errors import SolveError
from crossdock.llb.wire import as_bytes, as_int, as_str, fields

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["attribute", "read_spans", "span_context", "time_text"]

Span = dict[str, Any]
#: the values of each field, in order
_Message = dict[int, list[int | bytes]]
_BILLION = 1_000_000_000
#: code of OTLP -> name in Go
_STATUS = {0: "Unset", 1: "Ok", 2: "Error"}
_NO_SPAN = "0" * 16
_NO_TRACE = "0" * 32


def read_spans(request: bytes) -> list[Span]:
    """Read an ``ExportTraceServiceRequest``. Raises: SolveError when it is malformed."""
    spans: list[Span] = []
    for resource in _messages(_split(request), 1):
        about = next((_attributes(one, 1) for one in _messages(resource, 1)), [])
        for scope in _messages(resource, 2):
            library = next(_messages(scope, 1), {})
            name = {
                "Name": _text(library, 1),
                "Version": _text(library, 2),
                "SchemaURL": _text(scope, 3),
            }
            spans += [_span(one, about, name) for one in _messages(scope, 2)]
    return spans


def span_context(trace_id: str, span_id: str) -> dict[str, Any]:
    """Return what names a span; an empty id stands for none."""
    flags = "01" if span_id else "00"
    return {
        "TraceID": trace_id or _NO_TRACE,
        "SpanID": span_id or _NO_SPAN,
        "TraceFlags": flags,
        "TraceState": "",
        "Remote": False,
    }


def attribute(key: str, value: str | bool | float) -> dict[str, Any]:
    """Return an attribute of a span."""
    kinds: dict[type, str] = {str: "STRING", bool: "BOOL", int: "INT64", float: "FLOAT64"}
    return {"Key": key, "Value": {"Type": kinds[type(value)], "Value": value}}


def time_text(ns: int) -> str:
    """Return a time as Go's JSON has it."""
    import time

    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ns // _BILLION))
    return f"{seconds}.{ns % _BILLION:09d}Z"


def _span(message: _Message, resource: list[Span], library: Span) -> Span:
    status = next(_messages(message, 15), {})
    trace_id = _id(message, 1, _NO_TRACE)
    return {
        "Name": _text(message, 5),
        "SpanContext": span_context(trace_id, _id(message, 2, _NO_SPAN)),
        "Parent": span_context(trace_id, _id(message, 4, "")),
        "SpanKind": _number(message, 6),
        "StartTime": time_text(_fixed(message, 7)),
        "EndTime": time_text(_fixed(message, 8)),
        "Attributes": _attributes(message, 9),
        "Events": [_event(one) for one in _messages(message, 11)] or None,
        "Links": [_link(one) for one in _messages(message, 13)] or None,
        "Status": {"Code": _STATUS.get(_number(status, 3), "Unset"), "Description": _text(status, 2)},
        "DroppedAttributes": _number(message, 10),
        "DroppedEvents": _number(message, 12),
        "DroppedLinks": _number(message, 14),
        "ChildSpanCount": 0,
        "Resource": resource,
        "InstrumentationLibrary": library,
    }


def _event(message: _Message) -> Span:
    return {
        "Name": _text(message, 2),
        "Attributes": _attributes(message, 3),
        "DroppedAttributeCount": _number(message, 4),
        "Time": time_text(_fixed(message, 1)),
    }


def _link(message: _Message) -> Span:
    return {
        "SpanContext": span_context(_id(message, 1, _NO_TRACE), _id(message, 2, _NO_SPAN)),
        "Attributes": _attributes(message, 4),
        "DroppedAttributeCount": _number(message, 5),
    }


def _attributes(message: _Message, number: int) -> list[Span]:
    pairs = ((_text(one, 1), next(_messages(one, 2), {})) for one in _messages(message, number))
    return [{"Key": key, "Value": found} for key, raw in pairs if (found := _value(raw)) is not None]


def _value(message: _Message) -> Span | None:
    """Read an ``AnyValue``; ``None`` for kinds that a Go span cannot have."""
    for number, (value, *_) in message.items():
        match number:
            case 1:
                return {"Type": "STRING", "Value": as_str(value, "an attribute")}
            case 2:
                return {"Type": "BOOL", "Value": bool(as_int(value, "an attribute"))}
            case 3:
                return {"Type": "INT64", "Value": as_int(value, "an attribute")}
            case 4:
                return {"Type": "FLOAT64", "Value": struct.unpack("<d", _eight(value))[0]}
            case 5:
                found = (_value(one) for one in _messages(_split(as_bytes(value, "an attribute")), 1))
                return {"Type": "STRINGSLICE", "Value": [str(v["Value"]) for v in found if v is not None]}
            case _:
                return None
    return {"Type": "STRING", "Value": ""}


def _split(data: bytes) -> _Message:
    """Read a message once, whatever is asked of it."""
    found: _Message = {}
    for number, value in fields(data, "a span"):
        found.setdefault(number, []).append(value)
    return found


def _messages(message: _Message, number: int) -> Iterator[_Message]:
    return (_split(as_bytes(value, "a span")) for value in message.get(number, ()))


def _last(message: _Message, number: int) -> int | bytes | None:
    values = message.get(number)
    return values[-1] if values else None


def _text(message: _Message, number: int) -> str:
    value = _last(message, number)
    return "" if value is None else as_str(value, "a span")


def _number(message: _Message, number: int) -> int:
    value = _last(message, number)
    return 0 if value is None else as_int(value, "a span")


def _fixed(message: _Message, number: int) -> int:
    value = _last(message, number)
    return 0 if value is None else int.from_bytes(_eight(value), "little")


def _id(message: _Message, number: int, absent: str) -> str:
    value = _last(message, number)
    found = "" if value is None else as_bytes(value, "a span").hex()
    return found if len(found) == len(absent or _NO_SPAN) else absent


def _eight(value: int | bytes) -> bytes:
    if not isinstance(value, bytes) or len(value) != 8:
        summary = "malformed trace: a fixed number has another size"
        raise SolveError(summary)
    return value
