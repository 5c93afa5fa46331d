"""Handlers on the real kernel: private ones, and the host's through ``crossdock binfmt`` in a namespace of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from support.stage import Stage, in_worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.needs("userns", "binfmt", "qemu", "crun")

#: architecture -> what uname -m says there
MACHINES = {"arm64": "aarch64", "arm": "armv7l", "386": "i686", "ppc64le": "ppc64le", "s390x": "s390x"}


def offers(stage: Stage) -> dict[str, list[str]]:
    from crossdock.emulation.platforms import offered_platforms

    return {
        str(offer.platform): [offer.running.how.value if offer.running else "", offer.problem]
        for offer in offered_platforms(stage.sandbox.emulator)
    }


def test_every_platform_runs_its_probe_through_private_handlers(tmp_path: Path) -> None:
    found = in_worker(offers, tmp_path)
    assert all(problem == "" for _, problem in found.values())
    assert found["linux/arm64"][0] in ("private", "native")
    assert {"linux/arm64", "linux/arm/v7", "linux/arm/v6", "linux/s390x", "linux/ppc64le"} <= set(found)
    assert found[next(iter(found))][0] == "native", "the machine's own comes first"


def test_nothing_of_it_is_seen_outside(tmp_path: Path) -> None:
    def handlers() -> list[str]:
        try:
            return sorted(os.listdir("/proc/sys/fs/binfmt_misc"))
        except OSError:
            return []

    before = handlers()
    in_worker(offers, tmp_path)
    assert handlers() == before


@pytest.mark.needs("base", "overlay")
@pytest.mark.parametrize("architecture", MACHINES)
def test_steps_of_foreign_platforms(tmp_path: Path, rootfs: Callable[..., str], architecture: str) -> None:
    out = in_worker(foreign_step, tmp_path, rootfs=rootfs(architecture), architecture=architecture)
    assert out.splitlines() == [MACHINES[architecture], "child", "kept", "script"]


def foreign_step(stage: Stage, rootfs: str, architecture: str) -> str:
    from crossdock.image.platform import Platform

    script = """
uname -m; sh -c 'echo child'; (exec -a echo /bin/sh kept)
printf '#!/bin/sh\\necho script\\n' > /s; chmod +x /s; /s
"""
    return stage.sh(rootfs, script, platform=Platform("linux", architecture).normalised())


@pytest.mark.needs("base", "overlay")
def test_without_handlers_the_emulator_is_put_before_the_command(
    tmp_path: Path, rootfs: Callable[..., str]
) -> None:
    assert in_worker(prefixed, tmp_path, rootfs=rootfs("arm64")) == ["prefixed", "hello\n", ["root"], True]


def prefixed(stage: Stage, rootfs: str) -> list[Any]:
    from crossdock.emulation.private import PrivateBinfmt
    from crossdock.image.platform import Platform

    emulator = stage.sandbox.emulator
    # An instance without handlers: as on a kernel that refuses private ones, on a host that has none.
    PrivateBinfmt.mount(stage.info.run_dir / "nothing")
    emulator._private_tried = True
    platform, upper = Platform("linux", "arm64"), stage.layer()
    how = emulator.prepare("arm64").how.value
    _, out = stage.run(rootfs, "echo", "hello", platform=platform, upper=upper)
    left = sorted(path.name for path in upper.iterdir() if path.name not in ("dev", "proc", "sys", "etc"))
    result, _ = stage.run(rootfs, "/bin/sh", "-c", "ls /; true", platform=platform)
    child_failed = result.exit_code == 0
    return [how, out, left or ["root"], child_failed]


@pytest.mark.needs("base", "overlay")
def test_without_any_emulator_the_package_is_named(tmp_path: Path, rootfs: Callable[..., str]) -> None:
    summary, hint = in_worker(none_at_all, tmp_path, rootfs=rootfs())
    assert summary == "this machine cannot run s390x programs: no QEMU for it was found"
    assert "CROSSDOCK_QEMU_PATH" in hint


def none_at_all(stage: Stage, rootfs: str) -> list[str]:
    from crossdock.emulation.qemu import QemuBinaries
    from crossdock.errors import EmulationError
    from crossdock.image.platform import Platform

    stage.sandbox.emulator._binaries = QemuBinaries({})
    with pytest.raises(EmulationError) as caught:
        stage.run(rootfs, "true", platform=Platform("linux", "s390x"))
    return [caught.value.summary, caught.value.hint or ""]


# --- crossdock binfmt ---


class Host:
    """Runs ``crossdock binfmt`` commands one after another as root of a namespace with a binfmt_misc of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lines: list[str] = []

    def run(self, *commands: str) -> list[tuple[int, str]]:
        """Exit code and output of each command."""
        (self._folder / "binfmt.d").mkdir(exist_ok=True)
        python = f"{sys.executable} -m crossdock binfmt"
        script = "".join(
            f"{python} {command} > {self._folder}/out{n} 2>&1; echo $? > {self._folder}/code{n}\n"
            for n, command in enumerate(commands)
        )
        wrapped = f"mkdir -p /etc/binfmt.d 2>/dev/null; mount --bind {self._folder}/binfmt.d /etc/binfmt.d || true\n"
        wrapped += script
        done = subprocess.run(
            [
                "unshare",
                "--user",
                "--map-root-user",
                "--mount",
                "--pid",
                "--fork",
                "--mount-proc",
                "sh",
                "-c",
                wrapped,
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return [
            (int((self._folder / f"code{n}").read_text()), (self._folder / f"out{n}").read_text())
            for n in range(len(commands))
        ]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_install_ls_verify_uninstall(host: Host) -> None:
    results = host.run(
        "install s390x ppc64le", "ls --format json", "verify", "uninstall s390x", "ls", "uninstall all"
    )
    codes = [code for code, _ in results]
    assert codes == [0] * 6, results
    installed, listed, verified, removed, left, emptied = (text for _, text in results)
    assert installed.splitlines()[0].startswith("s390x: qemu-s390x -> ")
    (entry,) = (row for row in json.loads(listed) if row["name"] == "qemu-s390x")
    assert entry | {"interpreter": ""} == {
        "name": "qemu-s390x",
        "arch": "s390x",
        "enabled": True,
        "interpreter": "",
        "flags": "F",
        "offset": 0,
        "magic": "7f454c4602020100000000000000000000020016",
        "mask": "ffffffffffffff00fffffffffffffffffffeffff",
        "extension": "",
    }
    assert [line.split()[-1] for line in verified.splitlines()] == ["OK", "yes", "yes"]
    assert removed == "removed qemu-s390x\n"
    assert left.splitlines()[0].split()[:4] == ["NAME", "ARCH", "ENABLED", "INTERPRETER"]
    assert "qemu-ppc64le" in left
    assert "s390x" not in left
    assert emptied == "removed qemu-ppc64le\n"


def test_a_handler_of_someone_else_is_left_alone_without_reset(host: Host) -> None:
    results = host.run(
        "install s390x",
        "install s390x",
        "install --credential --preserve-argv0 s390x",
        "install --credential --preserve-argv0 --reset s390x",
        "ls",
    )
    (_, first), (_, again), (refused, text), (_, replaced), (_, listed) = results
    assert first.endswith(" registered\n")
    assert again.endswith(" already registered\n")
    assert refused == 1
    assert "s390x has a handler already: qemu-s390x -> " in text
    assert "--reset replaces it" in text
    assert replaced.endswith(" replaced\n")
    assert "POCF" in listed


@pytest.mark.needs("root")
def test_persistent_handlers_are_written_for_the_next_boot(host: Host, tmp_path: Path) -> None:
    ((code, _),) = host.run("install --persistent s390x")
    assert code == 0
    text = (tmp_path / "binfmt.d/qemu-s390x.conf").read_text()
    assert text.startswith("# registered by crossdock")
    assert ":qemu-s390x:M:0:" in text
    host.run("uninstall s390x")
    assert list((tmp_path / "binfmt.d").iterdir()) == []


def test_all_leaves_out_what_runs_by_itself(host: Host) -> None:
    (_, installed), (code, verified) = host.run("install all", "verify")
    names = [line.partition(":")[0] for line in installed.splitlines()]
    assert "s390x" in names
    assert code == 0, verified
    if os.uname().machine == "x86_64":
        assert "amd64" not in names
        assert "386" not in names


def test_verify_fails_for_what_has_no_handler(host: Host) -> None:
    (code, text), (none, nothing) = host.run("verify s390x", "verify")
    assert code == 1
    assert "programs of s390x do not run" in text
    assert none == 1
    assert "no handler for a foreign architecture is registered" in nothing


@pytest.mark.needs("user")
def test_an_ordinary_user_is_told_that_root_is_needed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "crossdock", "binfmt", "install", "s390x"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "needs root" in done.stderr
    assert "sudo" in done.stderr


def test_doctor_finds_nothing_missing_here() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "crossdock", "doctor", "--format", "json"],
        capture_output=True,
        text=True,
        check=False,
    )
    found = {check["name"]: check for check in json.loads(done.stdout)}
    for name in ("runtime", "namespaces", "overlay", "step", "linux/arm64", "linux/s390x"):
        assert found[name]["state"] == "ok", found[name]


def test_doctor_names_packages_for_what_is_missing(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path), "CROSSDOCK_RUNTIME": "no-runtime"}
    done = subprocess.run(
        [sys.executable, "-m", "crossdock", "doctor"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "FAIL  runtime" in done.stdout
    assert "install crun" in done.stdout
