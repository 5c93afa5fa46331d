"""Where the server listens: unix sockets, TCP with or without TLS, sockets passed by systemd.

Spec: buildkitd ``--addr``, ``--tls*``, ``--group``; sd_listen_fds(3).
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import grpc

from crossdock.buildkit.transport import SocketStream, join_streams
from crossdock.errors import ConfigError, UsageError
from crossdock.record import Record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Address", "Listeners", "ServerTls", "parse_address", "passed_sockets"]

_log = logging.getLogger("crossdock.server")

_FIRST_FD = 3
_UMASK = 0o117
_BACKLOG = 128


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
            summary = f"invalid address {text!r}: no port"
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
    """The open addresses of one gRPC server."""

    def __init__(self, server: grpc.Server) -> None:
        self._server = server
        self._relays: list[_Relay] = []
        self._paths: list[Path] = []

    def open(
        self,
        addresses: Sequence[Address],
        *,
        tls: ServerTls | None,
        gid: int | None,
        passed: Mapping[str, Sequence[int]],
    ) -> None:
        """Listen. Raises: UsageError, ConfigError naming what cannot be used."""
        for address in addresses:
            if address.scheme == "unix":
                self._open_unix(Path(address.target), gid)
            elif address.scheme == "tcp":
                self._open_tcp(address, tls)
            else:
                self._open_passed(address, passed)

    def close(self) -> None:
        """Take no new connections, remove sockets; idempotent."""
        for relay in self._relays:
            relay.close()
        for path in self._paths:
            path.unlink(missing_ok=True)
        self._paths.clear()

    def _open_unix(self, path: Path, gid: int | None) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            _remove_stale(path)
            before = os.umask(_UMASK)
            try:
                self._bind(f"unix:{path}", str(path))
            finally:
                os.umask(before)
            self._paths.append(path)
            if gid is not None:
                os.chown(path, -1, gid)
        except OSError as exc:
            summary = f"cannot listen on {path}: {exc.strerror}"
            raise UsageError(summary, hint="choose another address with --addr") from exc

    def _open_tcp(self, address: Address, tls: ServerTls | None) -> None:
        if tls is None:
            _log.warning("TLS is not enabled for %s: whoever reaches it can run builds as this user", address)
            self._bind(address.target, str(address))
            return
        credentials = grpc.ssl_server_credentials(
            [(_pem(tls.key), _pem(tls.cert))],
            root_certificates=_pem(tls.ca) if tls.ca is not None else None,
            require_client_auth=tls.ca is not None,
        )
        try:
            self._server.add_secure_port(address.target, credentials)
        except RuntimeError as exc:
            summary = f"cannot listen on {address}: {exc}"
            raise UsageError(summary) from exc

    def _open_passed(self, address: Address, passed: Mapping[str, Sequence[int]]) -> None:
        name = address.target
        if name.isdecimal():
            fds: Sequence[int] = [int(name)] if int(name) in passed.get("", ()) else ()
        else:
            fds = passed.get("" if name == "*" else name, ())
        if not fds:
            summary = f"{address}: no such socket was passed to this process"
            raise UsageError(summary, hint="start it by systemd socket activation, or give another --addr")
        for fd in fds:
            self._relays.append(_Relay(socket.socket(fileno=fd), self._server))

    def _bind(self, target: str, shown: str) -> None:
        try:
            self._server.add_insecure_port(target)
        except RuntimeError as exc:
            summary = f"cannot listen on {shown}: {exc}"
            raise UsageError(summary, hint="choose another address with --addr") from exc


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


def _pem(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        summary = f"cannot read TLS file {path}: {exc.strerror}"
        raise ConfigError(summary) from exc


class _Relay:
    """Serves a socket that gRPC cannot take over: every connection is copied to one that it can."""

    def __init__(self, listener: socket.socket, server: grpc.Server) -> None:
        self._listener = listener
        self._directory = tempfile.mkdtemp(prefix="crossdock-listen-")
        self._target = f"{self._directory}/s"
        server.add_insecure_port(f"unix:{self._target}")
        self._thread = threading.Thread(target=self._accept, name="relay", daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                far, _ = self._listener.accept()
            except OSError:
                return
            near = socket.socket(socket.AF_UNIX)
            try:
                near.connect(self._target)
            except OSError as exc:
                _log.warning("cannot hand a connection on: %s", exc)
                near.close()
                far.close()
                continue
            join_streams(SocketStream(near), SocketStream(far))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._target)
            os.rmdir(self._directory)
