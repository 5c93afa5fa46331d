"""``crossdock serve`` as a process, and Debian's docker-buildx as its client."""

from __future__ import annotations

import signal
import socket as socketlib
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from crossdock.buildkit.proto import control_pb2, gateway_pb2
from crossdock.buildkit.session.server import new_id
from integration.server.plain import Build, Client
from support import cli
from support.cli import PROGRAM

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from support.cli import Crossdock
    from support.servers import DockerCli

START_S = 30.0


@dataclass
class Server:
    """A running server."""

    process: subprocess.Popen[str]
    socket: Path
    root: Path
    log_path: Path

    @property
    def address(self) -> str:
        return f"unix://{self.socket}"

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def stop(self) -> int:
        """End it as a service manager does; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            # passed on to the worker, which says what each thread is at
            self.process.send_signal(signal.SIGABRT)
            self.process.wait(10)
            pytest.fail(f"crossdock serve did not end:\n{self.log}")


def start(folder: Path, crossdock: Crossdock, *flags: str, env: Mapping[str, str] | None = None) -> Server:
    """Start a server whose files are in ``folder``, and wait for its socket."""
    socket, log = folder / "s.sock", folder / "serve.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [PROGRAM, "serve", "--addr", f"unix://{socket}", "--root", str(crossdock.root), *flags],
            env={**crossdock.environment, "PYTHONFAULTHANDLER": "1", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_S
    # What listens may still be a killed server's worker, a moment before it ends too.
    while "running server on" not in log.read_text(errors="replace") or not _accepts(socket):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"crossdock serve did not start:\n{log.read_text()}")
        time.sleep(0.02)
    return Server(process, socket, crossdock.root, log)


def _accepts(path: Path) -> bool:
    """Whether somebody listens: a killed server leaves its socket behind."""
    with socketlib.socket(socketlib.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@pytest.fixture
def server(tmp_path: Path, crossdock: Crossdock) -> Iterator[Server]:
    """A server with a store of its own; ended, and its end checked, with the case."""
    running = start(tmp_path, crossdock)
    yield running
    if running.process.poll() is None:
        code = running.stop()
        assert code == 0, running.log
    assert "Traceback" not in running.log, running.log


@dataclass
class Buildx:
    """Debian's buildx with one builder: the server."""

    cli: DockerCli
    folder: Path

    def __call__(
        self,
        *args: str | Path,
        stdin: bytes | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = True,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run it; with ``check`` a failure fails the case and shows what was printed."""
        done = subprocess.run(
            [self.cli.buildx, *map(str, args)],
            cwd=self.folder,
            env=self._environment(env),
            input=stdin if stdin is not None else b"",
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        if check and done.returncode != 0:
            pytest.fail(f"buildx {' '.join(map(str, args))}: exit {done.returncode}\n{out}{err}")
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    def build(self, *args: str | Path, **more: object) -> subprocess.CompletedProcess[str]:
        """``buildx build --progress plain``."""
        return self("build", "--progress", "plain", *args, **more)  # type: ignore[arg-type]

    def start(self, *args: str | Path) -> subprocess.Popen[bytes]:
        """Start it without waiting."""
        return subprocess.Popen(
            [self.cli.buildx, *map(str, args)],
            cwd=self.folder,
            env=self._environment(None),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def _environment(self, env: Mapping[str, str] | None) -> dict[str, str]:
        # buildx leaves files in TMPDIR.
        (self.folder / "buildx-tmp").mkdir(exist_ok=True)
        return self.cli.environment({"TMPDIR": str(self.folder / "buildx-tmp"), **(env or {})})


@pytest.fixture
def buildx(docker_cli: DockerCli, server: Server, tmp_path: Path) -> Buildx:
    """The client, whose current builder is the server."""
    made = Buildx(docker_cli, tmp_path)
    made("create", "--name", "served", "--use", "--driver", "remote", server.address)
    return made


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all cases here, as it is meant to be."""
    folder = tmp_path_factory.mktemp("shared")
    crossdock = cli.make(folder / "crossdock")
    running = start(folder, crossdock)
    yield running
    code = running.stop()
    crossdock.close()
    assert code == 0, running.log
    assert "Traceback" not in running.log, running.log


@pytest.fixture
def client(shared: Server) -> Iterator[Client]:
    made = Client(shared.address)
    yield made
    made.channel.close()
    made.own.close()


@pytest.fixture
def build(client: Client) -> Iterator[Build]:
    """A build whose frontend is the test."""
    ref = new_id()
    solve = client.control.Solve.future(control_pb2.SolveRequest(Ref=ref))
    made = Build(client, ref, solve)
    made.call("Ping", gateway_pb2.PingRequest())
    yield made
    solve.cancel()
