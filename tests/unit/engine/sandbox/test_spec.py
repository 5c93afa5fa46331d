"""The runtime spec as data."""

from __future__ import annotations

from typing import Any

import pytest

from crossdock.engine.sandbox.spec import (
    ALL_CAPABILITIES,
    DEFAULT_CAPABILITIES,
    OciMount,
    SpecInput,
    runtime_spec,
)
from crossdock.engine.sandbox.users import StepUser
from crossdock.llb.ops import NetMode, SecurityMode, Ulimit


def spec(**changed: Any) -> dict[str, Any]:
    given = SpecInput(
        rootfs="/r",
        readonly_rootfs=False,
        args=("a", "b"),
        env=("A=1",),
        cwd="/w",
        user=StepUser(5, 6, (7,), "/"),
        hostname="h",
        network=NetMode.UNSET,
        security=SecurityMode.SANDBOX,
        mounts=(),
        ulimits=(),
        capability_bound=frozenset(ALL_CAPABILITIES),
        pid_namespace=True,
        fresh_proc=True,
        cgroup_namespace=False,
        has_tty_group=True,
        may_set_groups=True,
        linux32=False,
        seccomp={"defaultAction": "SCMP_ACT_ERRNO"},
        annotations={},
        network_path="",
    )
    return runtime_spec(given._replace(**changed))


def mount_at(made: dict[str, Any], destination: str) -> dict[str, Any]:
    return next(m for m in made["mounts"] if m["destination"] == destination)


def namespaces(made: dict[str, Any]) -> set[str]:
    return {entry["type"] for entry in made["linux"]["namespaces"]}


def test_a_sandboxed_step_has_dockers_default_rights() -> None:
    made = spec()
    assert made["process"]["capabilities"]["effective"] == list(DEFAULT_CAPABILITIES)
    assert set(made["process"]["capabilities"]) == {"bounding", "effective", "permitted"}
    assert made["process"]["noNewPrivileges"] is False, "setuid programs work"
    assert made["linux"]["seccomp"] == {"defaultAction": "SCMP_ACT_ERRNO"}
    assert "/proc/kcore" in made["linux"]["maskedPaths"]
    assert "/proc/sys" in made["linux"]["readonlyPaths"]
    assert made["process"]["user"] == {"uid": 5, "gid": 6, "additionalGids": [7]}
    assert namespaces(made) == {"ipc", "uts", "mount", "pid"}, "no new user namespace, the host's network"
    assert "rro" in mount_at(made, "/sys")["options"], "nothing below /sys is writable either"


def test_an_insecure_step_has_all_the_worker_has() -> None:
    made = spec(security=SecurityMode.INSECURE)
    assert made["process"]["capabilities"]["effective"] == list(ALL_CAPABILITIES)
    assert not {"seccomp", "maskedPaths", "readonlyPaths"} & set(made["linux"])
    assert mount_at(made, "/dev")["source"] == "/dev"
    assert "rw" in mount_at(made, "/sys")["options"]


def test_a_capability_the_worker_lacks_is_not_asked_for() -> None:
    made = spec(capability_bound=frozenset(ALL_CAPABILITIES) - {"CAP_MKNOD"})
    assert "CAP_MKNOD" not in made["process"]["capabilities"]["bounding"]
    assert len(made["process"]["capabilities"]["bounding"]) == len(DEFAULT_CAPABILITIES) - 1


def test_no_network_is_a_namespace_with_a_sysfs_of_its_own() -> None:
    made = spec(network=NetMode.NONE)
    assert "network" in namespaces(made)
    assert mount_at(made, "/sys")["type"] == "sysfs"
    assert "network" not in namespaces(spec(network=NetMode.HOST))


def test_a_mount_of_the_step_replaces_the_default_one() -> None:
    shm = OciMount("/dev/shm", "tmpfs", "tmpfs", ("size=1",))
    made = spec(mounts=(shm,))
    assert [m["options"] for m in made["mounts"] if m["destination"] == "/dev/shm"] == [["size=1"]]


@pytest.mark.parametrize(
    ("changed", "place", "expected"),
    [
        pytest.param({"has_tty_group": False}, "/dev/pts", False, id="no group 5: no gid for terminals"),
        pytest.param({"has_tty_group": True}, "/dev/pts", True, id="group 5"),
    ],
)
def test_terminals_belong_to_the_tty_group_where_it_exists(
    changed: dict[str, Any], place: str, expected: bool
) -> None:
    assert ("gid=5" in mount_at(spec(**changed), place)["options"]) is expected


def test_under_a_covered_proc_the_workers_is_shown_and_pids_stay_apart() -> None:
    made = spec(fresh_proc=False)
    assert mount_at(made, "/proc")["type"] == "bind"
    assert "pid" in namespaces(made)
    assert "pid" not in namespaces(spec(fresh_proc=False, pid_namespace=False))


def test_ulimits_of_minus_one_are_unlimited() -> None:
    made = spec(ulimits=(Ulimit("core", -1, -1), Ulimit("nofile", 1, 2)))
    assert made["process"]["rlimits"] == [
        {"type": "RLIMIT_CORE", "soft": (1 << 64) - 1, "hard": (1 << 64) - 1},
        {"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2},
    ]


def test_with_a_single_id_groups_are_not_set() -> None:
    assert "additionalGids" not in spec(may_set_groups=False)["process"]["user"]


def test_32_bit_programs_see_a_32_bit_machine() -> None:
    assert spec(linux32=True)["linux"]["personality"] == {"domain": "LINUX32"}
    assert "personality" not in spec()["linux"]
