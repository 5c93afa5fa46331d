"""Open byte streams to a daemon's address."""

from __future__ import annotations

import functools
import socket
from typing import TYPE_CHECKING

from crossdock.buildkit.transport import Address, ProcessStream, SocketStream, command_for
from crossdock.errors import BuilderError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from crossdock.buildkit.transport import ByteStream, TlsOptions

__all__ = ["dialer", "open_tcp", "open_tls"]

_CONNECT_S = 10.0


def dialer(address: str, tls: TlsOptions | None = None) -> Callable[[], ByteStream]:
    """Return a function that opens a stream to ``address``.

    Raises: UsageError for a bad address; BuilderError for unreadable TLS files. What is returned raises BuilderError;
    ``retryable`` ones may pass when the daemon comes up.
    """
    if address.startswith("unix:///") and not {"%", "?", "#"} & set(address):
        return functools.partial(_dial_unix, address.removeprefix("unix://"), address)
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


def _dial_tcp(target: str, address: str) -> ByteStream:
    host, _, port = target.rpartition(":")
    try:
        return open_tcp(host.strip("[]"), int(port))
    except OSError as exc:
        raise _unreachable(address, exc) from exc


def open_tcp(host: str, port: int) -> SocketStream:
    """Connect within ten seconds. Raises: OSError."""
    sock = socket.create_connection((host, port), timeout=_CONNECT_S)
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return SocketStream(sock)


def open_tls(
    below: ByteStream, context: ssl.SSLContext, *, server_name: str, what: str, hint: str
) -> ByteStream:
    """Begin TLS on a stream, which is closed when that fails. Raises: BuilderError with the reason in words."""
    import ssl

    from crossdock.buildkit.tls import TlsStream

    try:
        return TlsStream(below, context, server_name=server_name)
    except (OSError, EOFError) as exc:
        below.close()
        reason = "the peer closed the connection; does it use TLS?"
        if isinstance(exc, ssl.SSLCertVerificationError):
            reason = exc.verify_message
        elif isinstance(exc, ssl.SSLError):
            reason = (exc.reason or str(exc)).lower().replace("_", " ")
        summary = f"TLS with {what} failed: {reason}"
        raise BuilderError(summary, hint=hint) from exc


def _tls_dialer(target: str, address: str, tls: TlsOptions) -> Callable[[], ByteStream]:
    from crossdock.buildkit.tls import client_context

    context = client_context(tls)
    name = tls.server_name or target.rpartition(":")[0].strip("[]")
    hint = "check the driver options cacert, cert, key and servername"
    return lambda: open_tls(
        _dial_tcp(target, address), context, server_name=name, what=f"BuildKit at {address}", hint=hint
    )


def _unreachable(address: str, exc: OSError) -> BuilderError:
    summary = f"cannot connect to BuildKit at {address}: {(exc.strerror or str(exc)).lower()}"
    hint = "is the daemon running, and is that its address?"
    if isinstance(exc, PermissionError):
        hint = "your user may not use that socket: add it to the group that owns it"
    return BuilderError(summary, hint=hint, retryable=not isinstance(exc, PermissionError))
