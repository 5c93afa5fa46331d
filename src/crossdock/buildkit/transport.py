"""Reach a BuildKit daemon: addresses, byte streams, and a bridge that lets gRPC use any of them.

gRPC's Python channels dial sockets only. What is not a socket (an HTTP upgrade on the Docker API, ``docker exec``,
``ssh``) becomes one through :class:`Bridge`: a private unix socket whose every connection is copied to a freshly
dialled stream and back.

Not for: what travels over the connection (:mod:`crossdock.buildkit.client`, :mod:`crossdock.buildkit.session`).
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Protocol

from crossdock.errors import BuilderError, UsageError
from crossdock.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

__all__ = ["Address", "Bridge", "ByteStream", "ProcessStream", "SocketStream", "TlsOptions", "command_for"]

#: bytes copied at once; two HTTP/2 windows' worth keeps system calls few
_BLOCK = 256 * 1024

SCHEMES = (
    "unix",
    "tcp",
    "ssh",
    "docker-container",
    "podman-container",
    "nerdctl-container",
    "kube-pod",
)


class ByteStream(Protocol):
    """A bidirectional stream of bytes; one reader and one writer thread at a time."""

    def recv(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes; empty at the end."""
        ...

    def sendall(self, data: bytes | bytearray, /) -> None:
        """Send everything."""
        ...

    def shutdown_write(self) -> None:
        """Say that nothing more will be sent."""
        ...

    def close(self) -> None:
        """Close both directions and wake whoever is blocked; idempotent."""
        ...


class SocketStream:
    """A connected socket, with bytes already read of it (after an HTTP upgrade)."""

    def __init__(self, sock: socket.socket, buffered: bytes = b"") -> None:
        self._sock = sock
        self._buffered = buffered

    def recv(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes; empty at the end or once closed."""
        if self._buffered:
            data, self._buffered = self._buffered[:size], self._buffered[size:]
            return data
        try:
            return self._sock.recv(size)
        except (ConnectionResetError, OSError):
            return b""

    def sendall(self, data: bytes | bytearray, /) -> None:
        """Send everything."""
        self._sock.sendall(data)

    def shutdown_write(self) -> None:
        """Half-close."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close; a blocked ``recv`` returns."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


class ProcessStream(SocketStream):
    """The standard input and output of a command, such as ``ssh host buildctl dial-stdio``.

    Both are one socket, so that either direction can be closed alone and nothing is copied.
    """

    def __init__(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        import subprocess

        near, far = socket.socketpair()
        try:
            # Own session: Ctrl-C must reach us first, so that the solve can be cancelled over this very stream.
            self._process = subprocess.Popen(
                list(argv),
                stdin=far.fileno(),
                stdout=far.fileno(),
                stderr=subprocess.PIPE,
                env=env,
                start_new_session=True,
            )
        except OSError as exc:
            near.close()
            summary = f"cannot run {argv[0]}: {exc.strerror}"
            raise BuilderError(summary, hint=f"install {argv[0]}, or put it on PATH") from exc
        finally:
            far.close()
        super().__init__(near)
        self._timeout = subprocess.TimeoutExpired
        self._program = argv[0]
        #: our end, for what wants a socket; closed by :meth:`close`
        self.socket = near
        self._closing = False
        self._stderr: list[bytes] = []
        self._stderr_thread = threading.Thread(target=self._drain, daemon=True, name="dial-stderr")
        self._stderr_thread.start()

    def _drain(self) -> None:
        stderr = self._process.stderr
        if stderr is None:
            return
        with stderr:
            for line in stderr:
                if len(self._stderr) < 50:
                    self._stderr.append(line)

    @property
    def failure(self) -> str:
        """What the command wrote to stderr, or that it ended; for error messages once the stream has ended."""
        self._stderr_thread.join(1)
        text = b"".join(self._stderr).decode(errors="replace").strip()
        code = self._process.poll()
        return text or (f"{self._program} ended with exit code {code}" if code else "")

    def close(self) -> None:
        """End the command; idempotent."""
        super().close()
        if self._closing:
            return
        self._closing = True
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(2)
            except self._timeout:
                self._process.kill()
                self._process.wait()
        self._stderr_thread.join(1)


class TlsOptions(Record):
    """TLS of a ``tcp://`` address: PEM files, absolute."""

    ca_cert: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    #: name to verify instead of the address' host
    server_name: str = ""


class Address(Record):
    """A parsed daemon address."""

    scheme: str
    #: socket path, ``host:port``, container or pod name
    target: str
    query: Mapping[str, str]
    user: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse ``unix:///…``, ``tcp://host:port``, ``ssh://…``, ``docker-container://name`` and their kin.

        Raises: UsageError for an unknown scheme or an empty target.
        """
        from urllib.parse import parse_qs, unquote, urlsplit

        parts = urlsplit(text)
        if parts.scheme == "npipe":
            summary = f"cannot use {text}: named pipes exist on Windows only"
            raise UsageError(summary, hint="give the daemon a unix:// or tcp:// address")
        if parts.scheme not in SCHEMES:
            summary = f"invalid BuildKit address {text!r}"
            raise UsageError(summary, hint=f"use one of {', '.join(s + '://' for s in SCHEMES)}")
        query = {k: v[-1] for k, v in parse_qs(parts.query).items()}
        if parts.scheme == "unix":
            target = unquote(parts.netloc + parts.path)
        elif parts.scheme == "ssh":
            target = (parts.hostname or "") + (f":{parts.port}" if parts.port else "")
            query.setdefault("socket", parts.path)
        elif parts.scheme == "tcp":
            target = parts.netloc if parts.port else f"{parts.netloc}:1234"
        else:
            target = unquote(parts.netloc or parts.path.lstrip("/"))
        if not target:
            summary = f"invalid BuildKit address {text!r}: nothing after {parts.scheme}://"
            raise UsageError(summary)
        return cls(scheme=parts.scheme, target=target, query=query, user=parts.username or "")


def command_for(address: Address) -> list[str] | None:
    """Return the command whose stdio is the daemon's connection, or ``None`` for socket schemes."""
    query = address.query
    match address.scheme:
        case "ssh":
            host, _, port = address.target.partition(":")
            argv = ["ssh", "-o", "ConnectTimeout=30", "-T"]
            argv += ["-p", port] if port else []
            argv += ["-l", address.user] if address.user else []
            path = query.get("socket", "")
            remote = ["buildctl", *(["--addr", f"unix://{path}"] if path else []), "dial-stdio"]
            return [*argv, "--", host, *remote]
        case "docker-container":
            context = ["--context", query["context"]] if query.get("context") else []
            return ["docker", *context, "exec", "-i", address.target, "buildctl", "dial-stdio"]
        case "podman-container":
            return ["podman", "exec", "-i", address.target, "buildctl", "dial-stdio"]
        case "nerdctl-container":
            return ["nerdctl", "exec", "-i", address.target, "buildctl", "dial-stdio"]
        case "kube-pod":
            flags = [f"--{k}={query[k]}" for k in ("context", "namespace", "container") if query.get(k)]
            return ["kubectl", *flags, "exec", "-i", address.target, "--", "buildctl", "dial-stdio"]
        case _:
            return None


class Bridge:
    """A private unix socket that forwards each connection to a freshly dialled stream."""

    def __init__(self, dial: Callable[[], ByteStream]) -> None:
        self._dial = dial
        import tempfile
        from pathlib import Path

        self._dir = Path(tempfile.mkdtemp(prefix="crossdock-"))
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._dir / "s"))
        self._listener.listen(8)
        # Guards _streams, _threads and _closed.
        self._lock = threading.Lock()
        self._streams: set[ByteStream] = set()
        self._threads: list[threading.Thread] = []
        self._closed = False
        #: what the last failed dial raised; gRPC itself only says UNAVAILABLE
        self.failure: BaseException | None = None
        self._accepting = threading.Thread(target=self._accept, daemon=True, name="bridge-accept")
        self._accepting.start()

    @property
    def target(self) -> str:
        """The address for ``grpc.insecure_channel``."""
        return f"unix:{self._dir}/s"

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = self._dial()
            except Exception as exc:  # noqa: BLE001 - kept for whoever sees the channel fail
                self.failure = exc
                near.close()
                continue
            self._join(SocketStream(near), far)

    def _join(self, near: ByteStream, far: ByteStream) -> None:
        with self._lock:
            if self._closed:
                near.close()
                far.close()
                return
            self._streams |= {near, far}
            pumps = join_streams(near, far, on_close=lambda: self._forget(near, far))
            self._threads = [t for t in self._threads if t.is_alive()] + pumps

    def _forget(self, *streams: ByteStream) -> None:
        with self._lock:
            self._streams -= set(streams)

    def close(self) -> None:
        """Close every connection and remove the socket; idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            streams, threads = list(self._streams), list(self._threads)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for stream in streams:
            stream.close()
        for thread in (self._accepting, *threads):
            thread.join(5)
        import shutil

        shutil.rmtree(self._dir, ignore_errors=True)


def join_streams(
    a: ByteStream, b: ByteStream, *, on_close: Callable[[], None] | None = None
) -> list[threading.Thread]:
    """Copy both ways in two threads until either side ends; then both are closed and ``on_close`` is called once."""
    remaining = threading.Semaphore(1)

    def finish() -> None:
        # The first pump to end closes both sides, which ends the other; the second reports.
        if remaining.acquire(blocking=False):
            a.close()
            b.close()
        elif on_close is not None:
            on_close()

    def pump(source: ByteStream, sink: ByteStream) -> None:
        try:
            while data := source.recv(_BLOCK):
                sink.sendall(data)
        except (OSError, ValueError):
            pass  # the other side is gone: closing both says so
        finally:
            finish()

    threads = [
        threading.Thread(target=pump, args=pair, daemon=True, name="bridge-pump") for pair in ((a, b), (b, a))
    ]
    for thread in threads:
        thread.start()
    return threads
