"""``grpc.health.v1.Health``, and the collector of traces that clients send their spans to.

Spec: grpc ``health/v1/health.proto``; OpenTelemetry ``collector/trace/v1``.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["handlers"]

#: HealthCheckResponse{status: SERVING}
_SERVING = b"\x08\x01"


def _check(_request: bytes, _context: grpc.ServicerContext) -> bytes:
    return _SERVING


def _watch(_request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    yield _SERVING
    gone = threading.Event()
    if context.add_callback(gone.set):
        gone.wait()


def _export(_request: bytes, _context: grpc.ServicerContext) -> bytes:
    # As BuildKit without a collector behind it: spans are taken and go nowhere.
    return b""


def handlers() -> tuple[grpc.GenericRpcHandler[Any, Any], ...]:
    """Return both services for a gRPC server."""
    return (
        grpc.method_handlers_generic_handler(
            "grpc.health.v1.Health",
            {
                "Check": grpc.unary_unary_rpc_method_handler(_check),
                "Watch": grpc.unary_stream_rpc_method_handler(_watch),
            },
        ),
        grpc.method_handlers_generic_handler(
            "opentelemetry.proto.collector.trace.v1.TraceService",
            {"Export": grpc.unary_unary_rpc_method_handler(_export)},
        ),
    )
