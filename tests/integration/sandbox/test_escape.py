"""What a step must not be able to do: each case tries, from inside a real step, and must fail.

The list is that of docs/dev/security.md.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crossdock.image.platform import local_platform
from support.escapes import ATTEMPTS
from support.needs import missing
from support.stage import Stage, in_worker

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.needs("userns", "overlay", "crun", "base")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, rootfs: Callable[..., str]) -> dict[str, str]:
    """What each attempt printed: all run in one worker, each in a step of its own."""
    folder = tmp_path_factory.mktemp("escape")
    (folder / "marker").write_text("OUT")
    return dict(in_worker(attempts, folder, rootfs=rootfs()))


def attempts(stage: Stage, rootfs: str) -> dict[str, str]:
    marker = stage.folder / "marker"
    assert marker.read_text() == "OUT"
    out = {}
    for name, (script, _) in ATTEMPTS.items():
        _, out[name] = stage.run(rootfs, "/bin/sh", "-c", f"({script.format(marker=marker)}) 2>&1")
    return out


@pytest.mark.parametrize("name", [pytest.param(name, id=name) for name in ATTEMPTS])
def test_escape(name: str, answers: dict[str, str]) -> None:
    said = answers[name]
    assert "OUT" not in said, said
    assert re.search(ATTEMPTS[name][1], said, re.MULTILINE), said


def test_neither_the_environment_nor_the_files_of_the_worker_reach_a_step(
    tmp_path: Path, rootfs: Callable[..., str]
) -> None:
    env = {"AWS_SECRET_ACCESS_KEY": "leak-me", "DOCKER_AUTH_CONFIG": "leak-me"}
    out = in_worker(look_for_secrets, tmp_path, rootfs=rootfs(), environment=env)
    assert out == "HOME=/root\nPATH=/bin:/sbin:/usr/bin\nPWD=/\nSHLVL=1\n"


def look_for_secrets(stage: Stage, rootfs: str) -> str:
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == "leak-me"
    script = "env | sort; cat /proc/[0-9]*/environ | tr '\\0' '\\n' | grep leak-me || true"
    return stage.sh(rootfs, script)


@pytest.mark.parametrize("pidns", [True, False], ids=["own pid namespace", "host's pid namespace"])
def test_a_step_cannot_signal_or_trace_processes_outside(
    tmp_path: Path, rootfs: Callable[..., str], pidns: bool
) -> None:
    with subprocess.Popen(["sleep", "60"]) as victim:
        try:
            out = in_worker(
                signals, tmp_path, rootfs=rootfs(), victim=victim.pid, options={"pid_namespace": pidns}
            )
            assert victim.poll() is None, "the step killed a process of the host"
        finally:
            victim.kill()
    assert "OUT" not in out


def signals(stage: Stage, rootfs: str, victim: int) -> str:
    # PID 1 of a step that has its own PIDs is the shell itself; -1 is everybody it can see but itself.
    script = f"""
kill -9 {victim} 2>/dev/null && echo OUT killed
kill -9 {os.getpid()} 2>/dev/null && [ {os.getpid()} -gt 9 ] && echo OUT worker
cat /proc/{victim}/environ 2>/dev/null | grep -q PATH && echo OUT environ
ls /proc/{victim}/root/ 2>/dev/null | grep -q . && echo OUT root
true
"""
    _, out = stage.run(rootfs, "/bin/sh", "-c", script)
    return out


def test_a_step_sees_neither_the_store_nor_other_steps(tmp_path: Path, rootfs: Callable[..., str]) -> None:
    out = in_worker(two_steps, tmp_path, rootfs=rootfs())
    assert out == "nothing\n"


def two_steps(stage: Stage, rootfs: str) -> str:
    import threading

    started = threading.Event()

    def other() -> None:
        stage.run(rootfs, "/bin/sh", "-c", "echo 'other secret' > /tmp/o; echo x > /dev/shm/o; sleep 2")

    thread = threading.Thread(target=other)
    thread.start()
    started.wait(0.3)
    script = f"ls {stage.folder} {stage.info.run_dir} /tmp/o /dev/shm/o 2>/dev/null || echo nothing"
    out = stage.sh(rootfs, script)
    thread.join()
    return out


def test_symlinks_in_an_image_do_not_redirect_what_the_sandbox_writes(
    tmp_path: Path, rootfs: Callable[..., str]
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "passwd").write_text("evil:x:7:7::/:/bin/sh\n")
    assert in_worker(hostile_links, tmp_path, rootfs=rootfs(), outside=str(outside)) == ["uid=0(root)", "/w"]
    assert sorted(os.listdir(outside)) == ["passwd"]


def hostile_links(stage: Stage, rootfs: str, outside: str) -> list[str]:
    from crossdock.engine.sandbox.step import TmpfsMount

    layer = stage.layer()
    (layer / "etc").mkdir()
    for name in ("resolv.conf", "hosts"):
        (layer / "etc" / name).symlink_to(f"{outside}/{name}")
    (layer / "w").symlink_to(f"{outside}/made-by-cwd")
    (layer / "m").symlink_to(f"../../../../../..{outside}/made-by-mount")
    out = stage.sh(f"{rootfs}|{layer}", "id -un; pwd", cwd="/w", mounts=(TmpfsMount(dest="/m/t"),))
    name, cwd = out.split()
    return [f"uid=0({name})", "/w" if cwd.endswith("made-by-cwd") or cwd == "/w" else cwd]


#: programs that do exit(geteuid())
EUID = {
    # mov eax, 107; syscall; mov edi, eax; mov eax, 60; syscall
    "amd64": bytes.fromhex("b86b000000 0f05 89c7 b83c000000 0f05"),
    # mov x8, #175; svc #0; mov x8, #93; svc #0
    "arm64": bytes.fromhex("e81580d2 010000d4 a80b80d2 010000d4"),
}


@pytest.mark.needs("subids")
@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_setuid_programs_work_inside(tmp_path: Path, rootfs: Callable[..., str], architecture: str) -> None:
    if architecture != local_platform().architecture:
        for need in ("qemu", "binfmt"):
            if lack := missing(need):
                pytest.skip(lack.reason)
    assert in_worker(setuid, tmp_path, rootfs=rootfs(), architecture=architecture) == [1000 % 256, 0]


def setuid(stage: Stage, rootfs: str, architecture: str) -> list[int]:
    from crossdock.emulation.architectures import by_name
    from crossdock.emulation.probes import small_elf
    from crossdock.image.platform import Platform

    arch = by_name(architecture)
    assert arch is not None
    layer = stage.layer()
    for name, mode in (("plain", 0o755), ("setuid", 0o4755)):
        (layer / name).write_bytes(small_elf(arch, EUID[architecture]))
        (layer / name).chmod(mode)
    platform = Platform("linux", architecture)
    return [
        stage.run(f"{rootfs}|{layer}", f"/{name}", user="1000:1000", platform=platform)[0].exit_code
        for name in ("plain", "setuid")
    ]


@pytest.mark.needs("user", "subids")
def test_root_in_a_step_is_the_ordinary_user_outside(tmp_path: Path, rootfs: Callable[..., str]) -> None:
    uids = in_worker(owners, tmp_path, rootfs=rootfs())
    upper = Path(uids)
    assert (upper / "by-root").stat().st_uid == os.geteuid()
    assert (upper / "by-user").stat().st_uid >= 100000
    in_worker(clean, tmp_path, upper=uids)


def owners(stage: Stage, rootfs: str) -> str:
    upper = stage.layer()
    stage.sh(rootfs, "touch /by-root; touch /by-user; chown 1000:1000 /by-user", upper=upper)
    return str(upper)


def clean(stage: Stage, upper: str) -> str:
    (Path(upper) / "by-user").unlink()
    return stage.info.ids


@pytest.mark.needs("user")
def test_a_security_insecure_step_of_an_ordinary_user_is_no_root_outside(
    tmp_path: Path, rootfs: Callable[..., str]
) -> None:
    out = in_worker(insecure, tmp_path, rootfs=rootfs())
    assert "mounted" in out
    assert "OUT" not in out


def insecure(stage: Stage, rootfs: str) -> str:
    from crossdock.llb.ops import SecurityMode

    script = """
mount -t tmpfs x /tmp && echo mounted
echo x > /proc/sys/kernel/core_pattern && echo OUT
head -c1 /dev/vda 2>/dev/null | grep -q . && echo OUT
mknod /d b 8 0 2>/dev/null && head -c1 /d 2>/dev/null | grep -q . && echo OUT
true
"""
    _, out = stage.run(rootfs, "/bin/sh", "-c", script, security=SecurityMode.INSECURE)
    return out
