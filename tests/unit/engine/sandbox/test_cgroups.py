"""Limits as files of control groups, and who may make groups."""

from __future__ import annotations

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


def test_a_group_is_entered_by_the_command_and_counts_kills(tmp_path: Path) -> None:
    with Limits({"": tmp_path}, unified=True).group("step1", LinuxResources(memory=9)) as group:
        (made,) = tmp_path.iterdir()
        assert (made / "memory.max").read_text() == "9"
        assert group.command(["crun", "run"])[-4:] == [str(made), "--", "crun", "run"]
        assert group.oom_kills() == 0
        (made / "memory.events").write_text("oom 3\noom_kill 2\n")
        assert group.oom_kills() == 2


def test_without_control_groups_the_reason_is_said(tmp_path: Path) -> None:
    assert find_limits("none", tmp_path) == Unavailable("no control groups are mounted")
    found = find_limits("v2", tmp_path)
    assert isinstance(found, Unavailable)
    assert "may not make control groups" in found.reason
