"""The trace of a build: a span for the build, one for each of its steps, and those that its client exports.

Spec: W3C Trace Context (``traceparent``); moby/buildkit ``util/tracing/detect`` (recorder).
"""

from __future__ import annotations

import json
import os
import re
import threading
from typing import TYPE_CHECKING

from crossdock._version import __version__
from crossdock.server.otlp import attribute, read_spans, span_context, time_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from crossdock.progress.events import Vertex
    from crossdock.server.otlp import Span

__all__ = ["BuildTrace", "TraceRecorder"]

_PARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
#: spans of clients that are kept for one build
_MAX_SPANS = 5000
_INTERNAL, _SERVER = 1, 2
_RESOURCE = [attribute("service.name", "crossdock"), attribute("service.version", __version__)]
_LIBRARY = {"Name": "crossdock", "Version": __version__, "SchemaURL": ""}


class BuildTrace:
    """What is traced of one build. Safe from any thread."""

    def __init__(self, recorder: TraceRecorder, trace_id: str, parent: str) -> None:
        self.trace_id = trace_id
        self._parent = parent
        self._id = os.urandom(8).hex()
        self._recorder = recorder
        # Single list operations only.
        self._spans: list[Span] = []

    def add(self, span: Span) -> None:
        """Take a span of the client."""
        if len(self._spans) < _MAX_SPANS:
            self._spans.append(span)

    def finish(self, start_ns: int, end_ns: int, *, error: str, steps: Iterable[Vertex]) -> None:
        """Take the spans of the build itself."""
        root = self._span(
            "moby.buildkit.v1.Control/Solve", self._id, self._parent, start_ns, end_ns, error, _SERVER
        )
        self._spans += [root, *(self._step(v) for v in steps if v.started_ns is not None)]

    def encode(self) -> bytes:
        """Return all spans so far as BuildKit stores them."""
        return b"".join(json.dumps(span, indent=2).encode() + b"\n" for span in list(self._spans))

    def close(self) -> None:
        """Take nothing more; idempotent."""
        self._recorder.forget(self)

    def _step(self, vertex: Vertex) -> Span:
        start_ns = vertex.started_ns or 0
        end_ns = vertex.completed_ns or start_ns
        span = self._span(
            vertex.name, os.urandom(8).hex(), self._id, start_ns, end_ns, vertex.error, _INTERNAL
        )
        span["Attributes"] = [attribute("vertex", vertex.digest), attribute("cached", vertex.cached)]
        return span

    def _span(
        self, name: str, own: str, parent: str, start_ns: int, end_ns: int, error: str, kind: int
    ) -> Span:
        return {
            "Name": name,
            "SpanContext": span_context(self.trace_id, own),
            "Parent": span_context(self.trace_id if parent else "", parent),
            "SpanKind": kind,
            "StartTime": time_text(start_ns),
            "EndTime": time_text(end_ns),
            "Attributes": None,
            "Events": None,
            "Links": None,
            "Status": {"Code": "Error" if error else "Unset", "Description": error},
            "DroppedAttributes": 0,
            "DroppedEvents": 0,
            "DroppedLinks": 0,
            "ChildSpanCount": 0,
            "Resource": _RESOURCE,
            "InstrumentationLibrary": _LIBRARY,
        }


class TraceRecorder:
    """Gives spans to the builds whose traces they belong to. Safe from any thread."""

    def __init__(self) -> None:
        # Guards _builds.
        self._lock = threading.Lock()
        self._builds: list[BuildTrace] = []

    def begin(self, traceparent: str = "") -> BuildTrace:
        """Trace a build; ``traceparent`` is the client's header, if it sent one."""
        match = _PARENT.fullmatch(traceparent)
        trace_id, parent = (match[1], match[2]) if match else (os.urandom(16).hex(), "")
        trace = BuildTrace(self, trace_id, parent)
        with self._lock:
            self._builds.append(trace)
        return trace

    def forget(self, trace: BuildTrace) -> None:
        """Give a build no more spans; idempotent."""
        with self._lock:
            self._builds = [one for one in self._builds if one is not trace]

    def export(self, request: bytes) -> None:
        """Take what a client exports; spans of no build under way are dropped. Raises: SolveError when malformed."""
        with self._lock:
            builds = list(self._builds)
        if not builds:
            return
        for span in read_spans(request):
            for build in builds:
                if build.trace_id == span["SpanContext"]["TraceID"]:
                    build.add(span)
