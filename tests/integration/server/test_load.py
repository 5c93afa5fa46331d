"""Many clients, clients that vanish, full disks, killed servers: the server stays up, small and tidy."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from crossdock.buildkit.proto import control_pb2
from crossdock.buildkit.session.server import new_id
from integration.server.conftest import start
from integration.server.plain import Client, definition, made_file
from integration.server.test_buildx import running_steps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from integration.server.conftest import Buildx, Server
    from support.cli import Crossdock
    from support.servers import BaseImages

pytestmark = pytest.mark.needs("crun", "userns", "overlay")


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for one in found:
        try:
            for task in os.listdir(f"/proc/{one}/task"):
                found += map(int, Path(f"/proc/{one}/task/{task}/children").read_text().split())
        except OSError:
            continue
    return found


def resident_mb(server: Server) -> float:
    """Memory of the server's processes, shared pages by share."""
    total = 0
    for pid in tree(server.process.pid):
        try:
            found = re.search(r"^Pss: +(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
        except OSError:
            continue
        total += int(found[1]) if found else 0
    return total / 1024


def counted(server: Server) -> tuple[int, int]:
    """Open descriptors and threads of the server."""
    fds = threads = 0
    for pid in tree(server.process.pid):
        try:
            fds += len(os.listdir(f"/proc/{pid}/fd"))
            threads += len(os.listdir(f"/proc/{pid}/task"))
        except OSError:
            continue
    return fds, threads


def until(condition: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def left_behind(server: Server) -> list[str]:
    """Files of builds that should be over."""
    return [p.name for p in server.root.iterdir() if p.name.startswith(("crossdock-", "."))]


@pytest.fixture
def own(server: Server) -> Iterator[Client]:
    """A client of this case's server."""
    made = Client(server.address)
    yield made
    made.channel.close()


class TestMemory:
    def test_an_idle_server_is_small(self, server: Server, own: Client) -> None:
        own.control.Info(control_pb2.InfoRequest(), timeout=20)
        own.control.ListWorkers(control_pb2.ListWorkersRequest(), timeout=60)
        assert resident_mb(server) <= 80

    @pytest.mark.needs("base", "dockercli")
    def test_ten_builds_at_once_stay_below_400_mb(
        self, server: Server, buildx: Buildx, base: BaseImages, tmp_path: Path
    ) -> None:
        folders = []
        for number in range(10):
            folders.append(tmp_path / f"c{number}")
            folders[-1].mkdir()
            (folders[-1] / "Dockerfile").write_text(
                f"FROM {base.index}\nCOPY file /\nRUN echo {number} > /n; dd if=/dev/zero of=/z bs=1M count=4\n"
            )
            (folders[-1] / "file").write_bytes(os.urandom(2_000_000))
        peak = 0.0
        done = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.05):
                peak = max(peak, resident_mb(server))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            with ThreadPoolExecutor(10) as pool:
                list(pool.map(lambda f: buildx.build("-o", f"type=tar,dest={f}.tar", f), folders))
        finally:
            done.set()
            watcher.join()
        assert peak <= 400

    def test_builds_leave_no_threads_and_no_descriptors(self, server: Server, own: Client) -> None:
        def once(number: int) -> None:
            own.solve(Definition=definition(made_file(b"%d" % number)))

        with ThreadPoolExecutor(20) as pool:
            list(pool.map(once, range(40)))
        until(lambda: counted(server)[1] < 20, "threads remain")
        fds, threads = counted(server)
        with ThreadPoolExecutor(20) as pool:
            list(pool.map(once, range(200)))
        until(lambda: counted(server)[1] <= threads + 3, f"{counted(server)} after {(fds, threads)}")
        assert counted(server)[0] <= fds + 5


@pytest.mark.needs("base", "dockercli")
class TestInterest:
    def test_a_shared_step_ends_when_the_last_client_leaves(
        self, buildx: Buildx, base: BaseImages, tmp_path: Path
    ) -> None:
        (tmp_path / "c").mkdir()
        (tmp_path / "c/Dockerfile").write_text(f"FROM {base.index}\nRUN echo started; sleep 311\n")
        clients = [buildx.start("build", "--progress", "plain", tmp_path / "c") for _ in range(2)]
        for client in clients:
            assert client.stdout is not None
            # Each hears what the step wrote, also who joins late.
            assert any(line.endswith(b" started\n") for line in client.stdout)
        until(lambda: len(running_steps("sleep 311")) == 1, "there is not one step")
        clients[0].kill()
        clients[0].communicate(timeout=30)
        time.sleep(1.0)
        assert len(running_steps("sleep 311")) == 1, "the other client still wants it"
        clients[1].kill()
        clients[1].communicate(timeout=30)
        until(lambda: not running_steps("sleep 311"), "the step outlived its clients")

    def test_a_secret_goes_to_no_other_client_and_stays_nowhere(
        self, buildx: Buildx, server: Server, base: BaseImages, tmp_path: Path
    ) -> None:
        text = (
            f"FROM {base.index}\nARG WHO\n"
            "RUN --mount=type=secret,id=t,required=true --mount=type=secret,id=t,env=T "
            'echo "$WHO $(wc -c < /run/secrets/t) ${#T}" > /n\n'
        ).encode()
        values = {name: f"{name}-s3cr3t-{'x' * number}" for number, name in enumerate(("ann", "bob", "cyd"))}

        def build(name: str) -> None:
            (tmp_path / name).write_text(values[name])
            buildx.build(
                "--secret", f"id=t,src={tmp_path / name}", "--build-arg", f"WHO={name}",
                "-o", tmp_path / f"out-{name}", "-", stdin=text,
            )  # fmt: skip

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(build, values))
        for name, value in values.items():
            assert (tmp_path / f"out-{name}/n").read_text().split() == [
                name,
                str(len(value)),
                str(len(value)),
            ]
        # Who has no such secret gets none, though others just had.
        done = buildx.build("--build-arg", "WHO=eve", "-", stdin=text, check=False)
        assert done.returncode != 0
        assert "secret t: not found" in done.stderr
        kept = subprocess.run(
            ["grep", "-rl", "--", "-s3cr3t-", server.root], capture_output=True, check=False
        )
        assert not kept.stdout
        assert "-s3cr3t-" not in server.log


@pytest.mark.needs("base", "dockercli")
class TestVanishing:
    def test_clients_that_vanish_at_any_moment_leave_nothing(
        self, buildx: Buildx, server: Server, base: BaseImages, tmp_path: Path
    ) -> None:
        folder = tmp_path / "c"
        folder.mkdir()
        (folder / "Dockerfile").write_text(
            f"FROM {base.index}\nCOPY big /big\nRUN for i in $(seq 20); do echo $i; sleep 0.02; done\n"
        )
        (folder / "big").write_bytes(os.urandom(20_000_000))
        buildx.build(folder)
        until(lambda: counted(server)[1] < 20, "threads remain")
        fds, _ = counted(server)
        for step in range(16):
            (folder / "big").write_bytes(os.urandom(20_000_000))
            command = (
                "build",
                "--no-cache",
                "--progress",
                "plain",
                "-o",
                f"type=tar,dest={tmp_path}/out.tar",
            )
            client = buildx.start(*command, folder)
            time.sleep(0.05 + 0.07 * step)
            client.send_signal(signal.SIGKILL)
            client.communicate(timeout=30)
        until(lambda: not _active(server), "builds of vanished clients go on")
        until(lambda: counted(server)[1] < 20, f"threads remain: {counted(server)}")
        assert counted(server)[0] <= fds + 5
        assert not left_behind(server)
        buildx.build("-o", f"type=tar,dest={tmp_path}/out.tar", folder)
        assert "Traceback" not in server.log

    def test_a_killed_server_leaves_no_step_and_the_next_goes_on(
        self, buildx: Buildx, server: Server, crossdock: Crossdock, base: BaseImages, tmp_path: Path
    ) -> None:
        kept = f"FROM {base.index}\nRUN cat /proc/sys/kernel/random/uuid > /id\n"
        buildx.build("-o", tmp_path / "one", "-", stdin=kept.encode())
        (tmp_path / "c").mkdir()
        (tmp_path / "c/Dockerfile").write_text(f"FROM {base.index}\nRUN echo started; sleep 312\n")
        client = buildx.start("build", "--progress", "plain", tmp_path / "c")
        _wait_for_line(client, b"started")
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait(20)
        until(lambda: not running_steps("sleep 312"), "a step outlived its server")
        client.communicate(timeout=60)
        assert client.returncode != 0
        again = start(tmp_path, crossdock)
        buildx.build("-o", tmp_path / "two", "-", stdin=kept.encode())
        assert (tmp_path / "one/id").read_text() == (tmp_path / "two/id").read_text()
        assert again.stop() == 0


@pytest.mark.needs("root")
def test_a_disk_that_fills_up_fails_builds_and_not_the_server(crossdock: Crossdock, tmp_path: Path) -> None:
    """The store is on a small file system of a mount namespace of its own; see the script for what it does there."""
    script = Path(__file__).with_name("smalldisk.py")
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, str(script), str(tmp_path)]
    environment = {**crossdock.environment, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["full"] > 0, outcome
    assert outcome["wrong"] == []
    assert outcome["after"] == "built"


def test_what_old_builds_touched_can_be_collected_though_builds_never_pause(
    crossdock: Crossdock, tmp_path: Path
) -> None:
    """The engine of a generation lasts half a second here, and one build is always at work."""
    program = (
        "import sys, crossdock.server.generations as g; g.GENERATION_S = 0.5\n"
        "from crossdock.__main__ import main; sys.exit(main())"
    )
    path = tmp_path / "s.sock"
    command = [
        sys.executable,
        "-c",
        program,
        "serve",
        "--addr",
        f"unix://{path}",
        "--root",
        str(crossdock.root),
    ]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=crossdock.environment, stdout=log, stderr=log)
    until(path.exists, "the server does not start")
    client = Client(f"unix://{path}")
    solves = [client.control.Solve.future(control_pb2.SolveRequest(Ref=new_id()), wait_for_ready=True)]
    removed: set[str] = set()
    for number in range(4):
        time.sleep(0.6)
        # The next one begins before the one before it ends.
        solves.append(client.control.Solve.future(control_pb2.SolveRequest(Ref=new_id())))
        client.solve(Definition=definition(made_file(b"build %d" % number)))
        if number:
            solves.pop(0).cancel()
        gone = client.control.Prune(control_pb2.PruneRequest(all=True), timeout=30)
        removed |= {record.Description for record in gone}
    assert "file operation" in removed
    for solve in solves:
        solve.cancel()
    client.channel.close()
    process.terminate()
    assert process.wait(60) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


class TestServiceManager:
    def test_it_is_ready_and_stopping_while_a_build_is_ended(
        self, tmp_path: Path, crossdock: Crossdock
    ) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(str(tmp_path / "notify"))
            notify.settimeout(30)
            server = start(tmp_path, crossdock, env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
            assert notify.recv(100) == b"READY=1"
            client = Client(server.address)
            solve = client.control.Solve.future(control_pb2.SolveRequest(Ref=new_id()))
            until(lambda: _active(server), "the build has not begun")
            server.process.send_signal(signal.SIGTERM)
            assert notify.recv(100) == b"STOPPING=1"
            with pytest.raises(grpc.RpcError):
                solve.result(20)
            client.channel.close()
            assert server.process.wait(60) == 0
            assert not server.socket.exists()

    def test_a_second_signal_is_no_trouble(self, tmp_path: Path, crossdock: Crossdock) -> None:
        server = start(tmp_path, crossdock)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            server.process.send_signal(number)
        # One that comes when all is over ends what is left of the process, as it should.
        assert server.process.wait(60) in (0, -signal.SIGTERM, -signal.SIGINT)

    @pytest.mark.skipif(not Path("/usr/bin/systemd-socket-activate").exists(), reason="systemd is not here")
    def test_systemd_starts_it_when_somebody_connects(self, tmp_path: Path, crossdock: Crossdock) -> None:
        from support.cli import PROGRAM

        sockets = [tmp_path / "a.sock", tmp_path / "b.sock"]
        command = ["/usr/bin/systemd-socket-activate", *(f"--listen={path}" for path in sockets)]
        command += [
            "--fdname=first:second",
            str(PROGRAM),
            "serve",
            "--addr",
            "fd://",
            "--root",
            str(crossdock.root),
        ]
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(command, env=crossdock.environment, stdout=log, stderr=log)
        try:
            until(sockets[1].exists, "systemd-socket-activate does not listen")
            for path in sockets:
                client = Client(f"unix://{path}")
                answer = client.control.Info(control_pb2.InfoRequest(), timeout=30, wait_for_ready=True)
                assert answer.buildkitVersion.package == "crossdock"
                client.channel.close()
        finally:
            process.terminate()
        assert process.wait(60) == 0, (tmp_path / "log").read_text()


def _active(server: Server) -> list[str]:
    """References of builds under way."""
    client = Client(server.address)
    try:
        request = control_pb2.BuildHistoryRequest(ActiveOnly=True, EarlyExit=True)
        return [event.record.Ref for event in client.control.ListenBuildHistory(request, timeout=20)]
    finally:
        client.channel.close()


def _wait_for_line(client: subprocess.Popen[bytes], text: bytes) -> None:
    assert client.stdout is not None
    for line in client.stdout:
        if text in line and b"echo" not in line:
            return
    pytest.fail(f"the client ended without {text!r}")
