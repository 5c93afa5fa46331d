"""Spans of clients, from OpenTelemetry's protobuf into BuildKit's JSON."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdock.errors import SolveError
from crossdock.llb.wire import integer, message, text, varint
from crossdock.server.otlp import read_spans
from crossdock.server.tracing import TraceRecorder

TRACE = bytes(range(16))


def fixed(number: int, value: int) -> bytes:
    return varint(number << 3 | 1) + struct.pack("<Q", value)


def pair(key: str, value: bytes) -> bytes:
    return text(1, key) + message(2, value)


SPAN = b"".join(
    [
        message(1, TRACE),
        message(2, b"spanspan"),
        message(4, b"parentid"),
        text(5, "a step"),
        integer(6, 3),
        fixed(7, 1_700_000_000_000_000_001),
        fixed(8, 1_700_000_001_000_000_000),
        message(9, pair("s", text(1, "x"))),
        message(9, pair("b", integer(2, 1))),
        message(9, pair("i", integer(3, 7))),
        message(9, pair("f", varint(4 << 3 | 1) + struct.pack("<d", 1.5))),
        message(9, pair("l", message(5, message(1, text(1, "p")) + message(1, integer(3, 2))))),
        message(9, pair("raw", message(7, b"bytes"))),
        message(11, fixed(1, 5) + text(2, "an event")),
        message(13, message(1, TRACE) + message(2, b"linklink")),
        message(15, text(2, "broken") + integer(3, 2)),
    ]
)
REQUEST = message(
    1,
    message(1, message(1, pair("service.name", text(1, "buildx"))))
    + message(2, message(1, text(1, "lib") + text(2, "v1")) + message(2, SPAN)),
)


def test_everything_of_a_span_is_read() -> None:
    (span,) = read_spans(REQUEST)
    assert span["Name"] == "a step"
    assert span["SpanContext"]["TraceID"] == TRACE.hex()
    assert span["Parent"]["SpanID"] == b"parentid".hex()
    assert (span["SpanKind"], span["StartTime"]) == (3, "2023-11-14T22:13:20.000000001Z")
    values = {a["Key"]: (a["Value"]["Type"], a["Value"]["Value"]) for a in span["Attributes"]}
    assert values == {
        "s": ("STRING", "x"),
        "b": ("BOOL", True),
        "i": ("INT64", 7),
        "f": ("FLOAT64", 1.5),
        "l": ("STRINGSLICE", ["p", "2"]),
    }
    assert span["Events"][0]["Name"] == "an event"
    assert span["Links"][0]["SpanContext"]["SpanID"] == b"linklink".hex()
    assert span["Status"] == {"Code": "Error", "Description": "broken"}
    assert span["Resource"][0]["Value"]["Value"] == "buildx"
    assert span["InstrumentationLibrary"]["Name"] == "lib"


@given(st.binary(max_size=200))
def test_rubbish_is_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(SolveError):
        read_spans(data)


@given(st.integers(0, len(REQUEST) - 1))
def test_a_cut_request_is_read_or_refused(size: int) -> None:
    with contextlib.suppress(SolveError):
        read_spans(REQUEST[:size])


def test_a_wrong_fixed_number_is_refused() -> None:
    span = message(1, TRACE) + message(7, b"123")
    with pytest.raises(SolveError, match="fixed number"):
        read_spans(message(1, message(2, message(2, span))))


def test_spans_go_to_the_builds_of_their_trace() -> None:
    recorder = TraceRecorder()
    mine = recorder.begin(f"00-{TRACE.hex()}-{b'parentid'.hex()}-01")
    other = recorder.begin("nonsense")
    recorder.export(REQUEST)
    assert b"a step" in mine.encode()
    assert other.encode() == b""
    mine.close()
    before = mine.encode()
    recorder.export(REQUEST)
    assert mine.encode() == before
