"""Calls of the peer: each runs its handler in a thread of its own.

Spec: grpc/grpc ``doc/PROTOCOL-HTTP2.md``.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from google.protobuf.message import DecodeError

from crossdock.buildkit.rpc.frames import CANCEL, REFUSED_STREAM
from crossdock.buildkit.rpc.http2 import MAX_STREAMS, Connection
from crossdock.buildkit.rpc.messages import Budget, prefixed, split, split_batches
from crossdock.buildkit.rpc.status import (
    CANCELLED,
    INTERNAL,
    INVALID_ARGUMENT,
    UNAVAILABLE,
    UNIMPLEMENTED,
    RpcError,
    decode_binary,
    status_trailers,
)
from crossdock.buildkit.rpc.streams import ConnectionLost, StreamReset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from crossdock.buildkit.rpc.channel import Message
    from crossdock.buildkit.rpc.streams import Headers, Stream
    from crossdock.buildkit.transport import ByteStream

__all__ = ["Handler", "Server", "ServerCall", "parsed", "unary"]

_RESPONSE: Headers = [(":status", "200"), ("content-type", "application/grpc")]

Request = TypeVar("Request", bound="Message")


class ServerCall:
    """One call of the peer, as its handler sees it."""

    def __init__(self, stream: Stream, headers: Headers, budget: Budget | None = None) -> None:
        self._stream = stream
        self._budget = budget
        self._answered = False
        self._metadata = headers

    def metadata(self, name: str) -> tuple[str, ...]:
        """Return the values of a header, in order; ``-bin`` ones decoded as UTF-8."""
        values = [v for k, v in self._metadata if k == name]
        if name.endswith("-bin"):
            return tuple(decode_binary(v).decode(errors="replace") for v in values)
        return tuple(values)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all headers."""
        return tuple(dict.fromkeys(k for k, _ in self._metadata))

    def messages(self) -> Iterator[bytes]:
        """Yield the peer's messages to their end.

        Raises: RpcError CANCELLED when the peer gave up, UNAVAILABLE when the connection is gone.
        """
        return split(self._read, self._budget)

    def batches(self) -> Iterator[list[bytes]]:
        """Yield the messages as they come, all that are there at once. Raises: as :meth:`messages`."""
        return split_batches(self._read, self._budget)

    def send(self, message: bytes) -> None:
        """Send one message, waiting while the peer is slow. Raises: RpcError as :meth:`messages`."""
        self.send_raw(prefixed(message))

    def send_raw(self, data: bytes | bytearray | memoryview) -> None:
        """Send messages that already have their prefixes. Raises: RpcError as :meth:`messages`."""
        try:
            if not self._answered:
                self._answered = True
                self._stream.send_headers(_RESPONSE)
            self._stream.send(data)
        except (StreamReset, ConnectionLost) as exc:
            raise _gone(exc) from exc

    def greet(self, metadata: Headers) -> None:
        """Send the answer's initial metadata; before any message. Raises: RpcError as :meth:`messages`."""
        self._answered = True
        try:
            self._stream.send_headers([*_RESPONSE, *metadata])
        except (StreamReset, ConnectionLost) as exc:
            raise _gone(exc) from exc

    @property
    def alive(self) -> bool:
        """Whether the peer still waits for the answer."""
        return self._stream.error is None

    def on_gone(self, callback: Callable[[], object]) -> None:
        """Have a function called, in a thread of its own, should the peer give up or its connection be lost."""
        self._stream.watch(callback)

    def wait_gone(self) -> None:
        """Wait until the peer gives up, or closes its side."""
        with contextlib.suppress(StreamReset, ConnectionLost):
            while self._stream.read():
                pass

    def finish(self, error: RpcError | None) -> None:
        """Answer with a status; nothing may follow."""
        self._stream.watch(None)
        trailers = status_trailers(error)
        try:
            self._stream.send_headers(trailers if self._answered else [*_RESPONSE, *trailers], end=True)
        except (StreamReset, ConnectionLost):
            return  # nobody listens any more
        # What the peer still sends is not wanted.
        self._stream.reset(0)

    def _read(self) -> bytes:
        try:
            return self._stream.read()
        except (StreamReset, ConnectionLost) as exc:
            raise _gone(exc) from exc


def _gone(exc: Exception) -> RpcError:
    if isinstance(exc, StreamReset):
        return RpcError(CANCELLED, "the peer gave up")
    return RpcError(UNAVAILABLE, str(exc))


Handler: TypeAlias = "Callable[[ServerCall], None]"


def parsed(kind: type[Request], raw: bytes) -> Request:
    """Read a message of the peer's. Raises: RpcError INVALID_ARGUMENT when it is none."""
    try:
        return kind.FromString(raw)
    except DecodeError as exc:
        raise RpcError(INVALID_ARGUMENT, f"malformed {kind.__name__}") from exc


def unary(request: type[Request], function: Callable[[Request, ServerCall], Message]) -> Handler:
    """Make a handler of a function from one message to one message."""

    def handle(call: ServerCall) -> None:
        raw = next(call.messages(), None)
        if raw is None:
            raise RpcError(INTERNAL, "no request")
        call.send(function(parsed(request, raw), call).SerializeToString())

    return handle


class Server:
    """Serves ``handlers`` by method name on one byte stream until :meth:`close`, or until the peer is gone."""

    def __init__(
        self,
        stream: ByteStream,
        handlers: Mapping[str, Handler],
        *,
        max_headers: int | None = None,
        budget: Budget | None = None,
        calls: Budget | None = None,
    ) -> None:
        """``max_headers``: bytes of metadata of one call; ``budget`` is for large messages that are still coming.

        ``calls`` are handlers that may be at work at once, of all servers that share it.
        """
        self._handlers = handlers
        self._budget = budget
        self._calls = calls if calls is not None else Budget(MAX_STREAMS)
        limits = {} if max_headers is None else {"max_headers": max_headers}
        self._connection = Connection(stream, server=True, on_stream=self._begin, **limits)
        # Guards _threads.
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()

    def start(self) -> None:
        """Begin to serve. Raises: ConnectionLost."""
        self._connection.start()

    @property
    def alive(self) -> bool:
        """Whether the peer is still there."""
        return self._connection.usable

    def close(self) -> None:
        """End the connection and wait a little for the handlers; idempotent."""
        self._connection.close("the session was closed")
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(5)

    def _begin(self, stream: Stream) -> None:
        thread = threading.Thread(target=self._run, args=(stream,), daemon=True, name="rpc")
        # A stream that was given up leaves its handler at work for a while.
        if not self._calls.take(1):
            stream.reset(REFUSED_STREAM)
            return
        with self._lock:
            self._threads.add(thread)
        thread.start()

    def _run(self, stream: Stream) -> None:
        try:
            self._answer(stream)
        except (StreamReset, ConnectionLost):
            return
        finally:
            self._calls.give(1)
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _answer(self, stream: Stream) -> None:
        headers = stream.take_headers() or []
        call = ServerCall(stream, headers, self._budget)
        method = dict(headers).get(":path", "")
        handler = self._handlers.get(method)
        error: RpcError | None = None
        if handler is None:
            error = RpcError(UNIMPLEMENTED, f"unknown method {method}")
        else:
            try:
                handler(call)
            except RpcError as exc:
                error = exc
            except Exception:
                # The peer must get an answer, or it would wait for ever; the defect itself is for the log.
                import logging

                logging.getLogger("crossdock.buildkit.rpc").exception("%s failed", method)
                error = RpcError(INTERNAL, f"{method} failed on the client")
        if error is not None and error.code == "CANCELLED":
            stream.reset(CANCEL)
        call.finish(error)
