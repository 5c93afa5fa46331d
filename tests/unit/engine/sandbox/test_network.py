"""What an isolated network needs, and what is said where it is missing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from crossdock.engine.sandbox.etcfiles import resolv_text
from crossdock.engine.sandbox.network import find_helper
from crossdock.errors import SandboxError

if TYPE_CHECKING:
    from pathlib import Path


def program(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("there", "chosen"), [(["pasta", "slirp4netns"], "slirp4netns"), (["pasta"], "pasta")]
)
def test_the_helper_that_is_there_is_used(tmp_path: Path, there: list[str], chosen: str) -> None:
    for name in there:
        program(tmp_path, name)
    found = find_helper(path=str(tmp_path), tun=os.devnull)
    assert (found.name, found.path, found.nameserver) == (chosen, str(tmp_path / chosen), "10.0.2.3")


def test_without_a_helper_the_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(SandboxError) as caught:
        find_helper(path=str(tmp_path), tun=os.devnull)
    assert caught.value.summary == "an isolated network needs slirp4netns or pasta, and neither is on PATH"
    assert "slirp4netns" in (caught.value.hint or "")


def test_without_the_driver_what_to_load_is_named(tmp_path: Path) -> None:
    program(tmp_path, "slirp4netns")
    with pytest.raises(SandboxError) as caught:
        find_helper(path=str(tmp_path), tun=str(tmp_path / "absent"))
    assert "cannot be opened: No such file or directory" in caught.value.summary
    assert "modprobe tun" in (caught.value.hint or "")


@pytest.mark.needs("user")
def test_a_device_for_root_alone_says_how_to_open_it(tmp_path: Path) -> None:
    program(tmp_path, "slirp4netns")
    device = tmp_path / "tun"
    device.touch(mode=0o000)
    with pytest.raises(SandboxError) as caught:
        find_helper(path=str(tmp_path), tun=str(device))
    assert f"sudo chmod 666 {device}" in (caught.value.hint or "")


def test_the_resolver_of_an_isolated_network_is_the_helper_alone(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/resolv.conf").write_text("search a.example\nnameserver 127.0.0.53\noptions ndots:2\n")
    text = resolv_text(host_network=False, nameserver="10.0.2.3", root=tmp_path)
    assert text == "search a.example\noptions ndots:2\nnameserver 10.0.2.3\n"
