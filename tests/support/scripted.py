"""An HTTP server on loopback that answers byte by byte as it is told: cuts, resets, lies, delays.

For clients that must survive bad peers. Real sockets, no HTTP library, no knowledge of what is asked.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping
    from types import TracebackType


@dataclass(frozen=True)
class Got:
    """A request as it arrived."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


@dataclass(frozen=True)
class Reply:
    """An answer, and the ways to spoil it."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    #: bytes of the body after which the connection is reset
    cut_after: int | None = None
    #: sent instead of everything else
    raw: bytes | None = None
    #: seconds before answering
    delay_s: float = 0.0
    #: bytes of the request's body to read before answering; all by default
    read_only: int | None = None
    #: reset the connection instead of answering
    reset: bool = False
    #: close the connection after the answer
    close: bool = False
    #: send the body in chunks of this size
    chunk: int = 0

    def encoded(self, method: str) -> bytes:
        if self.raw is not None:
            return self.raw
        headers = {k.lower(): v for k, v in self.headers.items()}
        if self.chunk:
            headers["transfer-encoding"] = "chunked"
        elif "content-length" not in headers:
            headers["content-length"] = str(len(self.body))
        head = f"HTTP/1.1 {self.status} Reason\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items())
        if method == "HEAD":
            return head.encode() + b"\r\n"
        body = self.body if self.cut_after is None else self.body[: self.cut_after]
        if self.chunk:
            parts = [body[i : i + self.chunk] for i in range(0, len(body), self.chunk)]
            body = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in parts)
            body += b"" if self.cut_after is not None else b"0\r\n\r\n"
        return head.encode() + b"\r\n" + body


def json_reply(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """A JSON answer."""
    merged = {"content-type": "application/json", **(headers or {})}
    return Reply(status, json.dumps(value).encode(), merged)


def error_reply(status: int, code: str, message: str = "said the registry", **headers: str) -> Reply:
    """An error in the distribution specification's form."""
    return json_reply({"errors": [{"code": code, "message": message}]}, status, headers)


class ScriptedServer:
    """Answers from ``(method, path)`` -> replies, the last of which repeats; 404 for the rest."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._script: dict[tuple[str, str], list[Reply | Callable[[Got], Reply]]] = {}
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._stopping = False
        #: every request, in order of arrival
        self.got: list[Got] = []
        #: connections accepted
        self.connections = 0

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def on(self, method: str, path: str, *replies: Reply | Callable[[Got], Reply]) -> Self:
        """Set what a request is answered with."""
        self._script[method, path] = list(replies)
        return self

    def lines(self) -> list[str]:
        """Method and target of every request."""
        with self._lock:
            return [f"{got.method} {got.target}" for got in self.got]

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            sockets = list(self._sockets)
        for sock in sockets:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._start(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        try:
            sock.settimeout(20)
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
            with self._lock:
                self._sockets.add(sock)
            while self._one(sock):
                pass
        except OSError:
            pass
        finally:
            with self._lock:
                self._sockets.discard(sock)
            sock.close()

    def _one(self, sock: socket.socket) -> bool:
        data = b""
        while b"\r\n\r\n" not in data:
            more = sock.recv(65536)
            if not more:
                return False
            data += more
            if data.startswith(b"\x16\x03"):  # a TLS greeting, answered as Go's server does
                sock.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n400 Bad Request")
                return False
        head, _, body = data.partition(b"\r\n\r\n")
        line, *rest = head.decode("latin-1").split("\r\n")
        method, target, _ = line.split(" ")
        headers = {k.lower(): v.strip() for k, _, v in (h.partition(":") for h in rest)}
        got = Got(method, target, headers, b"")
        reply = self._reply(got)
        wanted = int(headers.get("content-length", "0"))
        if reply.read_only is not None:
            wanted = min(wanted, reply.read_only)
        while len(body) < wanted:
            more = sock.recv(65536)
            if not more:
                break
            body += more
        with self._lock:
            self.got.append(Got(method, target, headers, body))
        if reply.delay_s:
            deadline = time.monotonic() + reply.delay_s
            while time.monotonic() < deadline and not self._stopping:
                time.sleep(0.02)
        if not reply.reset:
            sock.sendall(reply.encoded(method))
        if reply.reset or reply.cut_after is not None:
            if reply.reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        return not (reply.close or reply.raw is not None or reply.read_only is not None)

    def _reply(self, got: Got) -> Reply:
        with self._lock:
            replies = self._script.get((got.method, got.path))
            if not replies:
                return Reply(404, b"", {"content-type": "text/plain"})
            reply = replies.pop(0) if len(replies) > 1 else replies[0]
        return reply if isinstance(reply, Reply) else reply(got)
