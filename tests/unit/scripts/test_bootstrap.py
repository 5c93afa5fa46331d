"""Setup: what it would install, which Python it takes, and that it does nothing twice."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

import bootstrap


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH of this case alone."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_each_purpose_includes_the_ones_before() -> None:
    runtime, test, bench = map(bootstrap.wanted_packages, bootstrap.PURPOSES)
    assert runtime == test[: len(runtime)]
    assert test == bench[: len(test)]
    assert "crun" in runtime
    assert "skopeo" not in runtime
    assert "skopeo" in test


def test_only_missing_packages_are_installed(programs: Path, tmp_path: Path) -> None:
    program(programs, "dpkg-query", 'echo "crun installed"; echo "uidmap config-files"; exit 1')
    program(
        programs, "env", 'while [ "$1" != apt-get ]; do shift; done; echo "$@" >> ' + str(tmp_path / "log")
    )
    program(programs, "sudo", 'exec "$@"')
    bootstrap.install_packages(["crun", "uidmap", "skopeo"])
    update, install = (tmp_path / "log").read_text().splitlines()
    assert update.endswith("update")
    assert install.endswith("--no-install-recommends uidmap skopeo")


def test_nothing_is_asked_of_the_mirror_when_all_is_there(programs: Path) -> None:
    program(programs, "dpkg-query", 'echo "crun installed"')
    bootstrap.install_packages(["crun"])  # apt-get does not exist here


def test_elsewhere_it_says_what_to_install(programs: Path) -> None:
    program(programs, "dnf", "")
    program(programs, "crun", "")
    with pytest.raises(bootstrap.SetupError) as caught:
        bootstrap.check_elsewhere()
    assert str(caught.value).endswith("dnf install shadow-utils qemu-user-static")


@pytest.mark.needs("user")
def test_without_sudo_the_command_is_shown(programs: Path) -> None:
    program(programs, "dpkg-query", "exit 1")
    program(programs, "env", "")
    with pytest.raises(bootstrap.SetupError, match="run as root:\n  apt-get update"):
        bootstrap.install_packages(["crun"])


def test_a_python_in_a_closed_folder_is_not_for_everybody(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    program(closed, "python3", f'printf "%s\\n" {closed}/python3 {closed}')
    closed.chmod(stat.S_IRWXU)
    assert not bootstrap._for_everybody(f"{closed}/python3")
    assert bootstrap._for_everybody("/usr/bin/python3")


def test_the_script_parses_with_an_old_python() -> None:
    source = Path(bootstrap.__file__).read_text()
    compile(source, "bootstrap.py", "exec", flags=0, dont_inherit=True)
    import ast

    ast.parse(source, feature_version=(3, 8))


def test_an_unknown_purpose_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, bootstrap.__file__, "everything"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "[runtime|test|bench]" in done.stderr
