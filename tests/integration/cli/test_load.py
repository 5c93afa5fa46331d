"""``--load``: images into real Docker Engines."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    import services
    from support.cli import Crossdock
    from support.servers import BaseImages, DockerCli

pytestmark = pytest.mark.needs("base", "crun", "userns", "overlay", "docker", "dockercli")


@pytest.fixture
def context(tmp_path: Path, base: BaseImages) -> Path:
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text(
        f'FROM {base.index}\nRUN uname -m > /machine\nCMD ["cat", "/machine"]\n'
    )
    return folder


def test_one_platform_is_loaded_and_runs(
    crossdock: Crossdock, context: Path, docker_engine: services.DockerEngine, docker_cli: DockerCli
) -> None:
    env = {"DOCKER_HOST": docker_engine.address}
    done = crossdock("build", context, "-t", "loaded:1", "--load", "--progress=plain", env=env).ok()
    assert "importing to docker" in done.err
    client = replace(docker_cli, host=docker_engine.address)
    assert client("run", "--rm", "--network", "none", "loaded:1").stdout.strip() == "x86_64"


@pytest.mark.needs("qemu", "binfmt")
def test_a_foreign_platform_is_loaded(
    crossdock: Crossdock, context: Path, docker_engine: services.DockerEngine, docker_cli: DockerCli
) -> None:
    env = {"DOCKER_HOST": docker_engine.address}
    crossdock(
        "build", context, "-t", "loaded:arm", "-o", "type=docker", "--platform", "linux/arm", env=env
    ).ok()
    client = replace(docker_cli, host=docker_engine.address)
    assert client("image", "inspect", "-f", "{{.Architecture}}", "loaded:arm").stdout.strip() == "arm"


def test_several_platforms_into_a_classic_store_are_refused_with_what_works(
    crossdock: Crossdock, context: Path, docker_engine: services.DockerEngine
) -> None:
    env = {"DOCKER_HOST": docker_engine.address}
    done = crossdock(
        "build", context, "-t", "loaded:2", "--load", "--platform", "linux/amd64,linux/arm64", env=env
    ).failed(1)
    assert "holds one platform of an image" in done.err
    assert "containerd image store" in done.err
    assert "type=oci,dest=" in done.err


@pytest.mark.needs("docker26", "qemu", "binfmt")
def test_several_platforms_into_a_containerd_store(
    crossdock: Crossdock,
    context: Path,
    docker_engine_containerd: services.DockerEngine,
    docker_cli: DockerCli,
) -> None:
    env = {"DOCKER_HOST": docker_engine_containerd.address}
    crossdock(
        "build", context, "-t", "loaded:2", "--load", "--platform", "linux/amd64,linux/arm64", env=env
    ).ok()
    client = replace(docker_cli, host=docker_engine_containerd.address)
    assert client("run", "--rm", "--network", "none", "loaded:2").stdout.strip() == "x86_64"


def test_without_an_engine_the_error_offers_an_archive(crossdock: Crossdock, context: Path) -> None:
    done = crossdock(
        "build", context, "--load", env={"DOCKER_HOST": "unix:///nonexistent/docker.sock"}
    ).failed(1)
    assert "no Docker Engine answers" in done.err
    assert "type=docker,dest=" in done.err
