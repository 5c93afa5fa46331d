"""Why a program did not start, told from its file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from crossdock.emulation.architectures import by_name
from crossdock.emulation.probes import probe_elf
from crossdock.engine.sandbox.execfail import explain, explain_output, step_path
from crossdock.engine.sandbox.prefixed import EMULATOR_PATH, prefixed_args
from crossdock.engine.sandbox.step import BindMount, StepFailure, StepSpec
from crossdock.errors import SandboxError
from crossdock.image.platform import local_platform

if TYPE_CHECKING:
    from pathlib import Path

FOREIGN = "s390x" if local_platform().architecture != "s390x" else "arm64"


def program(root: Path, name: str, data: bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o755)


def foreign() -> bytes:
    arch = by_name(FOREIGN)
    assert arch is not None
    return probe_elf(arch)


def step(root: Path, *args: str, mounts: tuple[BindMount, ...] = (), cwd: str = "/") -> StepSpec:
    return StepSpec(rootfs=root, args=args, env=("PATH=/usr/bin:/bin",), mounts=mounts, cwd=cwd)


def test_a_foreign_program_is_named_with_its_architecture(tmp_path: Path) -> None:
    program(tmp_path, "bin/tool", foreign())
    result = explain(step(tmp_path, "tool"), "exec format error")
    here = local_platform().architecture
    assert result.exit_code == 126
    assert result.failure is StepFailure.WRONG_FORMAT
    assert (
        result.explanation
        == f"tool: exec format error, it is an ELF file for {FOREIGN} and this machine runs {here}"
    )
    assert f"it needs QEMU for {FOREIGN}" in result.hint


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"/bin/sh: 1: /opt/x: Exec format error\n", id="dash"),
        pytest.param(b"bash: line 1: /opt/x: cannot execute binary file: Exec format error\n", id="bash"),
        pytest.param(b"noise\nsh: /opt/x: Exec format error\nmore\n", id="among other lines"),
        pytest.param(b"exec /opt/x: exec format error\n", id="a Go program"),
        pytest.param(b"OSError: [Errno 8] Exec format error: '/opt/x'\n", id="Python"),
    ],
)
def test_a_foreign_program_that_a_shell_tried_is_found_in_its_output(tmp_path: Path, said: bytes) -> None:
    program(tmp_path, "opt/x", foreign())
    result = explain_output(step(tmp_path, "/bin/sh"), 126, said)
    assert result is not None
    assert result.exit_code == 126
    assert result.explanation.startswith("/opt/x: exec format error")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        pytest.param(0, b"/opt/x: Exec format error", id="a step that succeeded"),
        pytest.param(126, b"permission denied", id="another reason"),
        pytest.param(126, b"/opt/absent: Exec format error", id="a file that is not there"),
    ],
)
def test_other_failures_stay_as_they_are(tmp_path: Path, code: int, said: bytes) -> None:
    program(tmp_path, "opt/x", foreign())
    assert explain_output(step(tmp_path, "/bin/sh"), code, said) is None


def test_a_sound_program_means_the_sandbox_itself_failed(tmp_path: Path) -> None:
    native = by_name(local_platform().architecture)
    assert native is not None
    program(tmp_path, "bin/ok", probe_elf(native))
    with pytest.raises(SandboxError, match="could not start the step: mount proc: nope"):
        explain(step(tmp_path, "ok"), "mount proc: nope")


def test_programs_are_found_as_the_step_would_find_them(tmp_path: Path) -> None:
    root, tools = tmp_path / "root", tmp_path / "tools"
    program(root, "bin/a", b"")
    program(root, "work/b", b"")
    program(tools, "sub/c", b"")
    (root / "link").symlink_to("/bin")
    mounts = (BindMount(source=tools, dest="/t"),)
    spec = step(root, "x", mounts=mounts, cwd="/work")
    assert step_path(spec, "a") == str(root / "bin/a")
    assert step_path(spec, "./b") == str(root / "work/./b").replace("/./", "/")
    assert step_path(spec, "/link/a") == str(root / "bin/a")
    assert step_path(spec, "/t/sub/c") == str(tools / "sub/c")
    assert step_path(spec, "/t/none") is None
    assert step_path(spec, "none") is None


def test_an_emulator_is_put_before_programs_and_before_interpreters_of_scripts(tmp_path: Path) -> None:
    program(tmp_path, "bin/sh", foreign())
    program(tmp_path, "opt/run", b"#!/bin/sh -e\necho\n")
    assert prefixed_args(step(tmp_path, "sh", "-c", "x")) == (EMULATOR_PATH, "-0", "sh", "/bin/sh", "-c", "x")
    assert prefixed_args(step(tmp_path, "/opt/run", "arg")) == (
        *(EMULATOR_PATH, "-0", "/bin/sh", "/bin/sh", "-e", "/opt/run", "arg"),
    )
    assert prefixed_args(step(tmp_path, "absent")) == ("absent",)
