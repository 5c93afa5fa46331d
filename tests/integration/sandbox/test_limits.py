"""What ``build`` and ``create`` let one say about steps, end to end: limits, networks, deadlines; and how they fail."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crossdock.engine.sandbox.supervise import descendants
from crossdock.image.platform import local_platform

if TYPE_CHECKING:
    from support.cli import Crossdock, Ran
    from support.servers import BaseImages

pytestmark = pytest.mark.needs("base", "crun", "userns", "overlay")


class Steps:
    """Builds a Dockerfile of one step."""

    def __init__(self, crossdock: Crossdock, base: str) -> None:
        self.crossdock = crossdock
        self.base = base
        self.folder = crossdock.folder / "context"
        self.folder.mkdir()

    def run(self, command: str, *flags: str, env: dict[str, str] | None = None) -> Ran:
        """Build it; the output of the step is in ``err``."""
        (self.folder / "Dockerfile").write_text(f"FROM {self.base}\nRUN {command}\n")
        arguments = ("build", str(self.folder), "--progress=plain", "--no-cache", "-o", "type=cacheonly")
        return self.crossdock(*arguments, *flags, env=env)


@pytest.fixture
def steps(crossdock: Crossdock, base: BaseImages) -> Steps:
    return Steps(crossdock, base.index)


def test_ulimits_and_shared_memory(steps: Steps) -> None:
    limits = "echo soft $(ulimit -Sn) hard $(ulimit -Hn) && df /dev/shm | tail -1"
    done = steps.run(limits, "--ulimit", "nofile=123:456", "--shm-size", "32m").ok()
    assert "soft 123 hard 456" in done.err
    assert re.search(r"\s32768\s+0\s+32768\s", done.err)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--ulimit", "nofile=9:3"], "invalid limit 'nofile=9:3'"),
        (["--resource", "memory=lots"], "resource memory: invalid size: 'lots'"),
        (["--resource", "disk=1"], "invalid resource 'disk=1'"),
        (["--shm-size", "much"], "much"),
    ],
    ids=lambda v: v[1] if isinstance(v, list) else "",
)
def test_a_limit_that_is_none_is_named(steps: Steps, flags: list[str], named: str) -> None:
    assert named in steps.run("true", *flags).failed().err


def test_a_step_that_is_killed_for_memory_says_so(steps: Steps) -> None:
    done = steps.run("head -c 80m /dev/zero | tail", "--resource", "memory=32m")
    if "runs without its resource limits" in done.err:
        assert os.geteuid() != 0 or "control groups" in done.err
        done.ok()
        pytest.skip("no control groups can be made here")
    done.failed(1)
    assert "killed because it used more than 32 MiB of memory" in done.err
    assert "raise --resource memory=" in done.err


def test_limits_that_cannot_be_given_are_a_warning(steps: Steps) -> None:
    # "none" is what a machine without control groups has; an ordinary user usually may not make any either
    done = steps.run("cat /proc/self/cgroup", "--resource", "cpu-shares=100").ok()
    limited = "/crossdock/step" in done.err
    assert limited or "1 warning found" in done.err
    assert limited or "the step runs without its resource limits" in done.err
    if os.geteuid() == 0 and Path("/sys/fs/cgroup").is_dir() and os.listdir("/sys/fs/cgroup"):
        assert limited


@pytest.mark.needs("root")
def test_the_parent_of_control_groups(steps: Steps) -> None:
    name = f"crossdock-test-{os.getpid()}"
    try:
        done = steps.run("cat /proc/self/cgroup", "--cgroup-parent", name).ok()
        if "runs without its control group" in done.err:
            pytest.skip("no control groups can be made here")
        assert f"/{name}/crossdock/step" in done.err
    finally:
        for folder in Path("/sys/fs/cgroup").glob(f"**/{name}"):
            for inner in (folder / "crossdock", folder):
                if inner.is_dir():
                    inner.rmdir()


@pytest.mark.needs("qemu", "binfmt")
def test_an_emulated_step_that_hangs_is_ended_and_names_the_emulator(steps: Steps) -> None:
    foreign = "linux/arm64" if local_platform().architecture != "arm64" else "linux/amd64"
    steps.crossdock("create", "--name", "timed", "--driver-opt", "step-deadline=2s").ok()
    done = steps.run("sleep 60", "--platform", foreign, "--builder", "timed").failed(1)
    assert "the step did nothing for 2 s: no output and no CPU time; it runs under " in done.err
    assert re.search(r"qemu-\w+(-static)? \d+\.\d+", done.err)
    assert "try a newer QEMU" in done.err
    # what runs natively may sleep as long as it likes
    steps.run("sleep 3", env={"CROSSDOCK_STEP_DEADLINE": "1s"}).ok()


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("network=bridge", "invalid value 'bridge'"),
        ("step-deadline=soon", "invalid duration 'soon'"),
        ("a=b", "a"),
    ],
)
def test_driver_options_are_checked_when_given(crossdock: Crossdock, option: str, named: str) -> None:
    done = crossdock("create", "--driver", "embedded", "--name", "x", "--driver-opt", option).failed(1)
    assert named in done.err
    assert "x" not in [line.split()[0] for line in crossdock("ls").ok().out.splitlines()]


@pytest.mark.needs("tun", "slirp4netns")
def test_a_builder_with_an_isolated_network(steps: Steps) -> None:
    crossdock = steps.crossdock
    crossdock("create", "--name", "alone", "--driver", "embedded", "--driver-opt", "network=isolated").ok()
    shown = crossdock("inspect", "alone", "--bootstrap").ok().out
    assert 'network="isolated"' in shown
    assert re.search(r"worker\.network:\s+isolated \(\w+\)", shown)
    look = "echo [$(ls /sys/class/net)] $(grep nameserver /etc/resolv.conf)"
    assert "[lo tap0] nameserver 10.0.2.3" in steps.run(look, "--builder", "alone").ok().err
    assert "[lo] " in steps.run(look, "--builder", "alone", "--network", "none").ok().err
    assert "[lo tap0]" not in steps.run(look, "--builder", "alone", "--network", "host").ok().err
    assert "[lo tap0]" in steps.run(look, env={"CROSSDOCK_NETWORK": "isolated"}).ok().err
    assert "[lo tap0]" not in steps.run(look).ok().err


@pytest.mark.needs("tun", "slirp4netns")
def test_ctrl_c_takes_the_helper_of_a_network_along(steps: Steps) -> None:
    (steps.folder / "Dockerfile").write_text(f"FROM {steps.base}\nRUN echo started && sleep 60\n")
    child = steps.crossdock.start(
        "build", steps.folder, "--progress=plain", env={"CROSSDOCK_NETWORK": "isolated"}
    )
    assert child.stderr is not None
    for line in child.stderr:
        if line.rstrip().endswith(" started"):
            break
    below = descendants(child.pid)
    names = [Path(f"/proc/{pid}/comm").read_text().strip() for pid in below]
    assert "slirp4netns" in names
    began = time.monotonic()
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=20)
    assert child.returncode == 130
    assert time.monotonic() - began < 1.5
    assert not [pid for pid in below if Path(f"/proc/{pid}").exists()]


def test_rungs_are_shown(crossdock: Crossdock) -> None:
    shown = crossdock("inspect", "embedded", "--bootstrap").ok().out
    assert re.search(r"crossdock\.ids:\s+(identity|ranges|single \()", shown)
    assert re.search(r"crossdock\.pid-namespace:\s+(own|host's)", shown)
    assert re.search(r"crossdock\.cgroups:\s+(v1|v2|hybrid|none)", shown)
    assert re.search(r"worker\.network:\s+host", shown)
