"""``containerd.services.content.v1.Content``: blobs of the history and of the store, to read.

Spec: containerd ``api/services/content/v1``; buildx reads logs and attestations of past builds here.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, BinaryIO

from crossdock.buildkit.proto import content_pb2
from crossdock.buildkit.rpc.serve import unary
from crossdock.buildkit.rpc.status import UNIMPLEMENTED, RpcError
from crossdock.errors import DigestMismatch
from crossdock.image.digest import parse_digest
from crossdock.server.failures import Missing, answering
from crossdock.server.methods import one_request

if TYPE_CHECKING:
    from crossdock.buildkit.rpc.serve import Handler, ServerCall
    from crossdock.engine.facade import Engine
    from crossdock.server.history import History

__all__ = ["handlers"]

_BLOCK = 1 << 20


class _Content:
    def __init__(self, engine: Engine, history: History) -> None:
        self._engine = engine
        self._history = history

    def info(self, request: content_pb2.InfoRequest, _call: ServerCall) -> content_pb2.InfoResponse:
        """Describe a blob."""
        with answering():
            size = self._size(request.digest)
            return content_pb2.InfoResponse(info=content_pb2.Info(digest=request.digest, size=size))

    def read(self, request: content_pb2.ReadContentRequest, call: ServerCall) -> None:
        """Read a blob, or a part of it."""
        with answering():
            size = self._size(request.digest)
            at = max(0, request.offset)
            end = min(size, at + request.size) if request.size > 0 else size
            with self._open(request.digest, at) as file:
                while at < end and (data := file.read(min(_BLOCK, end - at))):
                    call.send(content_pb2.ReadContentResponse(offset=at, data=data).SerializeToString())
                    at += len(data)

    def _open(self, digest: str, at: int) -> BinaryIO:
        recorded = self._history.blob(digest)
        if recorded is not None:
            return BytesIO(recorded[at:])
        return self._engine.store.content.open_at(parse_digest(digest), at)

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


def _refuse(_call: ServerCall) -> None:
    raise RpcError(UNIMPLEMENTED, "the content store of this server can only be read")


def handlers(engine: Engine, history: History) -> dict[str, Handler]:
    """Return the service's methods."""
    content = _Content(engine, history)
    methods: dict[str, Handler] = {
        "Info": unary(content_pb2.InfoRequest, content.info),
        "Read": one_request(content_pb2.ReadContentRequest, content.read),
        **dict.fromkeys(("Update", "List", "Delete", "Status", "ListStatuses", "Write", "Abort"), _refuse),
    }
    return {f"/containerd.services.content.v1.Content/{name}": method for name, method in methods.items()}
