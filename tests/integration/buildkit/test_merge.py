"""A build spread over two nodes ends as one index; layers never pass through the client."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from crossdock.builders.drivers.embedded import make
from crossdock.builders.merge import build_on_nodes
from crossdock.builders.model import Node, NodeGroup
from crossdock.builders.request import BuildRequest, OutputSpec
from crossdock.cancel import CancelToken
from crossdock.errors import CrossdockError, UsageError
from crossdock.image import parse_platform
from crossdock.progress import NullSink
from support.servers import skopeo

if TYPE_CHECKING:
    from pathlib import Path

    from crossdock.builders.drivers.base import Driver

pytestmark = [pytest.mark.needs("userns", "registry", "skopeo"), pytest.mark.slow]

AMD64, ARM64 = parse_platform("linux/amd64"), parse_platform("linux/arm64")


def node(tmp_path: Path, name: str) -> Driver:
    one = Node(name=name, driver_opts={"root": str(tmp_path / name)})
    return make(NodeGroup(name="two", driver="embedded", nodes=[one]), one)


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text("FROM scratch\nARG TARGETARCH\nCOPY $TARGETARCH /arch\n")
    (folder / "amd64").write_text("x86")
    (folder / "arm64").write_text("arm")
    return folder


def request(context: Path, *outputs: OutputSpec, tags: tuple[str, ...] = ()) -> BuildRequest:
    return BuildRequest(context=str(context), platforms=(AMD64, ARM64), outputs=outputs, tags=tags)


PUSH = OutputSpec(type="image", attrs={"push": "true"})


def test_two_nodes_make_one_index_under_every_tag(tmp_path: Path, context: Path, repository: str) -> None:
    shares = [(node(tmp_path, "a"), (AMD64,)), (node(tmp_path, "b"), (ARM64,))]
    tags = (f"{repository}:1", f"{repository}:2")
    result = build_on_nodes(shares, request(context, PUSH, tags=tags), NullSink(), CancelToken())
    seen = set()
    for tag in tags:
        raw = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{tag}").stdout
        index = json.loads(raw)
        seen.add(raw)
        platforms = [m["platform"]["architecture"] for m in index["manifests"]]
        assert platforms == ["amd64", "arm64"]
    assert len(seen) == 1
    assert result.index is not None
    assert result.digest == result.index.digest


def test_files_of_both_nodes_arrive(tmp_path: Path, context: Path) -> None:
    shares = [(node(tmp_path, "a"), (AMD64,)), (node(tmp_path, "b"), (ARM64,))]
    out = OutputSpec(type="local", dest=str(tmp_path / "out"), attrs={"platform-split": "true"})
    build_on_nodes(shares, request(context, out), NullSink(), CancelToken())
    assert (tmp_path / "out/linux_amd64/arch").read_text() == "x86"
    assert (tmp_path / "out/linux_arm64/arch").read_text() == "arm"


@pytest.mark.parametrize("kind", ["oci", "docker", "tar"])
def test_archives_cannot_be_merged(tmp_path: Path, context: Path, kind: str) -> None:
    shares = [(node(tmp_path, "a"), (AMD64,)), (node(tmp_path, "b"), (ARM64,))]
    with pytest.raises(UsageError, match="several nodes"):
        build_on_nodes(shares, request(context, OutputSpec(type=kind, dest="x")), NullSink(), CancelToken())


def test_pushing_without_a_tag_is_refused(tmp_path: Path, context: Path) -> None:
    shares = [(node(tmp_path, "a"), (AMD64,)), (node(tmp_path, "b"), (ARM64,))]
    with pytest.raises(UsageError, match="needs a tag"):
        build_on_nodes(shares, request(context, PUSH), NullSink(), CancelToken())


def test_the_failure_of_one_node_is_what_the_caller_sees(
    tmp_path: Path, context: Path, repository: str
) -> None:
    (context / "arm64").unlink()
    shares = [(node(tmp_path, "a"), (AMD64,)), (node(tmp_path, "b"), (ARM64,))]
    with pytest.raises(CrossdockError, match="arm64"):
        build_on_nodes(shares, request(context, PUSH, tags=(f"{repository}:1",)), NullSink(), CancelToken())
    assert (
        skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{repository}:1", check=False).returncode
        != 0
    )
