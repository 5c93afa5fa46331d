"""``containerd.services.content.v1.Content``: blobs of the history and of the store, to read.

Spec: containerd ``api/services/content/v1``; buildx reads logs and attestations of past builds here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from crossdock.buildkit.proto import content_pb2
from crossdock.errors import DigestMismatch, NotSupported
from crossdock.image.digest import parse_digest
from crossdock.server.failures import Missing, answering

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crossdock.engine.facade import Engine
    from crossdock.server.history import History

__all__ = ["handlers"]

_BLOCK = 1 << 20


class _Content:
    def __init__(self, engine: Engine, history: History) -> None:
        self._engine = engine
        self._history = history

    def info(
        self, request: content_pb2.InfoRequest, context: grpc.ServicerContext
    ) -> content_pb2.InfoResponse:
        """Describe a blob."""
        with answering(context):
            size = self._size(request.digest)
            return content_pb2.InfoResponse(info=content_pb2.Info(digest=request.digest, size=size))

    def read(
        self, request: content_pb2.ReadContentRequest, context: grpc.ServicerContext
    ) -> Iterator[content_pb2.ReadContentResponse]:
        """Read a blob, or a part of it."""
        with answering(context):
            size = self._size(request.digest)
            at = max(0, request.offset)
            end = min(size, at + request.size) if request.size > 0 else size
            recorded = self._history.blob(request.digest)
            if recorded is not None:
                for start in range(at, end, _BLOCK):
                    data = recorded[start : min(end, start + _BLOCK)]
                    yield content_pb2.ReadContentResponse(offset=start, data=data)
                return
            with self._engine.store.content.open_at(parse_digest(request.digest), at) as file:
                while at < end and (data := file.read(min(_BLOCK, end - at))):
                    yield content_pb2.ReadContentResponse(offset=at, data=data)
                    at += len(data)

    def refuse(self, _request: object, context: grpc.ServicerContext) -> Any:
        """Say that the store is not written from outside."""
        with answering(context):
            summary = "the content store of this server can only be read"
            raise NotSupported(summary)

    def _size(self, digest: str) -> int:
        recorded = self._history.blob(digest)
        if recorded is not None:
            return len(recorded)
        try:
            size = self._engine.store.content.size(parse_digest(digest))
        except DigestMismatch:
            size = None
        if size is None:
            summary = f"content {digest}: not found"
            raise Missing(summary)
        return size


def handlers(engine: Engine, history: History) -> grpc.GenericRpcHandler[Any, Any]:
    """Return the service for a gRPC server."""
    content = _Content(engine, history)
    pb = content_pb2

    def refuse_stream(_request: object, context: grpc.ServicerContext) -> Iterator[Any]:
        content.refuse(None, context)
        yield from ()

    refused = {
        name: grpc.unary_unary_rpc_method_handler(content.refuse)
        for name in ("Update", "Delete", "Status", "ListStatuses", "Abort")
    }
    return grpc.method_handlers_generic_handler(
        "containerd.services.content.v1.Content",
        {
            **refused,
            "Info": grpc.unary_unary_rpc_method_handler(
                content.info,
                request_deserializer=pb.InfoRequest.FromString,
                response_serializer=pb.InfoResponse.SerializeToString,
            ),
            "Read": grpc.unary_stream_rpc_method_handler(
                content.read,
                request_deserializer=pb.ReadContentRequest.FromString,
                response_serializer=pb.ReadContentResponse.SerializeToString,
            ),
            "List": grpc.unary_stream_rpc_method_handler(refuse_stream),
            "Write": grpc.stream_stream_rpc_method_handler(refuse_stream),
        },
    )
