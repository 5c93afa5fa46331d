"""Connections to registries: dialling, TLS, proxies, and a pool per host.

Not for: what is sent over them (``exchange``). Every wait ends when the token is cancelled: sockets are shut
down under the thread that waits on them.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from typing import TYPE_CHECKING

from crossdock.record import NamedTuple
from crossdock.registry.http1 import BodyCut, Connection, NotHttp, StreamBody

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping

    from crossdock.cancel import CancelToken
    from crossdock.registry.config import TlsConfig
    from crossdock.registry.http1 import Response

__all__ = ["Origin", "Timeouts", "Transport", "TransportFailure"]

_POLL_S = 0.2
_IDLE_S = 25.0
_IDLE_PER_ORIGIN = 8


class Timeouts(NamedTuple):
    """Seconds to wait: for one address to answer, and for the next byte in either direction."""

    connect_s: float = 15.0
    idle_s: float = 60.0


class Origin(NamedTuple):
    """Where a connection leads; connections to equal origins are interchangeable."""

    scheme: str
    host: str
    port: int
    tls: TlsConfig

    @property
    def authority(self) -> str:
        """Host and port as in a URL; the scheme's own port is left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"


class TransportFailure(Exception):
    """No answer came; ``phase`` is ``resolve``, ``connect``, ``proxy``, ``tls``, ``send`` or ``receive``."""

    def __init__(self, phase: str, cause: OSError, *, origin: Origin, reused: bool = False) -> None:
        super().__init__(f"{phase}: {cause}")
        self.phase = phase
        self.cause = cause
        self.origin = origin
        #: the connection had served before: the peer may simply have closed an idle connection
        self.reused = reused
        #: how many times the request was sent
        self.attempts = 1
        #: absolute URL asked, set by the exchange
        self.url = ""


class Transport:
    """The connection pool. Safe from any thread."""

    def __init__(self, *, timeouts: Timeouts | None = None, env: Mapping[str, str] | None = None) -> None:
        self.timeouts = timeouts or Timeouts()
        self._env = os.environ if env is None else env
        # Guards _idle and _contexts; never held over I/O.
        self._lock = threading.Lock()
        self._idle: dict[Origin, list[Connection]] = {}
        self._contexts: dict[TlsConfig, ssl.SSLContext] = {}

    def request(
        self,
        origin: Origin,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | StreamBody | None,
        *,
        cancel: CancelToken,
        idle_s: float | None = None,
    ) -> Response:
        """Send one request and read the head of its answer, for which ``idle_s`` seconds are waited.

        Raises: TransportFailure; the token's cause when cancelled.
        """
        connection = self._take(origin) or self._dial(origin, cancel)
        connection.unregister = cancel.on_cancel(_shutter(connection.sock))
        reused = connection.exchanges > 0
        phase = "send"
        try:
            connection.sock.settimeout(self.timeouts.idle_s)
            broken = self._send(connection, method, target, headers, body, cancel)
            phase = "receive"
            connection.sock.settimeout(idle_s or self.timeouts.idle_s)
            try:
                return connection.receive(method, self._releaser(origin))
            except OSError as exc:
                if broken is not None and isinstance(exc, BodyCut | ConnectionError):
                    phase = "send"
                    raise broken from exc
                raise
        except OSError as exc:
            answered = connection.answered or isinstance(exc, NotHttp)
            connection.close()
            cancel.check()
            raise TransportFailure(phase, exc, origin=origin, reused=reused and not answered) from exc
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            idle = [c for connections in self._idle.values() for c in connections]
            self._idle.clear()
        for connection in idle:
            connection.close()

    @staticmethod
    def _send(
        connection: Connection,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | StreamBody | None,
        cancel: CancelToken,
    ) -> OSError | None:
        """Send; a connection broken by the peer is returned, because its answer may still be readable."""
        try:
            connection.send(method, target, headers, body, check=cancel.check)
        except (BrokenPipeError, ConnectionResetError) as exc:
            cancel.check()
            return exc
        return None

    def _take(self, origin: Origin) -> Connection | None:
        while True:
            with self._lock:
                connections = self._idle.get(origin)
                if not connections:
                    return None
                connection = connections.pop()
            if time.monotonic() - connection.idle_since < _IDLE_S and not _readable(connection.sock):
                return connection
            connection.close()

    def _releaser(self, origin: Origin) -> Callable[[Connection, bool], None]:
        def release(connection: Connection, reusable: bool) -> None:
            if connection.unregister is not None:
                connection.unregister()
                connection.unregister = None
            if reusable:
                connection.idle_since = time.monotonic()
                with self._lock:
                    idle = self._idle.setdefault(origin, [])
                    if len(idle) < _IDLE_PER_ORIGIN:
                        idle.append(connection)
                        return
            connection.close()

        return release

    def _dial(self, origin: Origin, cancel: CancelToken) -> Connection:
        phase = "resolve"
        sock: socket.socket | None = None
        try:
            proxy = self._proxy(origin)
            host, port = (proxy.host, proxy.port) if proxy else (origin.host, origin.port)
            addresses = _resolve(host, port, cancel)
            phase = "connect"
            sock = _connect(addresses, self.timeouts.connect_s, cancel)
            if proxy is not None:
                phase = "proxy"
                proxy.tunnel(sock, origin, self.timeouts.connect_s)
            if origin.scheme == "https":
                phase = "tls"
                sock = self._wrap(sock, origin)
                with cancel.waking(_shutter(sock)):
                    sock.do_handshake()
        except OSError as exc:
            if sock is not None:
                sock.close()
            cancel.check()
            raise TransportFailure(phase, exc, origin=origin) from exc
        except BaseException:
            if sock is not None:
                sock.close()
            raise
        return Connection(sock)

    def _proxy(self, origin: Origin) -> Proxy | None:
        if not any(name.lower().endswith("_proxy") for name in self._env):
            return None
        from crossdock.registry.proxy import find_proxy  # few machines have one

        return find_proxy(origin.scheme, origin.host, origin.port, self._env)

    def _wrap(self, sock: socket.socket, origin: Origin) -> ssl.SSLSocket:
        with self._lock:
            context = self._contexts.get(origin.tls)
        if context is None:
            from crossdock.registry.tls import make_context  # ssl is dear, loopback needs none

            context = make_context(origin.tls)
            with self._lock:
                self._contexts[origin.tls] = context
        sock.settimeout(self.timeouts.connect_s)
        return context.wrap_socket(sock, server_hostname=origin.host, do_handshake_on_connect=False)


def _shutter(sock: socket.socket) -> Callable[[], None]:
    """Return what wakes a thread that waits on ``sock``: closing alone would not."""

    def shut() -> None:
        try:
            # The base class's method: SSLSocket's own would also drop the TLS state that the waiter uses.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
        except OSError:
            return  # not connected any more, which is what is wanted

    return shut


def _readable(sock: socket.socket) -> bool:
    """Whether an idle socket has something to read: an end, or an answer to nothing; or is closed."""
    poll = select.poll()
    try:
        poll.register(sock, select.POLLIN)
    except ValueError:
        return True  # its response was closed by a cancellation while its last byte was being read
    return bool(poll.poll(0))


_Address = tuple[int, int, int, str, tuple[object, ...]]


def _resolve(host: str, port: int, cancel: CancelToken) -> list[_Address]:
    """Look a name up; in a thread of its own, because the C library's lookup cannot be interrupted."""
    # As bytes: for text, Python imports and runs its IDNA codec, which costs more than the connection.
    name = host.encode("ascii")
    if host == "localhost" or ":" in host or host.replace(".", "").isdigit():
        return list(socket.getaddrinfo(name, port, type=socket.SOCK_STREAM))
    found: list[_Address] = []
    failed: list[OSError] = []
    done = threading.Event()

    def look_up() -> None:
        try:
            found.extend(socket.getaddrinfo(name, port, type=socket.SOCK_STREAM))
        except OSError as exc:
            failed.append(exc)
        finally:
            done.set()

    threading.Thread(target=look_up, name="crossdock-dns", daemon=True).start()
    while not done.wait(_POLL_S):
        cancel.check()
    if failed:
        raise failed[0]
    return found


def _connect(addresses: list[_Address], timeout_s: float, cancel: CancelToken) -> socket.socket:
    """Connect to the first address that answers; the first failure is reported."""
    first: OSError | None = None
    for family, kind, proto, _, address in addresses:
        cancel.check()
        sock: socket.socket | None = None
        try:
            sock = socket.socket(family, kind, proto)
            sock.setblocking(False)
            _finish_connect(sock, address, timeout_s, cancel)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as exc:
            first = first or exc
            if sock is not None:
                sock.close()
        except BaseException:
            if sock is not None:
                sock.close()
            raise
        else:
            return sock
    raise first or OSError("the name has no address")


def _finish_connect(
    sock: socket.socket, address: tuple[object, ...], timeout_s: float, cancel: CancelToken
) -> None:
    try:
        sock.connect(address)
    except BlockingIOError:
        pass
    else:
        return
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    deadline = time.monotonic() + timeout_s
    while not poll.poll(_POLL_S * 1000):
        cancel.check()
        if time.monotonic() > deadline:
            msg = "the connection was not answered"
            raise TimeoutError(msg)
    error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, os.strerror(error))


if TYPE_CHECKING:
    from crossdock.registry.proxy import Proxy
