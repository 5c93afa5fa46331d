"""A server sends the platforms that are made first while others still are, as the embedded engine does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from support.servers import skopeo
from support.uploadgate import DOCKERFILE

if TYPE_CHECKING:
    from pathlib import Path

    from integration.server.conftest import Buildx
    from support.servers import BaseImages
    from support.uploadgate import Gate

pytestmark = pytest.mark.needs("base", "userns", "crun", "registry", "skopeo", "qemu", "dockercli")


def write(folder: Path, base: BaseImages, gate: Gate) -> Path:
    folder.mkdir()
    origin = base.index.replace(base.index.partition("/")[0], gate.relay.host)
    (folder / "Dockerfile").write_text(DOCKERFILE.format(base=origin, gate=gate.relay.host))
    return folder


def test_a_layer_is_sent_while_the_other_platform_is_made(
    buildx: Buildx, gate: Gate, base: BaseImages, repository: str, tmp_path: Path
) -> None:
    name = f"{gate.relay.host}/{repository.partition('/')[2]}:1"
    context = write(tmp_path / "context", base, gate)
    buildx(
        *("build", "--platform=linux/amd64,linux/arm64", "--provenance=false", "--progress=plain"),
        *("-t", name, "--push", context),
    )
    assert gate.uploads == 4, "a layer and a config for each platform, each once"
    index = json.loads(skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{repository}:1").stdout)
    assert [m["platform"]["architecture"] for m in index["manifests"]] == ["amd64", "arm64"]


def test_nothing_is_published_when_the_other_platform_fails(
    buildx: Buildx, gate: Gate, base: BaseImages, repository: str, tmp_path: Path
) -> None:
    gate.status = 500
    name = f"{gate.relay.host}/{repository.partition('/')[2]}:1"
    context = write(tmp_path / "context", base, gate)
    done = buildx(
        *("build", "--platform=linux/amd64,linux/arm64", "--progress=plain", "-t", name, "--push", context),
        check=False,
    )
    assert done.returncode == 1
    assert "exit code: 7" in done.stderr
    assert (gate.uploads, gate.manifests) == (1, 0)
