"""Fixtures of real services: registries, base images, Docker Engines. All on loopback, each started once."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

import baseimage
import services

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_serial = itertools.count(1)


@pytest.fixture(scope="session")
def registry() -> Iterator[services.Registry]:
    """A registry over plain HTTP (needs "registry"); cases share it, so use ``repository`` for what you push."""
    with services.Registry() as server:
        yield server


@pytest.fixture(scope="session")
def registry_auth() -> Iterator[services.Registry]:
    """A registry that asks for ``services.USERNAME`` and ``services.PASSWORD`` (needs "registry")."""
    with services.Registry(auth=True) as server:
        yield server


@pytest.fixture(scope="session")
def registry_tls() -> Iterator[services.Registry]:
    """A registry over HTTPS whose CA is ``registry_tls.ca`` (needs "registry", "openssl")."""
    with services.Registry(tls=True) as server:
        yield server


@pytest.fixture
def fresh_registry() -> Iterator[services.Registry]:
    """An empty registry of this case alone, with its own log (needs "registry")."""
    with services.Registry() as server:
        yield server


@pytest.fixture
def repository(registry: services.Registry, request: pytest.FixtureRequest) -> str:
    """``HOST:PORT/case/NAME-N``: a repository that no other case uses."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:60].strip("-")
    return f"{registry.host}/case/{name}-{next(_serial)}"


@dataclass(frozen=True)
class BaseImages:
    """References of the busybox images in ``registry``."""

    #: an OCI index of six platforms
    index: str
    #: the same files in Docker's media types
    docker: str
    #: an image of linux/amd64 alone, still an index
    amd64: str
    #: digest of ``index``
    digest: str
    #: platform -> manifest digest in ``index``
    platforms: Mapping[str, str]


@pytest.fixture(scope="session")
def busybox() -> baseimage.Image:
    """The busybox image of six platforms in memory (needs "base")."""
    return baseimage.busybox_image()


@pytest.fixture(scope="session")
def busybox_layout(busybox: baseimage.Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The busybox image as an OCI layout, tag ``latest`` (needs "base"); read only."""
    folder = tmp_path_factory.mktemp("busybox")
    baseimage.write_layout(busybox, folder)
    return folder


@pytest.fixture(scope="session")
def base(registry: services.Registry, busybox: baseimage.Image) -> BaseImages:
    """The busybox images in ``registry`` (needs "base")."""
    docker = baseimage.busybox_image(media="docker")
    single = baseimage.busybox_image(["linux/amd64"])
    baseimage.push(busybox, registry.host, "base/busybox", "1")
    baseimage.push(docker, registry.host, "base/busybox", "docker")
    baseimage.push(single, registry.host, "base/busybox", "amd64")
    name = f"{registry.host}/base/busybox"
    return BaseImages(f"{name}:1", f"{name}:docker", f"{name}:amd64", busybox.digest, busybox.platforms)


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[services.DockerEngine]:
    """Docker Engine 20.10 (needs "docker"); ``.address`` is for DOCKER_HOST. Run with ``--network none``."""
    with services.DockerEngine("20.10") as engine:
        yield engine


@pytest.fixture(scope="session")
def docker_engine_26() -> Iterator[services.DockerEngine]:
    """Docker Engine 26.1 with the classic image store (needs "docker26")."""
    with services.DockerEngine("26.1") as engine:
        yield engine


@pytest.fixture(scope="session")
def docker_engine_containerd() -> Iterator[services.DockerEngine]:
    """Docker Engine 26.1 with the containerd image store: multi-platform (needs "docker26")."""
    with services.DockerEngine("26.1", containerd_store=True) as engine:
        yield engine


@pytest.fixture(scope="session")
def docker_engine_bounded() -> Iterator[services.DockerEngine]:
    """Docker Engine 20.10 that runs privileged containers wherever root can (needs "docker")."""
    with services.DockerEngine("20.10", bounded=True) as engine:
        yield engine


@dataclass(frozen=True)
class DockerCli:
    """A real docker client with a configuration of its own."""

    program: Path
    #: the configuration folder (DOCKER_CONFIG); plug-ins go to ``config / "cli-plugins"``
    config: Path
    #: buildx of Debian, to compare with; not installed as a plug-in
    buildx: Path
    host: str = ""

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment in which it runs."""
        host = {"DOCKER_HOST": self.host} if self.host else {}
        return {**os.environ, "DOCKER_CONFIG": str(self.config), **host, **(extra or {})}

    def __call__(
        self,
        *args: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 120,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run it; with ``check``, a failure fails the case and shows what was printed."""
        done = subprocess.run(
            [str(self.program), *map(str, args)],
            cwd=cwd,
            env=self.environment(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode != 0:
            pytest.fail(
                f"docker {' '.join(map(str, args))}: exit {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done


@pytest.fixture
def docker_cli(tmp_path: Path) -> DockerCli:
    """A docker client (needs "dockercli"); no Engine. ``dataclasses.replace(docker_cli, host=…)`` gives it one."""
    folder = services.engine_folder("26.1")
    config = tmp_path / "docker-config"
    config.mkdir(exist_ok=True)
    return DockerCli(
        folder / "usr/bin/docker", config, folder / "usr/libexec/docker/cli-plugins/docker-buildx"
    )


def skopeo(*args: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run skopeo; a failure fails the case."""
    return _tool("skopeo", args, check=check)


def umoci(*args: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run umoci; a failure fails the case."""
    return _tool("umoci", args, check=check)


def _tool(name: str, args: tuple[str | Path, ...], *, check: bool) -> subprocess.CompletedProcess[str]:
    program = shutil.which(name)
    assert program, name
    with tempfile.TemporaryDirectory() as home:  # they keep databases of their own there
        done = subprocess.run(
            [program, *map(str, args)],
            env={**os.environ, "HOME": home},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    if check and done.returncode != 0:
        pytest.fail(f"{name} {' '.join(map(str, args))}: exit {done.returncode}\n{done.stderr}")
    return done
