"""Content stores of clients: OCI layouts that are read, and layouts that are written for ``oci`` with ``tar=false``.

Spec: containerd ``services/content/v1``; moby/buildkit ``session/content`` (metadata ``buildkit-attachable-store-id``).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

import grpc

from crossdock.buildkit.details import rpc_code
from crossdock.buildkit.proto import content_pb2
from crossdock.errors import ContextError
from crossdock.server.streams import session_failure

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from crossdock.cancel import CancelToken
    from crossdock.image.digest import Digest
    from crossdock.server.sessions import ClientSession, SessionManager

__all__ = ["ClientLayouts", "write_blob"]

_READ = "/containerd.services.content.v1.Content/Read"
_WRITE = "/containerd.services.content.v1.Content/Write"
_BLOCK = 1 << 20


class ClientLayouts(Mapping[str, "Callable[[Digest], BinaryIO]"]):
    """OCI layouts of a client by name: what opens their blobs. Whether there is one shows when it is read."""

    def __init__(self, sessions: SessionManager, session_id: str, cancel: CancelToken) -> None:
        self._sessions = sessions
        self._session_id = session_id
        self._cancel = cancel

    def __getitem__(self, name: str) -> Callable[[Digest], BinaryIO]:
        def open_blob(digest: Digest, /) -> BinaryIO:
            session = self._sessions.get(self._session_id, self._cancel)
            return io.BufferedReader(_Reader(session, f"oci:{name}", digest, self._cancel), _BLOCK)

        return open_blob

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        # What there is cannot be listed, only asked for.
        return True


class _Reader(io.RawIOBase):
    """A blob of a client's store as a file."""

    def __init__(self, session: ClientSession, store: str, digest: Digest, cancel: CancelToken) -> None:
        self._session = session
        self._what = f"reading {digest} of the client's {store}"
        if not session.supports(_READ):
            summary = f"{self._what}: the client offers no content store"
            raise ContextError(summary)
        stub: Any = session.channel.unary_stream(
            _READ,
            request_serializer=content_pb2.ReadContentRequest.SerializeToString,
            response_deserializer=content_pb2.ReadContentResponse.FromString,
        )
        try:
            self._call = stub(
                content_pb2.ReadContentRequest(digest=digest),
                metadata=(("buildkit-attachable-store-id", store),),
            )
        except ValueError as exc:
            raise session.lost(self._what) from exc
        self._unsubscribe = cancel.on_cancel(self._call.cancel)
        self._cancel = cancel
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        if not self._rest:
            try:
                self._rest = next(self._call).data
            except StopIteration:
                return 0
            except grpc.RpcError as exc:
                self._cancel.check()
                raise session_failure(self._session, exc, self._what) from exc
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        if not self.closed:
            self._unsubscribe()
            self._call.cancel()
        super().close()


def write_blob(session: ClientSession, store: str, digest: str, path: Path, cancel: CancelToken) -> None:
    """Write a file as a blob of a client's store, unless it has it.

    Raises: ContextError with the client's words; SessionLost; OSError reading; the token's cause.
    """
    what = f"writing {digest} to the client"
    if not session.supports(_WRITE):
        summary = f"{what}: the client offers no content store"
        raise ContextError(summary)
    size = path.stat().st_size
    stub: Any = session.channel.stream_stream(
        _WRITE,
        request_serializer=content_pb2.WriteContentRequest.SerializeToString,
        response_deserializer=content_pb2.WriteContentResponse.FromString,
    )

    def requests() -> Iterator[content_pb2.WriteContentRequest]:
        common: dict[str, Any] = {"ref": f"crossdock-{digest}", "total": size, "expected": digest}
        offset = 0
        with path.open("rb") as file:
            while data := file.read(_BLOCK):
                yield content_pb2.WriteContentRequest(
                    action=content_pb2.WRITE, offset=offset, data=data, **common
                )
                offset += len(data)
        yield content_pb2.WriteContentRequest(action=content_pb2.COMMIT, offset=offset, **common)

    try:
        call = stub(requests(), metadata=(("buildkit-attachable-store-id", store),))
    except ValueError as exc:
        raise session.lost(what) from exc
    try:
        with cancel.waking(call.cancel):
            for _ in call:
                pass
    except grpc.RpcError as exc:
        cancel.check()
        if rpc_code(exc) != "ALREADY_EXISTS":
            raise session_failure(session, exc, what) from exc
