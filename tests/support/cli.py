"""Run the installed ``crossdock`` command in a case's own world."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from idmap import remove_tree

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PROGRAM = Path(sys.executable).with_name("crossdock")
TIMEOUT_S = 180.0


@dataclass(frozen=True)
class Ran:
    """A finished command."""

    command: str
    code: int
    out: str
    err: str

    def ok(self) -> Self:
        """Fail the case unless the exit code is 0."""
        if self.code != 0:
            pytest.fail(f"{self.command}\nexit {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}")
        return self

    def failed(self, code: int | None = None) -> Self:
        """Fail the case if the command succeeded, printed a traceback, or exited with another code."""
        if self.code == 0 or "Traceback" in self.err or (code is not None and self.code != code):
            pytest.fail(f"{self.command}\nexit {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}")
        return self


@dataclass
class Crossdock:
    """``crossdock("build", …)`` runs the command with this case's store, builders and docker configuration."""

    folder: Path
    environment: dict[str, str]
    _started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def root(self) -> Path:
        """The store (CROSSDOCK_ROOT)."""
        return Path(self.environment["CROSSDOCK_ROOT"])

    @property
    def docker_config(self) -> Path:
        """The docker configuration folder (DOCKER_CONFIG); builders are in ``buildx/`` of it."""
        return Path(self.environment["DOCKER_CONFIG"])

    def __call__(
        self,
        *args: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str | None = None,
        timeout: float = TIMEOUT_S,
    ) -> Ran:
        """Run to the end; never raises for an exit code (see Ran.ok)."""
        done = subprocess.run(
            [str(PROGRAM), *map(str, args)],
            cwd=cwd or self.folder,
            env={**self.environment, **(env or {})},
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
        return Ran(shlex.join(["crossdock", *map(str, args)]), done.returncode, done.stdout, done.stderr)

    def start(
        self, *args: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start it in a process group of its own, pipes on stdout and stderr; ended with the case if still running."""
        child = subprocess.Popen(
            [str(PROGRAM), *map(str, args)],
            cwd=cwd or self.folder,
            env={**self.environment, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._started.append(child)
        return child

    def close(self) -> None:
        """End what :meth:`start` started and remove the store."""
        for child in self._started:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
        remove_tree(self.root)


def make(folder: Path) -> Crossdock:
    """A command runner whose files are all in ``folder``."""
    docker_config = folder / "docker"
    docker_config.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "CROSSDOCK_ROOT": str(folder / "store"),
        "DOCKER_CONFIG": str(docker_config),
        "HOME": str(folder),
    }
    return Crossdock(folder, environment)


@pytest.fixture
def crossdock(tmp_path: Path) -> Iterator[Crossdock]:
    """The command with a store and configuration of this case alone."""
    runner = make(tmp_path / "crossdock")
    runner.folder.mkdir(exist_ok=True)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def shared_crossdock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crossdock]:
    """The command with a store that the cases of a module share (cheaper where cold caches do not matter)."""
    runner = make(tmp_path_factory.mktemp("crossdock"))
    yield runner
    runner.close()
