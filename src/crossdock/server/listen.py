"""Where the server listens: unix sockets, TCP with or without TLS, sockets passed by systemd.

Spec: buildkitd ``--addr``, ``--tls*``, ``--group``; sd_listen_fds(3).
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from crossdock.buildkit.rpc.messages import Budget
from crossdock.buildkit.rpc.serve import Server
from crossdock.buildkit.rpc.streams import ConnectionLost
from crossdock.buildkit.transport import SocketStream
from crossdock.errors import ConfigError, UsageError
from crossdock.record import Record

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping, Sequence

    from crossdock.buildkit.rpc.serve import Handler
    from crossdock.buildkit.transport import ByteStream

__all__ = ["Address", "Listeners", "ServerTls", "parse_address", "passed_sockets"]

_log = logging.getLogger("crossdock.server")

_FIRST_FD = 3
_UMASK = 0o117
_BACKLOG = 1024
#: clients at once; each costs a descriptor and two threads
_MAX_CONNECTIONS = 500
#: calls at once, of all clients; each has a thread
_MAX_CALLS = 4096
#: bytes of metadata of one call, and of large messages of all clients that are still coming
_MAX_METADATA, _LARGE_MESSAGES = 256 << 10, 256 << 20
#: seconds before trying again when the process has no descriptors left
_PAUSE_S = 0.1


class ServerTls(Record):
    """PEM files of the server; with ``ca`` clients must show a certificate it signed."""

    cert: Path
    key: Path
    ca: Path | None = None


class Address(Record):
    """One address: ``unix`` with a path, ``tcp`` with host and port, ``fd`` with a name, number or nothing."""

    scheme: str
    target: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.target}"


def parse_address(text: str) -> Address:
    """Read an address. Raises: UsageError."""
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in ("unix", "tcp", "fd"):
        summary = f"invalid address {text!r}"
        raise UsageError(summary, hint="write it as unix:///path, tcp://host:port or fd://")
    if scheme == "unix" and not rest.startswith("/"):
        summary = f"invalid address {text!r}: the path must be absolute"
        raise UsageError(summary)
    if scheme == "tcp":
        host, colon, port = rest.rpartition(":")
        if not colon or not port.isdecimal() or int(port) > 65535:
            why = f"{port} is no port" if colon and port else "no port"
            summary = f"invalid address {text!r}: {why}"
            raise UsageError(summary, hint="write it as tcp://host:port")
        rest = f"{host or '0.0.0.0'}:{port}"  # noqa: S104 - as buildkitd does
    return Address(scheme=scheme, target=unquote(rest))


def passed_sockets(environ: Mapping[str, str], pid: int) -> dict[str, list[int]]:
    """Return the sockets that systemd passed, by name; ``""`` has all. To be asked before the process forks."""
    if environ.get("LISTEN_PID", "") not in ("", str(pid)) or not environ.get("LISTEN_FDS", "").isdecimal():
        return {}
    count = int(environ["LISTEN_FDS"])
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    out: dict[str, list[int]] = {"": []}
    for index in range(count):
        fd = _FIRST_FD + index
        os.set_inheritable(fd, False)
        out[""].append(fd)
        if index < len(names) and names[index]:
            out.setdefault(names[index], []).append(fd)
    return out


class Listeners:
    """Listening sockets, and the connections they gave. Sockets take connections as soon as they are open."""

    def __init__(self) -> None:
        self._sockets: list[tuple[socket.socket, ssl.SSLContext | None]] = []
        self._paths: list[Path] = []
        self._closed = False
        # Guards _connections.
        self._lock = threading.Lock()
        self._connections: set[Server] = set()
        self._budget = Budget(_LARGE_MESSAGES)
        self._calls = Budget(_MAX_CALLS)

    def open(
        self,
        addresses: Sequence[Address],
        *,
        tls: ServerTls | None,
        owner: tuple[int | None, int | None] = (None, None),
        passed: Mapping[str, Sequence[int]],
    ) -> None:
        """Listen; ``owner`` are user and group of the unix sockets. Raises: UsageError, ConfigError naming what cannot be used."""
        for address in addresses:
            if address.scheme == "unix":
                self._open_unix(Path(address.target), owner)
            elif address.scheme == "tcp":
                self._open_tcp(address, tls)
            else:
                self._open_passed(address, passed)

    def serve(self, handlers: Mapping[str, Handler]) -> None:
        """Serve what connects, in threads; returns at once."""
        for listener, context in self._sockets:
            threading.Thread(
                target=self._accept, args=(listener, context, handlers), name="accept", daemon=True
            ).start()

    def close(self) -> None:
        """Take no new connections, remove sockets; idempotent."""
        self._closed = True
        for listener, _ in self._sockets:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for path in self._paths:
            path.unlink(missing_ok=True)
        self._paths.clear()

    def disconnect(self) -> None:
        """End all connections."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.close()

    # --- opening ---

    def _open_unix(self, path: Path, owner: tuple[int | None, int | None]) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            _remove_stale(path)
            # Bound beside its place and renamed once it listens: whoever sees the socket can connect.
            unready = path.with_name(f".{os.urandom(4).hex()}")  # short: the kernel allows 107 bytes
            listener = socket.socket(socket.AF_UNIX)
            before = os.umask(_UMASK)
            try:
                listener.bind(os.fspath(unready))
            finally:
                os.umask(before)
            if owner != (None, None):
                os.chown(unready, *(-1 if one is None else one for one in owner))
            listener.listen(_BACKLOG)
            unready.rename(path)
        except OSError as exc:
            summary = f"cannot listen on {path}: {exc.strerror or exc}"
            raise UsageError(summary, hint="choose another address with --addr") from exc
        self._sockets.append((listener, None))
        self._paths.append(path)

    def _open_tcp(self, address: Address, tls: ServerTls | None) -> None:
        if tls is None:
            _log.warning("TLS is not enabled for %s: whoever reaches it can run builds as this user", address)
        host, _, port = address.target.rpartition(":")
        try:
            family, _, _, _, where = socket.getaddrinfo(
                host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listener = socket.create_server((where[0], int(port)), family=family, backlog=_BACKLOG)
        except OSError as exc:
            summary = f"cannot listen on {address}: {exc.strerror or exc}"
            raise UsageError(summary, hint="choose another address with --addr") from exc
        self._sockets.append((listener, None if tls is None else _server_context(tls)))

    def _open_passed(self, address: Address, passed: Mapping[str, Sequence[int]]) -> None:
        name = address.target
        if name.isdecimal():
            fds: Sequence[int] = [int(name)] if int(name) in passed.get("", ()) else ()
        else:
            fds = passed.get("" if name == "*" else name, ())
        if not fds:
            summary = f"{address}: no such socket was passed to this process"
            raise UsageError(summary, hint="start it by systemd socket activation, or give another --addr")
        self._sockets += [(socket.socket(fileno=fd), None) for fd in fds]

    # --- serving ---

    def _accept(
        self, listener: socket.socket, context: ssl.SSLContext | None, handlers: Mapping[str, Handler]
    ) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except ConnectionError:
                continue
            except OSError as exc:
                if self._closed:
                    return
                _log.warning("cannot take a connection: %s", exc)
                time.sleep(_PAUSE_S)
                continue
            stream = SocketStream(sock)
            if context is None:
                self._start(stream, handlers)
            else:
                # Shaking hands takes as long as the peer likes.
                threading.Thread(
                    target=self._secure, args=(stream, context, handlers), name="tls", daemon=True
                ).start()

    def _secure(self, below: SocketStream, context: ssl.SSLContext, handlers: Mapping[str, Handler]) -> None:
        import ssl

        from crossdock.buildkit.tls import TlsStream

        try:
            stream = TlsStream(below, context)
        except (ssl.SSLError, EOFError, OSError) as exc:
            _log.debug("TLS: %s", exc)
            below.close()
            return
        self._start(stream, handlers)

    def _start(self, stream: ByteStream, handlers: Mapping[str, Handler]) -> None:
        connection = Server(
            stream, handlers, max_headers=_MAX_METADATA, budget=self._budget, calls=self._calls
        )
        with self._lock:
            self._connections = {c for c in self._connections if c.alive}
            full = len(self._connections) >= _MAX_CONNECTIONS
            if not full:
                self._connections.add(connection)
        if full:
            _log.warning("more than %d connections at once: one was refused", _MAX_CONNECTIONS)
            stream.close()
            return
        try:
            connection.start()
        except ConnectionLost as exc:
            _log.debug("connection: %s", exc)


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on. Raises: UsageError when somebody does, or it is something else."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        summary = f"cannot listen on {path}: it exists and is no socket"
        raise UsageError(summary)
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(os.fspath(path)) == 0:
            summary = f"cannot listen on {path}: another daemon listens there"
            raise UsageError(summary, hint="stop it, or choose another address with --addr")
    path.unlink()


def _server_context(tls: ServerTls) -> ssl.SSLContext:
    """Return the settings of a server that speaks HTTP/2. Raises: ConfigError."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    try:
        context.load_cert_chain(tls.cert, tls.key)
        if tls.ca is not None:
            context.load_verify_locations(tls.ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as exc:  # SSLError is one
        summary = f"cannot use the TLS files {tls.cert}, {tls.key}: {exc}"
        raise ConfigError(summary) from exc
    return context
