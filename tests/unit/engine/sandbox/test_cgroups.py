"""Limits as files of control groups, and who may make groups."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from crossdock.engine.sandbox.cgroups import Limits, Unavailable, find_limits, limit_files
from crossdock.llb.ops import LinuxResources

if TYPE_CHECKING:
    from pathlib import Path

ALL = LinuxResources(
    memory=1000, memory_swap=1500, cpu_shares=1024, cpu_period=50000, cpu_quota=25000, cpuset_cpus="0-1", cpuset_mems="0"
)  # fmt: skip


def test_version_1() -> None:
    assert limit_files(ALL, unified=False) == {
        "memory.limit_in_bytes": "1000",
        "memory.memsw.limit_in_bytes": "1500",
        "cpu.shares": "1024",
        "cpu.cfs_period_us": "50000",
        "cpu.cfs_quota_us": "25000",
        "cpuset.cpus": "0-1",
        "cpuset.mems": "0",
    }


def test_version_2() -> None:
    assert limit_files(ALL, unified=True) == {
        "memory.max": "1000",
        "memory.swap.max": "500",
        "cpu.weight": "39",
        "cpu.max": "25000 50000",
        "cpuset.cpus": "0-1",
        "cpuset.mems": "0",
    }


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        pytest.param(LinuxResources(memory=5, memory_swap=-1), {"memory.max": "5", "memory.swap.max": "max"}, id="any swap"),
        pytest.param(LinuxResources(cpu_shares=2), {"cpu.weight": "1"}, id="least shares"),
        pytest.param(LinuxResources(cpu_shares=262144), {"cpu.weight": "10000"}, id="most shares"),
        pytest.param(LinuxResources(cpu_quota=7), {"cpu.max": "7 100000"}, id="the usual period"),
        pytest.param(LinuxResources(), {}, id="nothing"),
    ],
)  # fmt: skip
def test_version_2_corners(limits: LinuxResources, expected: dict[str, str]) -> None:
    assert limit_files(limits, unified=True) == expected


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files that appear in new groups, as the kernel makes them."""
    files = ["cgroup.procs", "memory.max", "memory.events"]
    real = os.mkdir

    def mkdir(path: str, mode: int = 0o777) -> None:
        real(path, mode)
        for name in files:
            if name.endswith("/"):
                real(os.path.join(path, name))
            else:
                open(os.path.join(path, name), "x").close()

    monkeypatch.setattr(os, "mkdir", mkdir)
    return files


def test_a_group_is_entered_by_the_command_and_counts_kills(tmp_path: Path, kernel: list[str]) -> None:
    with Limits({"": tmp_path}, unified=True).group("step1", LinuxResources(memory=9)) as group:
        (made,) = tmp_path.iterdir()
        assert (made / "memory.max").read_text() == "9"
        assert group.command(["crun", "run"])[-4:] == [str(made), "--", "crun", "run"]
        assert group.oom_kills() == 0
        assert group.missing == ()
        (made / "memory.events").write_text("oom 3\noom_kill 2\n")
        assert group.oom_kills() == 2


def test_limits_whose_controller_is_not_there_are_told(tmp_path: Path, kernel: list[str]) -> None:
    limits = LinuxResources(memory=9, memory_swap=20, cpu_shares=100)
    with Limits({"": tmp_path}, unified=True).group("step1", limits) as group:
        assert group.missing == ("memory.swap.max", "cpu.weight")
    kernel[:] = ["cgroup.procs", "memory.limit_in_bytes"]
    (tmp_path / "v1").mkdir()
    with Limits({"memory": tmp_path / "v1"}, unified=False).group("step1", limits) as group:
        assert set(group.missing) == {"memory.memsw.limit_in_bytes", "cpu.shares"}


def test_a_group_that_cannot_be_entered_is_refused(tmp_path: Path, kernel: list[str]) -> None:
    kernel.remove("cgroup.procs")
    kernel.append("cgroup.procs/")  # a directory: no process can be written there

    with (
        pytest.raises(OSError, match=r"cgroup\.procs"),
        Limits({"": tmp_path}, unified=True).group("step1", LinuxResources(memory=9)),
    ):
        pass


def test_without_control_groups_the_reason_is_said(tmp_path: Path) -> None:
    assert find_limits("none", tmp_path) == Unavailable("no control groups are mounted")
    found = find_limits("v2", tmp_path)
    assert isinstance(found, Unavailable)
    assert "may not make control groups" in found.reason
