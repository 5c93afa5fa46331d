"""The ladder through the command: what each machine and user gets, and how it is said."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from idmap import remove_tree
from support.cli import PROGRAM, Ran, make
from support.stage import Stage, in_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.cli import Crossdock
    from support.servers import BaseImages

pytestmark = pytest.mark.needs("base", "crun", "userns", "overlay")

_TOP = Path(__file__).resolve().parents[3]
#: nobody in particular: no account, no group, no ranges
#: another id in each process of the suite: a run directory in /tmp is one user's
STRANGER = 54321 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
DOCKERFILE = "FROM {base}\nRUN echo as $(id -u) on $(uname -m)\n"


def context(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Dockerfile").write_text(text)
    return folder


class TestOrdinaryUser:
    @pytest.mark.needs("user", "subids")
    def test_with_ranges_steps_have_users_of_their_own(self, crossdock: Crossdock, base: BaseImages) -> None:
        text = f"FROM {base.index}\nUSER 1000\nRUN echo as $(id -u) && ls -ld /tmp\n"
        done = crossdock("build", context(crossdock.folder / "c", text), "--progress=plain").ok()
        assert "as 1000" in done.err
        assert re.search(r"crossdock\.ids:\s+ranges$", inspected(crossdock), re.MULTILINE)

    @pytest.mark.needs("user")
    def test_without_the_programs_for_ranges_one_id_is_left(
        self, crossdock: Crossdock, base: BaseImages, tmp_path: Path
    ) -> None:
        (tmp_path / "bin").mkdir()
        for name in ("crun", "sh"):
            (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
        env = {"PATH": str(tmp_path / "bin")}
        folder = context(crossdock.folder / "c", DOCKERFILE.format(base=base.index))
        assert "as 0" in crossdock("build", folder, "--progress=plain", env=env).ok().err
        shown = crossdock("inspect", "--bootstrap", env=env).ok().out
        assert re.search(r"crossdock\.ids:\s+single \(newgidmap is missing: ", shown)


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    """The command as a user without ranges: root takes another uid for it."""
    folder = Path("/tmp") / f"crossdock-stranger-{os.getpid()}"
    runner = Stranger(folder)
    try:
        yield runner
    finally:
        runner.close()


class Stranger:
    """Runs the command as :data:`STRANGER`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o755)
        self.crossdock = make(folder)
        self.folder = folder
        self.prefix: tuple[str, ...] = (
            "setpriv",
            f"--reuid={STRANGER}",
            f"--regid={STRANGER}",
            "--clear-groups",
        )
        for path in (folder, folder / "docker"):
            os.chown(path, STRANGER, STRANGER)
        readable = subprocess.run([*self.prefix, PROGRAM, "--help"], capture_output=True, check=False)
        if readable.returncode != 0:
            self.close()
            pytest.skip("needs a tree that other users can read")

    def __call__(self, *args: str | Path) -> Ran:
        done = subprocess.run(
            [*self.prefix, PROGRAM, *map(str, args)],
            cwd=self.folder,
            env={**self.crossdock.environment, "TMPDIR": str(self.folder)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Ran(" ".join(map(str, args)), done.returncode, done.stdout, done.stderr)

    def close(self) -> None:
        self.crossdock.close()
        remove_tree(self.folder)
        shutil.rmtree(f"/tmp/crossdock-{STRANGER}", ignore_errors=True)


@pytest.mark.needs("root")
class TestWithoutRanges:
    def test_steps_run_as_the_one_id_and_inspect_says_why(self, stranger: Stranger, base: BaseImages) -> None:
        folder = context(stranger.folder / "c", DOCKERFILE.format(base=base.index))
        assert "as 0" in stranger("build", folder, "--progress=plain").ok().err
        shown = stranger("inspect", "--bootstrap").ok().out
        assert re.search(rf"crossdock\.ids:\s+single \(no id ranges for {STRANGER} in /etc/subuid", shown)
        stranger("store", "check").ok()

    def test_a_step_of_another_user_says_what_is_missing(self, stranger: Stranger, base: BaseImages) -> None:
        folder = context(stranger.folder / "c", f"FROM {base.index}\nUSER 1000:1000\nRUN true\n")
        done = stranger("build", folder, "--progress=plain").failed(1)
        assert "user 1000:1000 (1000:1000) does not exist in the worker namespace" in done.err
        assert "no id ranges for" in done.err


def inspected(crossdock: Crossdock) -> str:
    return crossdock("inspect", "--bootstrap").ok().out


class TestUserNamespacesForbidden:
    def test_by_sysctl(self, crossdock: Crossdock, base: BaseImages) -> None:
        # The limit of an inner namespace is ours to set; without capabilities nothing else is left to try.
        off = 'echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-all --inh-caps=-all "$@"'
        folder = context(crossdock.folder / "c", DOCKERFILE.format(base=base.index))
        for arguments in (("build", str(folder)), ("inspect", "--bootstrap")):
            done = subprocess.run(
                [
                    "unshare",
                    "--user",
                    "--map-root-user",
                    "--mount",
                    "sh",
                    "-c",
                    off,
                    "sh",
                    PROGRAM,
                    *arguments,
                ],
                env=crossdock.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            ran = Ran(" ".join(arguments), done.returncode, done.stdout, done.stderr).failed(1)
            assert "cannot create a user namespace" in ran.err
            assert "sysctl -w user.max_user_namespaces=" in ran.err


class TestInsideAContainer:
    """A step has what a container with default settings has; the command runs in one."""

    def test_with_a_default_seccomp_profile_it_says_what_forbids_it(
        self, tmp_path: Path, rootfs: Callable[..., str], base: BaseImages
    ) -> None:
        said = in_worker(nested, tmp_path, rootfs=rootfs(), base=base.index, seccomp=True)
        assert said["codes"] == [1, 1]
        assert "Traceback" not in said["out"]
        assert said["out"].count("cannot create a user namespace: Operation not permitted") == 2
        assert "--security-opt seccomp=unconfined" in said["out"]

    def test_without_seccomp_builds_work_with_no_capability_at_all(
        self, tmp_path: Path, rootfs: Callable[..., str], base: BaseImages
    ) -> None:
        said = in_worker(nested, tmp_path, rootfs=rootfs(), base=base.index, seccomp=False)
        assert said["codes"] == [0, 0], said["out"]
        assert "as 0 on " in said["out"]
        assert re.search(
            r"crossdock\.fresh-proc:\s+refused \(/proc/\w+ is mounted over part of /proc\)", said["out"]
        )
        assert re.search(r"crossdock\.pid-namespace:\s+host's", said["out"])


def nested(stage: Stage, rootfs: str, base: str, seccomp: bool) -> dict[str, Any]:
    """Run the command in a step: masked /proc, default capabilities, and a seccomp filter or none."""
    from crossdock.engine.sandbox.step import BindMount, TmpfsMount

    if not seccomp:
        stage.sandbox._filter = (None, {})
    layer = stage.layer(c__Dockerfile=DOCKERFILE.format(base=base))
    folders = {Path(p) for p in ("/usr", "/etc", "/bin", "/lib", "/lib64")}
    folders |= {_TOP, Path(sys.base_prefix), Path(sys.prefix)}
    mounts: list[Any] = [TmpfsMount(dest="/tmp"), TmpfsMount(dest="/run")]
    wanted = sorted((f for f in folders if f.exists() and not below_another(f, folders)), key=str)
    mounts += [BindMount(source=folder.resolve(), dest=str(folder), readonly=True) for folder in wanted]
    out, codes = "", []
    program = Path(sys.executable).with_name("crossdock")
    for command in ("build --progress=plain /c", "inspect --bootstrap"):
        environment = (
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp", "CROSSDOCK_ROOT=/store",
            "DOCKER_CONFIG=/tmp/docker", f"PYTHONPATH={_TOP}/src",
        )  # fmt: skip
        result, said = stage.run(
            f"{rootfs}|{layer}",
            "/bin/sh",
            "-c",
            f"{program} {command}",
            mounts=tuple(mounts),
            env=environment,
        )
        out += said
        codes.append(result.exit_code)
    return {"out": out, "codes": codes}


def below_another(folder: Path, folders: set[Path]) -> bool:
    return any(other in folder.parents for other in folders)
