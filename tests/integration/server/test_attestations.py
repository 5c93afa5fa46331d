"""A real buildx asks ``crossdock serve`` for attestations; the build's record has them, for buildx's metadata file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from crossdock.buildkit.proto import content_pb2, control_pb2
from support.grpcstubs import content_pb2_grpc, control_pb2_grpc

if TYPE_CHECKING:
    from pathlib import Path

    from integration.server.conftest import Buildx, Server
    from support.servers import BaseImages

pytestmark = pytest.mark.needs("base", "crun", "userns", "overlay", "dockercli")


def recorded(server: Server) -> dict[str, list[Any]]:
    """The predicates in the record of the latest build, by platform."""
    with grpc.insecure_channel(
        server.address.replace("unix://", "unix:"), options=[("grpc.default_authority", "localhost")]
    ) as channel:
        control = control_pb2_grpc.ControlStub(channel)
        events = control.ListenBuildHistory(control_pb2.BuildHistoryRequest(EarlyExit=True), timeout=30)
        record = max((event.record for event in events), key=lambda r: r.CreatedAt.ToNanoseconds())
        content = content_pb2_grpc.ContentStub(channel)
        found: dict[str, list[Any]] = {}
        for name, result in dict(record.Results).items() or [("", record.Result)]:
            for one in result.Attestations:
                assert one.media_type == "application/vnd.in-toto+json"
                assert one.annotations["in-toto.io/predicate-type"] == "https://slsa.dev/provenance/v1"
                request = content_pb2.ReadContentRequest(digest=one.digest)
                data = b"".join(part.data for part in content.Read(request, timeout=30))
                assert len(data) == one.size
                found.setdefault(name, []).append(json.loads(data))
        return found


@pytest.mark.needs("qemu", "binfmt")
def test_the_record_of_a_build_has_what_was_attested(
    buildx: Buildx, server: Server, base: BaseImages, tmp_path: Path, repository: str
) -> None:
    folder, path = tmp_path / "project", tmp_path / "metadata.json"
    folder.mkdir()
    (folder / "Dockerfile").write_text(f"FROM {base.index}\nARG COLOUR\nRUN true\n")

    def build(*args: str) -> dict[str, list[Any]]:
        arguments = ("--metadata-file", path, "--push", "-t", f"{repository}:1", "--build-arg=COLOUR=red")
        buildx.build(*arguments, *args, folder)
        descriptor = json.loads(path.read_text())["containerimage.descriptor"]
        assert descriptor["mediaType"].endswith("index.v1+json")
        return recorded(server)

    (most,) = build("--provenance=mode=max")[""]
    request = most["buildDefinition"]["externalParameters"]["request"]
    assert request["frontend"] == "dockerfile.v0"
    assert request["args"] == {"build-arg:COLOUR": "red"}
    assert request["locals"] == [{"name": "context"}, {"name": "dockerfile"}]
    assert most["buildDefinition"]["internalParameters"]["buildConfig"]
    # buildx by itself asks for less; the record has all the same the whole.
    (whole,) = build()[""]
    assert whole["buildDefinition"]["internalParameters"]["buildConfig"]
    several = build("--platform=linux/amd64,linux/arm64")
    assert set(several) == {"linux/amd64", "linux/arm64"}
    for name, (one,) in several.items():
        (material,) = one["buildDefinition"]["resolvedDependencies"]
        assert material["uri"].endswith(name.replace("/", "%2F"))
