"""Calls of ours over a connection that is dialled when first needed, and again after it was lost.

Spec: grpc/grpc ``doc/PROTOCOL-HTTP2.md``.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from crossdock.buildkit.rpc.http2 import Connection
from crossdock.buildkit.rpc.messages import prefixed, split, split_batches
from crossdock.buildkit.rpc.status import CANCELLED, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, RpcError
from crossdock.buildkit.rpc.streams import ConnectionLost, StreamReset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from crossdock.buildkit.rpc.streams import Headers, Stream
    from crossdock.buildkit.transport import ByteStream

__all__ = ["Call", "Channel", "Message"]


class Message(Protocol):
    """A protobuf message, as far as calls need it."""

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        """Encode."""
        ...

    @classmethod
    def FromString(cls, s: bytes, /) -> Self:  # noqa: N802 - protobuf's name
        """Decode."""
        ...


M = TypeVar("M", bound=Message)


class Call:
    """One call under way: messages out, messages in, then a status. One sender and one receiver thread."""

    def __init__(self, stream: Stream, deadline: float | None) -> None:
        self._stream = stream
        self._deadline = deadline
        self._cancelled = False
        #: initial metadata of the answer, once :meth:`messages` or :meth:`result` has seen it
        self.headers: Headers = []

    def send(self, message: bytes) -> None:
        """Send one message. Raises: RpcError when the call has ended."""
        self.send_raw(prefixed(message))

    def send_raw(self, data: bytes | bytearray | memoryview, *, end: bool = False) -> None:
        """Send messages that already have their prefixes. Raises: RpcError when the call has ended."""
        try:
            self._stream.send(data, end=end)
        except (StreamReset, ConnectionLost) as exc:
            raise self._error(exc) from exc

    def end(self) -> None:
        """Say that no more messages come."""
        self.send_raw(b"", end=True)

    def messages(self) -> Iterator[bytes]:
        """Yield the messages of the answer to its end.

        Raises: RpcError for a status other than OK, with DEADLINE_EXCEEDED and CANCELLED for our own doing.
        """
        self._begin()
        if self.headers and not _is_trailers(self.headers):
            yield from split(self._read)
        self._finish()

    def batches(self) -> Iterator[list[bytes]]:
        """Yield the messages of the answer as they come, all that are there at once; ends and raises as :meth:`messages`."""
        self._begin()
        if self.headers and not _is_trailers(self.headers):
            yield from split_batches(self._read)
        self._finish()

    def read_into(self) -> Iterator[bytes]:
        """Yield raw data, message prefixes included, as it comes; ends and raises as :meth:`messages`."""
        self._begin()
        if not _is_trailers(self.headers):
            while data := self._read():
                yield data
        self._finish()

    def result(self) -> bytes:
        """Return the only message. Raises: RpcError."""
        found = list(self.messages())
        if len(found) != 1:
            raise RpcError(INTERNAL, f"{len(found)} messages where one was expected")
        return found[0]

    @property
    def ended(self) -> bool:
        """Whether the peer has said its last word."""
        return self._stream.remote_ended or self._stream.error is not None

    def cancel(self) -> None:
        """End the call on both sides; whoever waits gets CANCELLED. Idempotent; safe from any thread."""
        self._cancelled = True
        self._stream.reset()

    def _begin(self) -> None:
        try:
            headers = self._stream.take_headers(self._left())
        except (StreamReset, ConnectionLost, TimeoutError) as exc:
            raise self._error(exc) from exc
        self.headers = headers or []

    def _read(self) -> bytes:
        try:
            return self._stream.read(self._left())
        except (StreamReset, ConnectionLost, TimeoutError) as exc:
            raise self._error(exc) from exc

    def _finish(self) -> None:
        trailers: Headers | None = self.headers
        if not _is_trailers(self.headers):
            try:
                trailers = self._stream.take_headers(self._left())
            except (StreamReset, ConnectionLost, TimeoutError) as exc:
                raise self._error(exc) from exc
        # A peer that ended the call first does not want the rest of what we send.
        self._stream.reset(0)
        if (error := RpcError.from_trailers(trailers or self.headers)) is not None:
            raise error

    def _left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def _error(self, exc: Exception) -> RpcError:
        if self._cancelled:
            return RpcError(CANCELLED, "cancelled by us")
        if isinstance(exc, TimeoutError):
            self._stream.reset()
            return RpcError(DEADLINE_EXCEEDED, "no answer in time")
        if isinstance(exc, StreamReset):
            return RpcError.from_reset(exc.code)
        return RpcError(UNAVAILABLE, str(exc))


def _is_trailers(headers: Headers) -> bool:
    fields = dict(headers)
    return "grpc-status" in fields or fields.get(":status") != "200"


class Channel:
    """A connection to one peer; safe from any thread. ``dial`` opens a byte stream and may raise what it likes."""

    def __init__(
        self, dial: Callable[[], ByteStream], *, authority: str = "localhost", secure: bool = False
    ) -> None:
        self._dial = dial
        self._authority = authority
        self._scheme = "https" if secure else "http"
        # Guards _connection and _closed; held while dialling, so that one connection serves all.
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._closed = False

    @property
    def reached(self) -> bool:
        """Whether the peer of the last connection has answered at all."""
        connection = self._connection
        return connection is not None and connection.greeted

    def start(
        self, method: str, *, metadata: Iterable[tuple[str, str]] = (), timeout_s: float | None = None
    ) -> Call:
        """Begin a call. Raises: what dialling raises; RpcError UNAVAILABLE."""
        headers = [
            (":method", "POST"),
            (":scheme", self._scheme),
            (":path", method),
            (":authority", self._authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", "crossdock"),
        ]
        deadline = None
        if timeout_s is not None:
            deadline = time.monotonic() + timeout_s
            headers.append(("grpc-timeout", f"{min(99_999_999, max(1, int(timeout_s * 1000)))}m"))
        headers += metadata
        try:
            return Call(self._connected().open(headers), deadline)
        except ConnectionLost as exc:
            raise RpcError(UNAVAILABLE, str(exc)) from exc

    def unary_call(
        self,
        method: str,
        request: Message,
        *,
        metadata: Iterable[tuple[str, str]] = (),
        timeout_s: float | None = None,
    ) -> Call:
        """Begin a call with its only request sent. Raises: what dialling raises; RpcError."""
        call = self.start(method, metadata=metadata, timeout_s=timeout_s)
        call.send_raw(prefixed(request.SerializeToString()), end=True)
        return call

    def unary(
        self,
        method: str,
        request: Message,
        response: type[M],
        *,
        metadata: Iterable[tuple[str, str]] = (),
        timeout_s: float | None = None,
    ) -> M:
        """Make a call and return its answer. Raises: what dialling raises; RpcError."""
        call = self.unary_call(method, request, metadata=metadata, timeout_s=timeout_s)
        return response.FromString(call.result())

    def _connected(self) -> Connection:
        with self._lock:
            if self._closed:
                raise RpcError(CANCELLED, "the channel is closed")
            if self._connection is None or not self._connection.usable:
                old, self._connection = self._connection, None
                if old is not None:
                    old.close()
                connection = Connection(self._dial(), server=False)
                connection.start()
                self._connection = connection
            return self._connection

    def close(self) -> None:
        """End the connection and all calls; idempotent."""
        self._closed = True
        connection: Any = self._connection
        if connection is not None:
            connection.close("closed by us")
