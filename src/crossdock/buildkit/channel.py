"""Open gRPC channels to a BuildKit daemon, whatever the address."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from crossdock.buildkit.transport import Address, Bridge, ProcessStream, TlsOptions, command_for
from crossdock.errors import BuilderError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from crossdock.buildkit.transport import ByteStream

__all__ = ["Connection", "connect"]

#: BuildKit accepts and sends messages up to 16 MiB
_MAX_MESSAGE = 16 << 20
_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_send_message_length", _MAX_MESSAGE),
    ("grpc.max_receive_message_length", _MAX_MESSAGE),
    # Error details (stacks, the Dockerfile itself) come as trailing metadata, far beyond gRPC's default of 8 KiB.
    ("grpc.max_metadata_size", 4 << 20),
    ("grpc.absolute_max_metadata_size", 8 << 20),
    # Go's server closes connections that ping more often than it likes.
    ("grpc.keepalive_time_ms", 0x7FFFFFFF),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
)


class Connection:
    """A channel and what it stands on; :meth:`close` releases both."""

    def __init__(self, channel: grpc.Channel, *, bridge: Bridge | None, name: str) -> None:
        self.channel = channel
        self._bridge = bridge
        #: the address, for messages
        self.name = name

    @property
    def dial_failure(self) -> BaseException | None:
        """Why the last dial below the channel failed, when it did."""
        return self._bridge.failure if self._bridge is not None else None

    def close(self) -> None:
        """Close the channel and everything below it; idempotent."""
        self.channel.close()
        if self._bridge is not None:
            self._bridge.close()


def connect(
    address: str | Callable[[], ByteStream], *, tls: TlsOptions | None = None, name: str = ""
) -> Connection:
    """Open a lazy channel to ``address`` (or over streams that a callable dials).

    Nothing is sent before the first call. Raises: UsageError for a bad address; BuilderError for unreadable TLS files.
    """
    if not isinstance(address, str):
        bridge = Bridge(address)
        return Connection(_insecure(bridge.target), bridge=bridge, name=name or "daemon")
    parsed = Address.parse(address)
    name = name or address
    if parsed.scheme == "unix":
        return Connection(_insecure(f"unix:{parsed.target}"), bridge=None, name=name)
    if parsed.scheme == "tcp":
        channel = _insecure(parsed.target) if tls is None else _secure(parsed.target, tls)
        return Connection(channel, bridge=None, name=name)
    argv = command_for(parsed)
    if argv is None:
        summary = f"cannot dial {address}"
        raise BuilderError(summary)
    bridge = Bridge(lambda: ProcessStream(argv))
    return Connection(_insecure(bridge.target), bridge=bridge, name=name)


def _insecure(target: str) -> grpc.Channel:
    # Over a unix socket the authority would be the socket's path, which Go's HTTP/2 server refuses.
    return grpc.insecure_channel(target, options=(*_OPTIONS, ("grpc.default_authority", "localhost")))


def _secure(target: str, tls: TlsOptions) -> grpc.Channel:
    if (tls.cert is None) != (tls.key is None):
        summary = "TLS client certificate and key must be given together"
        raise BuilderError(summary)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_pem(tls.ca_cert), private_key=_pem(tls.key), certificate_chain=_pem(tls.cert)
    )
    options = list(_OPTIONS)
    if tls.server_name:
        options += [
            ("grpc.ssl_target_name_override", tls.server_name),
            ("grpc.default_authority", tls.server_name),
        ]
    return grpc.secure_channel(target, credentials, options=options)


def _pem(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as exc:
        summary = f"cannot read TLS file {path}: {exc.strerror}"
        raise BuilderError(summary) from exc
