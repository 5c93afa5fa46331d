"""The session itself: our gRPC server, joined to one stream that the daemon reads as an HTTP/2 client.

grpcio serves sockets only, so the server listens on a private unix socket and the session stream is copied to it.

Spec: moby/buildkit ``session/session.go``, ``session/grpchijack``; features: headers ``x-docker-expose-session-*``.
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import shutil
import socket
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import grpc

from crossdock.buildkit.proto import control_pb2
from crossdock.buildkit.transport import SocketStream, join_streams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from crossdock.buildkit.proto.control_pb2_grpc import ControlStub
    from crossdock.buildkit.transport import ByteStream

__all__ = ["Attachable", "Session", "control_stream", "new_id"]

#: bytes of one BytesMessage; BuildKit's own buffer size
_MESSAGE = 32 * 1024


class Attachable(Protocol):
    """A service offered on a session."""

    @property
    def methods(self) -> tuple[str, ...]:
        """Full method names, ``/package.Service/Method``."""
        ...

    def register(self, server: grpc.Server, /) -> None:
        """Add the service's handlers to the server."""
        ...


def new_id() -> str:
    """Return a random id in BuildKit's alphabet (25 characters of base 36)."""
    alphabet = "0123456789abcdefghijklmnopqrstuvwxyz"
    return "".join(secrets.choice(alphabet) for _ in range(25))


class Session:
    """One session: add attachables, :meth:`start` it on a stream, :meth:`close` it."""

    def __init__(self, *, shared_key: str = "", name: str = "") -> None:
        self.id = new_id()
        self.shared_key = shared_key
        self.name = name
        self._attachables: list[Attachable] = []
        self._stream: ByteStream | None = None
        self._server: grpc.Server | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._dir: Path | None = None
        self._pumps: list[threading.Thread] = []
        #: set once the daemon's side is gone
        self.ended = threading.Event()

    def allow(self, attachable: Attachable) -> None:
        """Offer a service; before :meth:`start`."""
        self._attachables.append(attachable)

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The metadata that announces the session, lower case as gRPC wants it."""
        out = [
            ("x-docker-expose-session-uuid", self.id),
            ("x-docker-expose-session-sharedkey", self.shared_key),
        ]
        if self.name:
            out.append(("x-docker-expose-session-name", self.name))
        methods = [m for a in self._attachables for m in a.methods]
        health = ["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"]
        return out + [("x-docker-expose-session-grpc-method", m) for m in (*methods, *health)]

    def start(self, dial: Callable[[Session], ByteStream]) -> None:
        """Serve on the stream that ``dial`` opens with our :attr:`headers`; returns at once."""
        # Every file being sent holds a worker for its stream, and the daemon may sync several directories at once.
        pool = ThreadPoolExecutor(max_workers=64, thread_name_prefix="session")
        self._pool = pool
        server = grpc.server(
            pool,
            options=[
                ("grpc.max_send_message_length", 16 << 20),
                ("grpc.max_receive_message_length", 16 << 20),
                # include and exclude patterns come as metadata
                ("grpc.max_metadata_size", 4 << 20),
                ("grpc.absolute_max_metadata_size", 8 << 20),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
                ("grpc.so_reuseport", 0),
            ],
        )
        for attachable in self._attachables:
            attachable.register(server)
        _register_health(server)
        self._dir = Path(tempfile.mkdtemp(prefix="crossdock-"))
        path = f"{self._dir}/session"
        server.add_insecure_port(f"unix:{path}")
        server.start()
        self._server = server
        self._stream = dial(self)
        near = socket.socket(socket.AF_UNIX)
        near.connect(path)
        self._pumps = join_streams(SocketStream(near), self._stream, on_close=self.ended.set)

    def close(self) -> None:
        """End the session and remove its socket; idempotent."""
        if self._stream is not None:
            self._stream.close()
        if self._server is not None:
            self._server.stop(grace=0.2).wait(5)
        if self._pool is not None:
            # Handlers end with their streams; idle workers would stay for the life of the process.
            self._pool.shutdown(wait=False, cancel_futures=True)
        for pump in self._pumps:
            pump.join(5)
        if self._dir is not None:
            shutil.rmtree(self._dir, ignore_errors=True)


def _register_health(server: grpc.Server) -> None:
    """Answer ``SERVING``: the daemon probes every five seconds and closes sessions that do not."""
    # HealthCheckResponse{status: SERVING}; two bytes do not justify a dependency.
    serving = b"\x08\x01"

    def check(_request: bytes, _context: grpc.ServicerContext) -> bytes:
        return serving

    def watch(_request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield serving
        gone = threading.Event()
        context.add_callback(gone.set)
        gone.wait()

    handlers = {
        "Check": grpc.unary_unary_rpc_method_handler(check),
        "Watch": grpc.unary_stream_rpc_method_handler(watch),
    }
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers),)
    )


class _ControlStream:
    """``Control.Session`` as a byte stream."""

    def __init__(self, stub: ControlStub, session: Session) -> None:
        # Bounded: the pump must feel the daemon's back-pressure.
        self._outgoing: queue.Queue[bytes | None] = queue.Queue(64)
        self._closed = threading.Event()
        self._rest = b""
        self._call = stub.Session(self._requests(), metadata=session.headers)

    def _requests(self) -> Iterator[control_pb2.BytesMessage]:
        while (data := self._outgoing.get()) is not None:
            yield control_pb2.BytesMessage(data=data)

    def recv(self, size: int, /) -> bytes:
        if not self._rest:
            try:
                self._rest = next(self._call).data
            except (StopIteration, grpc.RpcError):
                return b""
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def sendall(self, data: bytes, /) -> None:
        view = memoryview(data)
        for at in range(0, len(data), _MESSAGE):
            self._put(bytes(view[at : at + _MESSAGE]))

    def _put(self, item: bytes | None) -> None:
        while True:
            if self._closed.is_set():
                raise BrokenPipeError
            try:
                self._outgoing.put(item, timeout=0.5)
            except queue.Full:
                continue
            return

    def shutdown_write(self) -> None:
        self._put(None)

    def close(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        self._call.cancel()
        # Free the request iterator, which may be waiting on the queue.
        with contextlib.suppress(queue.Empty):
            while True:
                self._outgoing.get_nowait()
        self._outgoing.put(None)


def control_stream(stub: ControlStub) -> Callable[[Session], ByteStream]:
    """Return a dialler that opens sessions with ``Control.Session``."""
    return lambda session: _ControlStream(stub, session)
