"""``grpc.health.v1.Health``, and the collector of traces that clients send their spans to.

Spec: grpc ``health/v1/health.proto``; OpenTelemetry ``collector/trace/v1``.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from crossdock.server.failures import answering

if TYPE_CHECKING:
    from crossdock.buildkit.rpc.serve import Handler, ServerCall
    from crossdock.server.tracing import TraceRecorder

__all__ = ["handlers"]

#: HealthCheckResponse{status: SERVING}
_SERVING = b"\x08\x01"


def _check(call: ServerCall) -> None:
    call.send(_SERVING)


def _watch(call: ServerCall) -> None:
    gone = threading.Event()
    call.on_gone(gone.set)
    call.send(_SERVING)
    gone.wait()


def _export(traces: TraceRecorder) -> Handler:
    def export(call: ServerCall) -> None:
        with answering():
            for request in call.messages():
                traces.export(request)
        call.send(b"")

    return export


def handlers(traces: TraceRecorder) -> dict[str, Handler]:
    """Return the methods of both services."""
    return {
        "/grpc.health.v1.Health/Check": _check,
        "/grpc.health.v1.Health/Watch": _watch,
        "/opentelemetry.proto.collector.trace.v1.TraceService/Export": _export(traces),
    }
