"""The session itself: our gRPC server on one stream, which the daemon reads as an HTTP/2 client.

Spec: moby/buildkit ``session/session.go``, ``session/grpchijack``; features: headers ``x-docker-expose-session-*``.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Protocol

from crossdock.buildkit.rpc.messages import varint
from crossdock.buildkit.rpc.serve import Server
from crossdock.buildkit.rpc.status import RpcError
from crossdock.errors import BuilderError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from crossdock.buildkit.rpc.channel import Channel
    from crossdock.buildkit.rpc.serve import Handler, ServerCall
    from crossdock.buildkit.transport import ByteStream

__all__ = ["Attachable", "Session", "control_stream", "new_id"]

#: bytes of one BytesMessage at most; the daemon takes up to 4 MiB
_MESSAGE = 1 << 20
_SESSION = "/moby.buildkit.v1.Control/Session"


class Attachable(Protocol):
    """A service offered on a session."""

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """Handlers by full method name, ``/package.Service/Method``; each call runs in a thread of its own."""
        ...


def new_id() -> str:
    """Return a random id in BuildKit's alphabet (25 characters of base 36)."""
    number = int.from_bytes(os.urandom(17), "big")
    digits = []
    for _ in range(25):
        number, digit = divmod(number, 36)
        digits.append("0123456789abcdefghijklmnopqrstuvwxyz"[digit])
    return "".join(digits)


class Session:
    """One session: add attachables, :meth:`start` it on a stream, :meth:`close` it."""

    def __init__(self, *, shared_key: str = "", name: str = "") -> None:
        self.id = new_id()
        self.shared_key = shared_key
        self.name = name
        self._handlers: dict[str, Handler] = {
            "/grpc.health.v1.Health/Check": _check,
            "/grpc.health.v1.Health/Watch": _watch,
        }
        self._server: Server | None = None

    def allow(self, attachable: Attachable) -> None:
        """Offer a service; before :meth:`start`."""
        self._handlers.update(attachable.handlers)

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The metadata that announces the session, lower case as gRPC wants it."""
        out = [
            ("x-docker-expose-session-uuid", self.id),
            ("x-docker-expose-session-sharedkey", self.shared_key),
        ]
        if self.name:
            out.append(("x-docker-expose-session-name", self.name))
        return out + [("x-docker-expose-session-grpc-method", m) for m in self._handlers]

    def start(self, dial: Callable[[Session], ByteStream]) -> None:
        """Serve on the stream that ``dial`` opens with our :attr:`headers`; returns at once.

        Raises: what ``dial`` raises.
        """
        self._server = Server(dial(self), self._handlers)
        self._server.start()

    @property
    def alive(self) -> bool:
        """Whether the daemon's side is there."""
        return self._server is not None and self._server.alive

    def close(self) -> None:
        """End the session; idempotent."""
        if self._server is not None:
            self._server.close()


# HealthCheckResponse{status: SERVING}. The daemon probes every five seconds and closes sessions that do not answer.
_SERVING = b"\x08\x01"


def _check(call: ServerCall) -> None:
    call.send(_SERVING)


def _watch(call: ServerCall) -> None:
    call.send(_SERVING)
    call.wait_gone()


class _ControlStream:
    """``Control.Session`` as a byte stream."""

    def __init__(self, channel: Channel, session: Session) -> None:
        self._call = channel.start(_SESSION, metadata=session.headers)
        self._batches: Iterator[list[bytes]] = self._call.batches()
        self._rest = b""
        self._closed = threading.Event()
        #: what the daemon said when it ended the session
        self.failure = ""

    def recv(self, size: int, /) -> bytes:
        while not self._rest:
            try:
                batch = next(self._batches)
            except StopIteration:
                return b""
            except RpcError as exc:
                self.failure = exc.message
                return b""
            self._rest = b"".join(map(_payload, batch))
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def sendall(self, data: bytes | bytearray, /) -> None:
        view = memoryview(data)
        try:
            for at in range(0, len(view), _MESSAGE):
                part = view[at : at + _MESSAGE]
                head = b"\x0a" + varint(len(part))
                self._call.send_raw(b"".join((b"\0", (len(head) + len(part)).to_bytes(4, "big"), head, part)))
        except RpcError as exc:
            raise BrokenPipeError(exc.message) from exc

    def shutdown_write(self) -> None:
        self._call.end()

    def close(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self._call.cancel()


def _payload(message: bytes) -> bytes:
    """Return ``data`` of a BytesMessage, whose only field it is."""
    if not message:
        return b""
    at, shift, size = 1, 0, 0
    while True:
        byte = message[at]
        size |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            break
    if message[0] != 0x0A or at + size != len(message):
        summary = "the daemon sent a malformed message on the session"
        raise BuilderError(summary)
    return message[at:]


def control_stream(channel: Channel) -> Callable[[Session], ByteStream]:
    """Return a dialler that opens sessions with ``Control.Session``."""
    return lambda session: _ControlStream(channel, session)
