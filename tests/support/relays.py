"""Ways to a real BuildKit: relays of sockets, TCP and TLS, which can be cut, and stand-ins for ``ssh`` and its kin.

The BuildKit is that inside a Docker Engine: its ``/grpc`` upgrade is the protocol that buildkitd speaks on its socket,
Control.Session included. Where ``buildkitd`` is on PATH, the same cases run with it too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

import services

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Sequence

    from crossdock.buildkit.transport import ByteStream

_BLOCK = 64 * 1024


class Relay:
    """Listens on a unix socket (or TCP, or TLS) and copies every connection to one that ``dial`` opens.

    ``cut_up`` and ``cut_down`` end a connection after so many bytes to or from the daemon; :meth:`cut` ends all now.
    ``act`` is called once, when ``after_up`` bytes have gone to the daemon, or ``after_down`` have come from it.
    """

    def __init__(
        self,
        dial: Callable[[], ByteStream],
        *,
        tcp: bool = False,
        tls: ssl.SSLContext | None = None,
        cut_up: int = 0,
        cut_down: int = 0,
        after_up: int = 0,
        after_down: int = 0,
        act: Callable[[], object] = lambda: None,
    ) -> None:
        self._dial, self._tls = dial, tls
        self._after = {"up": after_up, "down": after_down}
        self._act: Callable[[], object] | None = act
        self.cut_up, self.cut_down = cut_up, cut_down
        #: bytes passed to and from the daemon
        self.up = self.down = 0
        self._folder = tempfile.mkdtemp(prefix="relay-", dir="/tmp")
        self._lock = threading.Lock()
        self._streams: set[ByteStream] = set()
        self._threads: list[threading.Thread] = []
        if tcp or tls:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.port = self._listener.getsockname()[1]
            self.path = ""
        else:
            self.path = f"{self._folder}/sock"
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(self.path)
            self._listener.listen()
        self._accepting = threading.Thread(target=self._accept)

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        self.cut()
        for thread in self._threads:
            thread.join()
        shutil.rmtree(self._folder)

    @property
    def address(self) -> str:
        """The daemon's address for the remote driver."""
        return f"unix://{self.path}" if self.path else f"tcp://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """End all connections, as a daemon that dies does."""
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            stream.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(near,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        from crossdock.buildkit.tls import TlsStream
        from crossdock.buildkit.transport import SocketStream
        from crossdock.errors import CrossdockError

        near: ByteStream = SocketStream(sock)
        try:
            if self._tls is not None:
                near = TlsStream(near, self._tls, server_name="")
            far = self._dial()
        except (OSError, EOFError, CrossdockError):
            # Closed with something unread, a connection is reset, and what was said last (a TLS alert) is lost.
            with contextlib.suppress(OSError):
                near.shutdown_write()
                while near.recv(_BLOCK):
                    pass
            near.close()
            return
        with self._lock:
            self._streams |= {near, far}
        back = threading.Thread(target=self._pump, args=(far, near, "down"))
        back.start()
        self._pump(near, far, "up")
        back.join()
        with self._lock:
            self._streams -= {near, far}

    def _pump(self, source: ByteStream, sink: ByteStream, way: str) -> None:
        limit = self.cut_up if way == "up" else self.cut_down
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(_BLOCK):
                if limit and passed + len(data) > limit:
                    break
                sink.sendall(data)
                passed += len(data)
                setattr(self, way, getattr(self, way) + len(data))
                if 0 < self._after[way] <= passed and self._act is not None:
                    act, self._act = self._act, None
                    act()
        source.close()
        sink.close()


def grpc_of(engine: services.DockerEngine) -> Callable[[], ByteStream]:
    """A function that opens the BuildKit of an Engine as if it were a buildkitd of its own."""
    from crossdock.buildkit.engine import EngineDialer, unix_dialer

    return EngineDialer(unix_dialer(str(engine.socket)), name="the Engine").grpc


def socket_of(path: str | Path) -> Callable[[], ByteStream]:
    """A function that connects to a unix socket."""
    from crossdock.buildkit.dial import dialer

    return dialer(f"unix://{path}")


class Mortal:
    """A daemon that a case may kill as the kernel does when memory is short."""

    def __init__(self, dial: Callable[[], ByteStream], pid: int) -> None:
        self.dial = dial
        self._pid = pid

    def kill(self) -> None:
        """End it at once; nothing of it is cleaned up."""
        os.kill(self._pid, signal.SIGKILL)


@contextlib.contextmanager
def mortal(kind: str, folder: Path) -> Iterator[Mortal]:
    """A daemon of its own for a case: ``engine`` (26.1, containerd store) or ``buildkitd`` from PATH."""
    if kind == "engine":
        with services.DockerEngine("26.1", containerd_store=True) as engine:
            yield Mortal(grpc_of(engine), engine.pid)
        return
    with buildkitd(folder) as path:
        yield Mortal(socket_of(path), _listening(path))


def _listening(path: str) -> int:
    """The buildkitd that serves a socket."""
    for folder in os.listdir("/proc"):
        if folder.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{folder}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
                if words[0].endswith(b"buildkitd") and f"unix://{path}".encode() in words:
                    return int(folder)
    msg = f"no buildkitd serves {path}"
    raise AssertionError(msg)


@contextlib.contextmanager
def buildkitd(folder: Path) -> Iterator[str]:
    """A buildkitd from PATH with runc; gives its socket."""
    program = shutil.which("buildkitd") or "buildkitd"
    path = f"{folder}/buildkitd.sock"
    process = services.Process(
        [
            *services.NAMESPACES,
            *(program, "--root", f"{folder}/root", "--addr", f"unix://{path}"),
            *("--oci-worker-binary", "runc", "--group", str(os.getgid())),
        ],
        log=folder / "log",
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
    )
    try:
        process.wait_until(Path(path).exists, what="buildkitd")
        yield path
    finally:
        process.stop()


_DIAL_STDIO = """#!{python}
import json, os, socket, sys, threading
with open({log!r}, "a") as log:
    log.write(json.dumps(sys.argv) + "\\n")
if {failure!r}:
    sys.exit({failure!r})
far = socket.socket(socket.AF_UNIX)
far.connect({path!r})
def outward():
    while data := os.read(0, 65536):
        far.sendall(data)
    far.shutdown(socket.SHUT_WR)
threading.Thread(target=outward, daemon=True).start()
while data := far.recv(65536):
    while data:
        data = data[os.write(1, data):]
"""


class FakeProgram:
    """A program on PATH that records how it is called and becomes a connection to ``path``; :attr:`calls` are argvs."""

    def __init__(self, folder: Path, name: str, path: str, *, failure: str = "") -> None:
        folder.mkdir(exist_ok=True)
        self._log = folder / f"{name}.log"
        script = folder / name
        script.write_text(
            _DIAL_STDIO.format(python=sys.executable, log=str(self._log), path=path, failure=failure)
        )
        script.chmod(0o755)

    @property
    def calls(self) -> list[Sequence[str]]:
        """The arguments of every call."""
        import json

        return [json.loads(line)[1:] for line in self._log.read_text().splitlines()]
