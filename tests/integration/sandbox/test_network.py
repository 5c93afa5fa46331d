"""The isolated network: outgoing access, nothing of the host's loopback, and no helper that stays."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.stage import Stage, in_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.needs("userns", "overlay", "crun", "base", "tun")

HELPERS = [
    pytest.param("slirp4netns", marks=pytest.mark.needs("slirp4netns")),
    pytest.param("pasta", marks=pytest.mark.needs("pasta")),
]


@contextmanager
def listening(address: str) -> Iterator[int]:
    """A server that greets and hangs up; its port."""
    with socket.create_server((address, 0)) as server:
        server.settimeout(0.1)
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.sendall(b"greetings\n")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            stop.set()
            thread.join()


def own_address() -> str:
    """An address of this machine that is not on loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.200", 9))
            address = str(probe.getsockname()[0])
        except OSError:
            address = "127.0.0.1"
    if address.startswith("127."):
        pytest.skip("needs an address that is not on loopback")
    return address


def connect(stage: Stage, rootfs: str, helper: str, outside: str, port: int, loopback: int) -> dict[str, Any]:
    from crossdock.engine.sandbox.sandbox import Sandbox

    sandbox = Sandbox(stage.info, network="isolated")
    sandbox._helper = only(helper)
    stage._sandbox = sandbox
    script = f"""
timeout 5 nc {outside} {port} < /dev/null
for a in 127.0.0.1 10.0.2.2 $(ip route | awk '/default/ {{print $3}}'); do
  timeout 2 nc $a {loopback} < /dev/null && echo OUT $a
done
echo interfaces $(ls /sys/class/net)
grep nameserver /etc/resolv.conf
"""
    _, out = stage.run(rootfs, "/bin/sh", "-c", script)
    none = stage.sh(rootfs, "ls /sys/class/net", network=net_none())
    return {"out": out, "none": none, "left": running(helper), "files": os.listdir(sandbox._steps)}


def net_none() -> Any:
    from crossdock.llb.ops import NetMode

    return NetMode.NONE


def only(name: str) -> Any:
    from crossdock.engine.sandbox.network import Helper

    return Helper(name, str(shutil.which(name)))


def running(name: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if name.encode() in words[0]:
                found.append(b" ".join(words).decode(errors="replace"))
    return found


@pytest.mark.parametrize("helper", HELPERS)
def test_a_step_reaches_others_but_not_the_loopback_of_the_host(
    tmp_path: Path, rootfs: Callable[..., str], helper: str
) -> None:
    address = own_address()
    with listening(address) as port, listening("127.0.0.1") as loopback:
        seen = in_worker(
            connect, tmp_path, rootfs=rootfs(), helper=helper, outside=address, port=port, loopback=loopback
        )
    lines = seen["out"].splitlines()
    assert lines[0] == "greetings", seen
    assert "OUT" not in seen["out"]
    (interfaces,) = (line.split()[1:] for line in lines if line.startswith("interfaces "))
    assert "lo" in interfaces
    assert len(interfaces) == 2, "loopback and one more"
    assert [line for line in lines if "nameserver" in line] == ["nameserver 10.0.2.3"]
    assert seen["none"] == "lo\n"
    assert seen["left"] == []
    assert seen["files"] == []


@pytest.mark.parametrize("pidns", [True, False], ids=["own pid namespace", "host's pid namespace"])
@pytest.mark.parametrize("helper", HELPERS)
def test_the_helper_ends_with_a_killed_worker(
    tmp_path: Path, rootfs: Callable[..., str], helper: str, pidns: bool
) -> None:
    upper, work = tmp_path / "upper", tmp_path / "work"
    upper.mkdir()
    work.mkdir()
    code = f"""
import sys
from pathlib import Path
from crossdock.cancel import CancelToken
from crossdock.engine.sandbox.network import Helper
from crossdock.engine.sandbox.sandbox import Sandbox
from crossdock.engine.sandbox.step import StepSpec
from crossdock.engine.sandbox.worker import WorkerOptions, become_worker
info = become_worker(WorkerOptions(run_dir=Path({str(tmp_path / "run")!r}), pid_namespace={pidns}))
sandbox = Sandbox(info, network="isolated")
sandbox._helper = Helper({helper!r}, {shutil.which(helper)!r})
with sandbox.mounted([Path({rootfs()!r})], upper=Path({str(upper)!r}), work=Path({str(work)!r})) as root:
    sandbox.run(
        StepSpec(rootfs=root, args=("/bin/sh", "-c", "echo up; sleep 60")),
        log=lambda _s, data: (sys.stdout.write(data.decode()), sys.stdout.flush()),
        cancel=CancelToken(),
    )
"""
    before = running(helper)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == "up\n", process.communicate(timeout=10)
    assert len(running(helper)) > len(before)
    process.kill()
    process.communicate(timeout=10)
    deadline = time.monotonic() + 2
    while len(running(helper)) > len(before) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert running(helper) == before
