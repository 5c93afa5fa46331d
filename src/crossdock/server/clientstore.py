"""Content stores of clients: OCI layouts that are read, and layouts that are written for ``oci`` with ``tar=false``.

Spec: containerd ``services/content/v1``; moby/buildkit ``session/content`` (metadata ``buildkit-attachable-store-id``).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

from crossdock.buildkit.proto import content_pb2
from crossdock.buildkit.rpc.messages import prefixed
from crossdock.buildkit.rpc.serve import parsed
from crossdock.buildkit.rpc.status import RpcError
from crossdock.errors import ContextError
from crossdock.server.streams import session_failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from crossdock.buildkit.rpc.channel import Call
    from crossdock.cancel import CancelToken
    from crossdock.engine.remotecache.backend import Readable
    from crossdock.image.digest import Digest
    from crossdock.server.sessions import ClientSession, SessionManager

__all__ = ["ClientLayouts", "open_blob", "write_blob"]

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
        def opened(digest: Digest, /) -> BinaryIO:
            session = self._sessions.get(self._session_id, self._cancel)
            return open_blob(session, f"oci:{name}", digest, self._cancel)

        return opened

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        # What there is cannot be listed, only asked for.
        return True


def open_blob(session: ClientSession, store: str, digest: str, cancel: CancelToken) -> BinaryIO:
    """Open a blob of a client's store for one pass; whether it is there shows when it is read.

    Raises: ContextError when the client offers no store; SessionLost.
    """
    return io.BufferedReader(_Reader(session, store, digest, cancel), _BLOCK)


class _Reader(io.RawIOBase):
    """A blob of a client's store as a file."""

    def __init__(self, session: ClientSession, store: str, digest: str, cancel: CancelToken) -> None:
        self._session = session
        self._what = f"reading {digest} of the client's {store}"
        if not session.supports(_READ):
            summary = f"{self._what}: the client offers no content store"
            raise ContextError(summary)
        self._call = session.start(_READ, (("buildkit-attachable-store-id", store),))
        request = content_pb2.ReadContentRequest(digest=digest)
        try:
            self._call.send_raw(prefixed(request.SerializeToString()), end=True)
        except RpcError as exc:
            raise session_failure(session, exc, self._what) from exc
        self._messages = self._call.messages()
        self._unsubscribe = cancel.on_cancel(self._call.cancel)
        self._cancel = cancel
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        if not self._rest:
            try:
                message = next(self._messages)
                self._rest = parsed(content_pb2.ReadContentResponse, message).data
            except StopIteration:
                return 0
            except RpcError as exc:
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


def write_blob(
    session: ClientSession, store: str, digest: str, source: Readable, size: int, cancel: CancelToken
) -> None:
    """Write what ``source`` gives as a blob of a client's store, unless it has it.

    Raises: ContextError with the client's words; SessionLost; OSError reading; the token's cause.
    """
    what = f"writing {digest} to the client"
    if not session.supports(_WRITE):
        summary = f"{what}: the client offers no content store"
        raise ContextError(summary)
    call = session.start(_WRITE, (("buildkit-attachable-store-id", store),))
    common: dict[str, Any] = {"ref": f"crossdock-{digest}", "total": size, "expected": digest}
    offset = 0
    try:
        with cancel.waking(call.cancel):
            while data := source.read(_BLOCK):
                request = content_pb2.WriteContentRequest(
                    action=content_pb2.WRITE, offset=offset, data=data, **common
                )
                call.send(request.SerializeToString())
                offset += len(data)
            request = content_pb2.WriteContentRequest(action=content_pb2.COMMIT, offset=offset, **common)
            call.send_raw(prefixed(request.SerializeToString()), end=True)
            for _ in call.messages():
                pass
    except RpcError as exc:
        cancel.check()
        # A client that has the blob already ends the call while it is sent, so ask how it ended.
        error = _ended(call, exc)
        if error is not None and error.code != "ALREADY_EXISTS":
            raise session_failure(session, error, what) from exc
    finally:
        call.cancel()


def _ended(call: Call, error: RpcError) -> RpcError | None:
    """Return how a call ended whose sending failed; ``None``: well."""
    try:
        for _ in call.messages():
            pass
    except RpcError as exc:
        return error if exc.code == "CANCELLED" else exc
    return None
