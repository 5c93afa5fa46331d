"""The private apt keeps away from the host's configuration."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

import privateapt

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An apt-get that writes what it is asked and its configuration, and makes a package file."""
    folder = tmp_path / "bin"
    folder.mkdir()
    log = tmp_path / "log"
    (folder / "apt-get").write_text(
        f'#!/bin/sh\necho "$2 $3" >> {log}\ncp "$APT_CONFIG" {tmp_path}/conf\n'
        'if [ "$2" = download ]; then : > "$(echo "$3" | tr : _).deb"; fi\n'
    )
    for name in ("apt-config", "dpkg-deb"):
        (folder / name).write_text("#!/bin/sh\n")
    for path in folder.iterdir():
        path.chmod(0o755)
    keyring = tmp_path / "keyring.gpg"
    keyring.touch()
    monkeypatch.setattr(privateapt, "KEYRING", keyring)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return log


def test_lists_are_fetched_once_and_packages_in_order(recorded: Path, tmp_path: Path) -> None:
    apt = privateapt.PrivateApt(tmp_path / "apt", suite="bookworm", architectures=["amd64", "arm64"])
    first = apt.download(["b:arm64", "a:amd64"], tmp_path / "debs")
    apt.download(["c"], tmp_path / "debs")
    assert recorded.read_text().split() == [
        "update",
        "download",
        "b:arm64",
        "download",
        "a:amd64",
        "download",
        "c",
    ]
    assert [path.name for path in first] == ["b_arm64.deb", "a_amd64.deb"]


def test_every_folder_of_its_configuration_is_its_own(recorded: Path, tmp_path: Path) -> None:
    apt = privateapt.PrivateApt(tmp_path / "apt", suite="bookworm", architectures=["arm64"])
    apt.download(["a"], tmp_path / "debs")
    settings = (tmp_path / "conf").read_text()
    folders = [word.strip('";') for word in settings.split() if word.startswith('"/')]
    assert len(folders) >= 8
    assert all(path.startswith(str(tmp_path)) or path == "/dev/null" for path in folders)
    assert 'APT::Architectures { "arm64"; };' in settings


def test_a_failure_says_what_apt_said(recorded: Path, tmp_path: Path) -> None:
    program = tmp_path / "bin/apt-get"
    program.write_text("#!/bin/sh\necho 'E: no such suite' >&2; exit 100\n")
    apt = privateapt.PrivateApt(tmp_path / "apt", suite="nowhere", architectures=["amd64"])
    with pytest.raises(privateapt.AptError, match="no such suite"):
        apt.download(["a"], tmp_path / "debs")


def test_without_the_keyring_nothing_is_fetched(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(privateapt, "KEYRING", tmp_path / "absent.gpg")
    apt = privateapt.PrivateApt(tmp_path / "apt", suite="bookworm", architectures=["amd64"])
    with pytest.raises(privateapt.AptError, match="install debian-archive-keyring"):
        apt.download(["a"], tmp_path / "debs")
    assert not recorded.exists()


def test_a_chosen_mirror_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSDOCK_DEBIAN_MIRROR", "http://mirror.example/debian/")
    assert privateapt.debian_mirror() == "http://mirror.example/debian"


def test_the_lock_keeps_a_second_process_out(tmp_path: Path) -> None:
    lock = tmp_path / "locks/one"
    with privateapt.locked(lock):
        done = subprocess.run(["flock", "--nonblock", str(lock), "true"], check=False)
    assert done.returncode == 1
