"""TLS over any byte stream, safe with one reader and one writer thread.

``ssl.SSLSocket`` is not: OpenSSL's state may not be entered twice at once, and a lock around a blocking read would keep
the writer out. Here the state is locked and the blocking happens outside.
"""

from __future__ import annotations

import contextlib
import ssl
import threading
from typing import TYPE_CHECKING

from crossdock.errors import BuilderError

if TYPE_CHECKING:
    from pathlib import Path

    from crossdock.buildkit.transport import ByteStream, TlsOptions

__all__ = ["TlsStream", "client_context"]

_BLOCK = 256 * 1024


class TlsStream:
    """An encrypted stream over another; :meth:`close` closes both."""

    def __init__(self, below: ByteStream, context: ssl.SSLContext, *, server_name: str = "") -> None:
        """Shake hands, as the server without ``server_name``. Raises: ssl.SSLError; EOFError when the peer goes away meanwhile."""
        self._below = below
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=not server_name, server_hostname=server_name or None
        )
        # Guards _tls and both buffers.
        self._lock = threading.Lock()
        # Guards the order of what is sent below; taken before _lock.
        self._send_lock = threading.Lock()
        #: what the peer said when it ended the connection with an alert
        self.failure = ""
        self._shake_hands()

    def _shake_hands(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                data = self._below.recv(_BLOCK)
                if not data:
                    raise EOFError from None
                self._incoming.write(data)
            except ssl.SSLError:
                # The alert that tells the peer why.
                with contextlib.suppress(OSError):
                    self._flush()
                raise
            else:
                self._flush()
                return

    def _flush(self) -> None:
        with self._send_lock:
            with self._lock:
                data = self._outgoing.read()
            if data:
                self._below.sendall(data)

    def recv(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes; empty at the end."""
        while True:
            try:
                with self._lock:
                    return self._tls.read(size)
            except ssl.SSLWantReadError:
                data = self._below.recv(_BLOCK)
                if not data:
                    return b""
                with self._lock:
                    self._incoming.write(data)
            except ssl.SSLError as exc:
                # With TLS 1.3 a refused client certificate shows here, after the handshake.
                self.failure = f"TLS: {exc.reason or exc}".lower().replace("_", " ")
                return b""

    def sendall(self, data: bytes | bytearray, /) -> None:
        """Send everything."""
        with self._send_lock:
            with self._lock:
                self._tls.write(data)
                encrypted = self._outgoing.read()
            self._below.sendall(encrypted)

    def shutdown_write(self) -> None:
        """Say that nothing more will be sent."""
        self._below.shutdown_write()

    def close(self) -> None:
        """Close both directions; idempotent."""
        self._below.close()


def client_context(options: TlsOptions) -> ssl.SSLContext:
    """Return the settings of a client that speaks HTTP/2.

    Raises: BuilderError when a file is unreadable or not what it should be.
    """
    if (options.cert is None) != (options.key is None):
        summary = "TLS client certificate and key must be given together"
        raise BuilderError(summary)
    try:
        context = ssl.create_default_context(cadata=_read(options.ca_cert) if options.ca_cert else None)
    except ssl.SSLError as exc:
        summary = f"cannot use TLS file {options.ca_cert}: {exc.reason or exc}"
        raise BuilderError(summary, hint="it must hold PEM certificates") from exc
    context.set_alpn_protocols(["h2"])
    if options.cert is not None and options.key is not None:
        for path in (options.cert, options.key):
            _read(path)
        try:
            context.load_cert_chain(options.cert, options.key)
        except ssl.SSLError as exc:
            summary = (
                f"{options.cert} and {options.key} are not a TLS certificate and its key: {exc.reason or exc}"
            )
            raise BuilderError(summary) from exc
    return context


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not PEM"
        summary = f"cannot read TLS file {path}: {reason}"
        raise BuilderError(summary) from exc
