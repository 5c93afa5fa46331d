"""Dial the BuildKit inside a Docker Engine: HTTP/1.1 upgrades of ``/grpc`` and ``/session``.

Spec: Docker Engine API, "session"; moby ``daemon/server/router/{grpc,session}``.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from crossdock.buildkit.transport import ByteStream, SocketStream
from crossdock.errors import BuilderError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from crossdock.buildkit.session.server import Session

__all__ = ["EngineDialer", "unix_connector"]

_MAX_HEAD = 64 * 1024


def unix_connector(path: str) -> Callable[[], socket.socket]:
    """Return a function that connects to the Engine's unix socket.

    The function raises BuilderError when nothing listens there or the user may not.
    """

    def connect() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(path)
        except OSError as exc:
            sock.close()
            summary = f"cannot connect to the Docker Engine at unix://{path}: {exc.strerror}"
            hint = "is the Engine running?"
            if isinstance(exc, PermissionError):
                hint = "add your user to the group that owns the socket (usually `docker`)"
            raise BuilderError(summary, hint=hint) from exc
        return sock

    return connect


class EngineDialer:
    """Opens upgraded streams on an Engine; ``connect`` gives a fresh transport socket (plain or TLS)."""

    def __init__(self, connect: Callable[[], socket.socket], *, name: str) -> None:
        self._connect = connect
        self._name = name

    def grpc(self) -> ByteStream:
        """Open ``POST /grpc``: a connection to Control, LLBBridge and the other services."""
        return self._upgrade("/grpc", ())

    def session(self, session: Session) -> ByteStream:
        """Open ``POST /session``: the stream on which the Engine calls us."""
        return self._upgrade("/session", session.headers)

    def _upgrade(self, path: str, headers: Sequence[tuple[str, str]]) -> ByteStream:
        sock = self._connect()
        lines = [f"POST {path} HTTP/1.1", "Host: docker", "Connection: Upgrade", "Upgrade: h2c"]
        lines += [f"{name.title()}: {value}" for name, value in headers]
        try:
            sock.sendall("\r\n".join((*lines, "", "")).encode())
            head, rest = _read_head(sock)
        except OSError as exc:
            sock.close()
            summary = f"{self._name}: the connection broke during the upgrade of {path}: {exc}"
            raise BuilderError(summary, retryable=True) from exc
        status = head.split(b"\r\n", 1)[0].split(b" ", 2)
        if len(status) < 2 or status[1] != b"101":
            sock.close()
            text = b" ".join(status[1:]).decode(errors="replace") or "no answer"
            summary = f"{self._name} refused {path}: {text}"
            raise BuilderError(summary, hint="an Engine of version 18.09 or later is needed")
        return SocketStream(sock, rest)


def _read_head(sock: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        block = sock.recv(4096)
        if not block or len(data) > _MAX_HEAD:
            break
        data += block
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest
