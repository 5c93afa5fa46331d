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
from crossdock.record import NamedTuple
from crossdock.server.streams import session_failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from crossdock.buildkit.rpc.channel import Call
    from crossdock.cancel import CancelToken
    from crossdock.engine.remotecache.backend import Readable
    from crossdock.image.digest import Digest
    from crossdock.server.sessions import ClientSession, SessionManager

__all__ = ["ClientLayouts", "ListedBlob", "list_blobs", "open_blob", "write_blob"]

_LIST = "/containerd.services.content.v1.Content/List"
_READ = "/containerd.services.content.v1.Content/Read"
_WRITE = "/containerd.services.content.v1.Content/Write"
_BLOCK = 1 << 20
#: blobs of a client's store that are taken note of
_MOST_LISTED = 200_000
_STORE_ID = "buildkit-attachable-store-id"


class ListedBlob(NamedTuple):
    """A blob that a client's store has."""

    size: int
    #: when it was written, by the client's clock
    written_ns: int


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


def list_blobs(session: ClientSession, store: str, cancel: CancelToken) -> dict[str, ListedBlob]:
    """Return what a client's store has, by digest; nothing of a store that has no blobs folder yet.

    Raises: ContextError with the client's words, or when it offers no list; SessionLost; the token's cause.
    """
    what = f"listing the client's {store}"
    if not session.supports(_LIST):
        summary = f"{what}: the client does not offer it"
        raise ContextError(summary)
    call = session.start(_LIST, ((_STORE_ID, store),))
    found: dict[str, ListedBlob] = {}
    try:
        with cancel.waking(call.cancel):
            call.send_raw(prefixed(content_pb2.ListContentRequest().SerializeToString()), end=True)
            for message in call.messages():
                for blob in parsed(content_pb2.ListContentResponse, message).info:
                    written_ns = blob.created_at.seconds * 10**9 + blob.created_at.nanos
                    found[blob.digest] = ListedBlob(blob.size, written_ns)
                if len(found) > _MOST_LISTED:
                    break
    except RpcError as exc:
        cancel.check()
        if exc.code != "NOT_FOUND" and "no such file" not in exc.message:
            raise session_failure(session, exc, what) from exc
    finally:
        call.cancel()
    return found


def open_blob(
    session: ClientSession, store: str, digest: str, cancel: CancelToken, *, size: int = 0
) -> BinaryIO:
    """Open a blob of a client's store for one pass, or its first ``size`` bytes; whether it is there shows when it is read.

    Raises: ContextError when the client offers no store; SessionLost.
    """
    return io.BufferedReader(_Reader(session, store, digest, cancel, size), _BLOCK)


class _Reader(io.RawIOBase):
    """A blob of a client's store as a file."""

    def __init__(
        self, session: ClientSession, store: str, digest: str, cancel: CancelToken, size: int
    ) -> None:
        self._session = session
        self._what = f"reading {digest} of the client's {store}"
        if not session.supports(_READ):
            summary = f"{self._what}: the client offers no content store"
            raise ContextError(summary)
        self._call = session.start(_READ, ((_STORE_ID, store),))
        request = content_pb2.ReadContentRequest(digest=digest, size=size)
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
    call = session.start(_WRITE, ((_STORE_ID, store),))
    # Unfinished writes lie in the client's directory by this name, where other clients may be writing the same blob.
    ref = f"crossdock-{session.id}-{digest}"
    common: dict[str, Any] = {"ref": ref, "total": size, "expected": digest}
    offset = 0
    try:
        with cancel.waking(call.cancel):
            # A client that has the blob already ends the call while it is sent.
            while not call.ended and (data := source.read(_BLOCK)):
                request = content_pb2.WriteContentRequest(
                    action=content_pb2.WRITE, offset=offset, data=data, **common
                )
                call.send(request.SerializeToString())
                offset += len(data)
            request = content_pb2.WriteContentRequest(action=content_pb2.COMMIT, offset=offset, **common)
            call.send_raw(prefixed(request.SerializeToString()), end=True)
            error = _ended(call)
    except RpcError as exc:
        # It was ended while it was sent, so ask how.
        error = _ended(call)
        if error is not None and error.code == "CANCELLED":
            error = exc
    finally:
        call.cancel()
    if error is not None:
        cancel.check()
        if error.code != "ALREADY_EXISTS":
            raise session_failure(session, error, what) from error


def _ended(call: Call) -> RpcError | None:
    """Return how a call ended; ``None``: well."""
    try:
        for _ in call.messages():
            pass
    except RpcError as exc:
        return exc
    return None
