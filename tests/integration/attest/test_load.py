"""Attested images in Docker Engines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from crossdock.builders.dockerconfig import DockerEndpoint
from crossdock.builders.dockerengine import connect

if TYPE_CHECKING:
    from pathlib import Path

    import services
    from support.cli import Crossdock

pytestmark = pytest.mark.needs("base", "crun", "userns", "overlay", "docker26")


def test_an_engine_with_the_containerd_store_takes_an_attested_image(
    context: Path, docker_engine_containerd: services.DockerEngine, crossdock: Crossdock
) -> None:
    env = {"DOCKER_HOST": docker_engine_containerd.address, "BUILDX_BUILDER": "embedded"}
    name = "attested.example.org/app:1"
    crossdock("build", "--load", "-t", name, "--provenance=max", context, env=env).ok()
    connection = connect(DockerEndpoint("test", docker_engine_containerd.address))
    connection.request("GET", f"/images/{name}/json")
    found = json.loads(connection.getresponse().read())
    connection.close()
    assert found["Architecture"] == "amd64"
    assert found["RepoTags"] == [name]


def test_an_engine_with_the_classic_store_cannot(
    context: Path, docker_engine_26: services.DockerEngine, crossdock: Crossdock
) -> None:
    env = {"DOCKER_HOST": docker_engine_26.address, "BUILDX_BUILDER": "embedded"}
    done = crossdock("build", "--load", "-t", "app:1", "--provenance=max", context, env=env).failed(1)
    assert "does not currently support exporting attestations" in done.err
    assert "hint: use -o type=oci" in done.err
