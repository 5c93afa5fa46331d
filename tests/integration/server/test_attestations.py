"""A real buildx asks ``crossdock serve`` for attestations."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from integration.server.conftest import Buildx
    from support.servers import BaseImages

pytestmark = pytest.mark.needs("base", "crun", "userns", "overlay", "dockercli")


@pytest.mark.needs("qemu", "binfmt")
def test_provenance_is_in_the_metadata_of_a_build(
    buildx: Buildx, base: BaseImages, tmp_path: Path, repository: str
) -> None:
    folder, path = tmp_path / "project", tmp_path / "metadata.json"
    folder.mkdir()
    (folder / "Dockerfile").write_text(f"FROM {base.index}\nRUN true\n")

    def metadata(*args: str) -> dict[str, Any]:
        buildx.build("--metadata-file", path, "--push", "-t", f"{repository}:1", *args, folder)
        found: dict[str, Any] = json.loads(path.read_text())
        assert found["containerimage.descriptor"]["mediaType"].endswith("index.v1+json")
        return found

    for provenance in (
        metadata("--provenance=mode=max")["buildx.build.provenance"],
        # buildx asks for it by itself.
        metadata()["buildx.build.provenance"],
        metadata("--platform=linux/amd64,linux/arm64")["buildx.build.provenance/linux/arm64"],
    ):
        assert len(provenance["materials"]) == 1
        assert provenance["invocation"]["parameters"]["frontend"] == "dockerfile.v0"
