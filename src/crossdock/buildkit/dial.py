"""Open byte streams to a daemon's address."""

from __future__ import annotations

import functools
import socket
from typing import TYPE_CHECKING

from crossdock.buildkit.transport import Address, ProcessStream, SocketStream, command_for
from crossdock.errors import BuilderError

if TYPE_CHECKING:
    from collections.abc import Callable

    from crossdock.buildkit.transport import ByteStream, TlsOptions

__all__ = ["dialer"]

_CONNECT_S = 10.0


def dialer(address: str, tls: TlsOptions | None = None) -> Callable[[], ByteStream]:
    """Return a function that opens a stream to ``address``.

    Raises: UsageError for a bad address; BuilderError for unreadable TLS files. What is returned raises BuilderError;
    ``retryable`` ones may pass when the daemon comes up.
    """
    parsed = Address.parse(address)
    if parsed.scheme == "unix":
        return functools.partial(_dial_unix, parsed.target, address)
    if parsed.scheme == "tcp":
        if tls is None:
            return functools.partial(_dial_tcp, parsed.target, address)
        return _tls_dialer(parsed.target, address, tls)
    argv = command_for(parsed)
    if argv is None:
        summary = f"cannot dial {address}"
        raise BuilderError(summary)
    return lambda: ProcessStream(argv)


def _dial_unix(path: str, address: str) -> ByteStream:
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(path)
    except OSError as exc:
        sock.close()
        raise _unreachable(address, exc) from exc
    return SocketStream(sock)


def _dial_tcp(target: str, address: str) -> SocketStream:
    host, _, port = target.rpartition(":")
    try:
        sock = socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S)
    except OSError as exc:
        raise _unreachable(address, exc) from exc
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return SocketStream(sock)


def _tls_dialer(target: str, address: str, tls: TlsOptions) -> Callable[[], ByteStream]:
    import ssl

    from crossdock.buildkit.tls import TlsStream, client_context

    context = client_context(tls)
    name = tls.server_name or target.rpartition(":")[0].strip("[]")

    def dial() -> ByteStream:
        below = _dial_tcp(target, address)
        try:
            return TlsStream(below, context, server_name=name)
        except (OSError, EOFError) as exc:
            below.close()
            reason = "the daemon closed the connection; does it use TLS?"
            if isinstance(exc, ssl.SSLCertVerificationError):
                reason = exc.verify_message
            elif isinstance(exc, ssl.SSLError):
                reason = (exc.reason or str(exc)).lower().replace("_", " ")
            summary = f"TLS with BuildKit at {address} failed: {reason}"
            hint = "check the driver options cacert, cert, key and servername"
            raise BuilderError(summary, hint=hint) from exc

    return dial


def _unreachable(address: str, exc: OSError) -> BuilderError:
    summary = f"cannot connect to BuildKit at {address}: {(exc.strerror or str(exc)).lower()}"
    hint = "is the daemon running, and is that its address?"
    if isinstance(exc, PermissionError):
        hint = "your user may not use that socket: add it to the group that owns it"
    return BuilderError(summary, hint=hint, retryable=not isinstance(exc, PermissionError))
