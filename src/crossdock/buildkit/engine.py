"""Dial the BuildKit inside a Docker Engine: HTTP/1.1 upgrades of ``/grpc`` and ``/session``.

Spec: Docker Engine API, "session"; moby ``daemon/server/router/{grpc,session}``.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from crossdock.buildkit.transport import SocketStream
from crossdock.errors import BuilderError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from crossdock.buildkit.session.server import Session
    from crossdock.buildkit.transport import ByteStream

__all__ = ["EngineDialer", "unix_dialer", "upgrade"]

_MAX_HEAD = 64 * 1024


def unix_dialer(path: str) -> Callable[[], ByteStream]:
    """Return a function that connects to the Engine's unix socket.

    The function raises BuilderError when nothing listens there or the user may not.
    """

    def dial() -> ByteStream:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(path)
        except OSError as exc:
            sock.close()
            summary = f"cannot connect to the Docker Engine at unix://{path}: {exc.strerror}"
            hint = "is the Engine running?"
            refused = isinstance(exc, PermissionError)
            if refused:
                hint = "add your user to the group that owns the socket (usually `docker`)"
            raise BuilderError(summary, hint=hint, retryable=not refused) from exc
        return SocketStream(sock)

    return dial


class EngineDialer:
    """Opens upgraded streams on an Engine; ``dial`` gives a fresh stream to its API."""

    def __init__(self, dial: Callable[[], ByteStream], *, name: str) -> None:
        self._dial = dial
        self._name = name

    def grpc(self) -> ByteStream:
        """Open ``POST /grpc``: a connection to Control, LLBBridge and the other services."""
        return upgrade(self._dial, "/grpc", [("Upgrade", "h2c")], name=self._name)

    def session(self, session: Session) -> ByteStream:
        """Open ``POST /session``: the stream on which the Engine calls us."""
        headers = [("Upgrade", "h2c"), *session.headers]
        return upgrade(self._dial, "/session", headers, name=self._name)


def upgrade(
    dial: Callable[[], ByteStream],
    path: str,
    headers: Sequence[tuple[str, str]],
    *,
    body: bytes = b"",
    name: str,
) -> ByteStream:
    """Post to an Engine and keep the connection; ``name`` is the Engine's, for messages.

    Raises: what ``dial`` raises; BuilderError when the Engine refuses, or does not answer.
    """
    stream = dial()
    lines = [f"POST {path} HTTP/1.1", "Host: docker", "Connection: Upgrade"]
    lines += [f"{key.title()}: {value}" for key, value in headers]
    lines += [f"Content-Length: {len(body)}"] if body else []
    try:
        stream.sendall("\r\n".join((*lines, "", "")).encode() + body)
        head, rest = _read_head(stream)
    except OSError as exc:
        stream.close()
        summary = f"{name}: the connection broke during the upgrade of {path}: {exc}"
        raise BuilderError(summary, retryable=True) from exc
    status = head.split(b"\r\n", 1)[0].split(b" ", 2)
    if len(status) >= 2 and status[1] == b"101":
        return _Upgraded(stream, rest)
    text = b" ".join(status[1:]).decode(errors="replace")
    failure = str(getattr(stream, "failure", "")) or "no answer"
    stream.close()
    if not text:
        summary = f"cannot reach {name}: {failure}"
        raise BuilderError(summary, hint="is the Engine running?", retryable=True)
    summary = f"{name} refused {path.partition('?')[0]}: {text}"
    raise BuilderError(summary, hint="an Engine of version 18.09 or later is needed")


class _Upgraded:
    """A stream with bytes already read of it."""

    def __init__(self, stream: ByteStream, rest: bytes) -> None:
        self._stream = stream
        self._rest = rest
        self.sendall = stream.sendall
        self.shutdown_write = stream.shutdown_write
        self.close = stream.close

    @property
    def failure(self) -> str:
        """What the stream below says of its end."""
        return str(getattr(self._stream, "failure", ""))

    def recv(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes; empty at the end."""
        if self._rest:
            data, self._rest = self._rest[:size], self._rest[size:]
            return data
        return self._stream.recv(size)


def _read_head(stream: ByteStream) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        block = stream.recv(4096)
        if not block or len(data) > _MAX_HEAD:
            break
        data += block
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest
