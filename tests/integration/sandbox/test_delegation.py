"""Control groups that an ordinary user was given: limits hold there, and what is missing is said."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crossdock.linux import filesystem_magic
from integration.sandbox.test_ladder import STRANGER, Stranger, context, stranger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.servers import BaseImages

__all__ = ["stranger"]

pytestmark = pytest.mark.needs("root", "base", "crun", "userns", "overlay")

_CGROUP2 = 0x63677270
TOP = Path("/sys/fs/cgroup")
NAME = f"crossdock-delegated-{os.getpid()}"


def is_version_2(folder: Path) -> bool:
    return folder.is_dir() and filesystem_magic(folder) == _CGROUP2


@pytest.fixture
def made() -> Iterator[list[Path]]:
    """Groups to remove, outermost first."""
    folders: list[Path] = []
    yield folders
    for folder in reversed(folders):
        for inner in sorted(folder.glob("**/"), reverse=True):
            remove(inner)


def remove(group: Path) -> None:
    """A group whose last process has just ended may be busy for a moment."""
    deadline = time.monotonic() + 5
    while group.exists():
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def give(folder: Path, made: list[Path]) -> Path:
    """Make a group and give it away, as a service manager does."""
    folder.mkdir()
    made.append(folder)
    for path in (folder, *folder.glob("cgroup.*")):
        with contextlib.suppress(PermissionError):
            os.chown(path, STRANGER, STRANGER)
    return folder


def delegate(made: list[Path]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Give the user groups; returns what to start the build with, and its flags."""
    if is_version_2(TOP):
        with contextlib.suppress(OSError):
            (TOP / "cgroup.subtree_control").write_text("+memory +cpu")
        inner = give(give(TOP / NAME, made) / "inner", made)
        enter = f'echo $$ > {inner}/cgroup.procs && exec "$@"'
        return ("sh", "-c", enter, "sh"), ()
    for controller in ("cpu", "cpuset", "memory"):
        if not (TOP / controller).is_dir():
            pytest.skip("no control groups")
        folder = give(TOP / controller / NAME, made)
        if controller == "cpuset":
            for file in ("cpuset.cpus", "cpuset.mems"):
                (folder / file).write_text((folder.parent / file).read_text())
        os.chown(folder / "tasks", STRANGER, STRANGER)
    return (), ("--cgroup-parent", NAME)


def test_a_step_of_an_ordinary_user_is_killed_for_memory_and_says_so(
    stranger: Stranger, base: BaseImages, made: list[Path]
) -> None:
    prefix, flags = delegate(made)
    stranger.prefix = (*prefix, *stranger.prefix)
    folder = context(stranger.folder / "c", f"FROM {base.index}\nRUN head -c 80m /dev/zero | tail\n")
    flags = (*flags, "--progress=plain", "-o", "type=cacheonly", "--no-cache")
    done = stranger("build", folder, *flags, "--resource", "memory=32m").failed(1)
    assert "killed because it used more than 32 MiB of memory" in done.err
    assert "runs without" not in done.err
    folder = context(stranger.folder / "d", f"FROM {base.index}\nRUN cat /proc/self/cgroup\n")
    done = stranger("build", folder, *flags, "--resource", "cpu-shares=100", "--resource", "memory=64m").ok()
    assert f"/{NAME}/crossdock/step" in done.err
    left = [step for given in made for step in given.glob("**/step*")]
    assert not left, "groups are gone with their steps"


SNIPPET = """
import os, subprocess, sys
from pathlib import Path
from crossdock.engine.sandbox.cgroups import Unavailable, find_limits
from crossdock.llb.ops import LinuxResources
limits = find_limits("v2", Path(sys.argv[1]))
if isinstance(limits, Unavailable):
    sys.exit(limits.reason)
try:
    with limits.group("step1", LinuxResources(memory=1 << 25, cpu_shares=100)) as group:
        argv = group.command(["cat", "/proc/self/cgroup"])
        print(subprocess.run(argv, capture_output=True, text=True).stdout)
        print("missing", *group.missing)
except OSError as exc:
    sys.exit(f"{exc.filename}: {exc.strerror}")
"""


@pytest.fixture
def unified() -> Path:
    """Where groups of version 2 are."""
    for folder in (TOP, TOP / "unified"):
        if is_version_2(folder):
            return folder
    pytest.skip("no control groups of version 2")


def find(prefix: tuple[str, ...], unified: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, "setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups",
         sys.executable, "-c", SNIPPET, str(unified)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_version_2_below_what_was_given(unified: Path, made: list[Path], stranger: Stranger) -> None:
    """The step's group is beside the one of the build, since a group has processes or groups."""
    del stranger  # skips where other users cannot run us
    inner = give(give(unified / NAME, made) / "inner", made)
    done = find(("sh", "-c", f'echo $$ > {inner}/cgroup.procs && exec "$@"', "sh"), unified)
    assert done.returncode == 0, done.stderr
    assert f"/{NAME}/crossdock/step1-" in done.stdout
    if "memory" not in (unified / "cgroup.controllers").read_text().split():
        assert "missing memory.max cpu.weight" in done.stdout


def test_version_2_without_anything_given(unified: Path, stranger: Stranger) -> None:
    del stranger
    done = find((), unified)
    assert done.returncode == 1
    assert "this user may not make control groups" in done.stderr


def test_version_2_given_but_started_outside(unified: Path, made: list[Path], stranger: Stranger) -> None:
    """A group can be entered only by those who may write to the one above both."""
    del stranger
    outer = give(unified / NAME, made)
    inner = give(outer / "inner", made)
    os.chown(outer / "cgroup.procs", 0, 0)
    done = find(("sh", "-c", f'echo $$ > {inner}/cgroup.procs && exec "$@"', "sh"), unified)
    assert done.returncode == 1
    assert "cgroup.procs: Permission denied" in done.stderr
