"""Provenance beside that of a real BuildKit (0.13, of Engine 26.1): the same members for the same Dockerfile."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from integration.attest.attestkit import Layout

if TYPE_CHECKING:
    from pathlib import Path

    import services
    from support.cli import Crossdock
    from support.servers import DockerCli

pytestmark = pytest.mark.needs("base", "crun", "userns", "overlay", "docker26", "dockercli")

#: differs between any two runs
_RUN = ("buildInvocationID", "buildStartedOn", "buildFinishedOn")
_METADATA = "https://mobyproject.org/buildkit@v1#metadata"


@pytest.fixture
def pair(
    context: Path,
    tmp_path: Path,
    docker_engine_containerd: services.DockerEngine,
    docker_cli: DockerCli,
    crossdock: Crossdock,
) -> Any:
    """Build with both; ``pair("mode=max")`` returns our layout and BuildKit's."""

    def build(params: str, *more: str) -> tuple[Layout, Layout]:
        layouts = []
        for who in ("ours", "theirs"):
            archive, folder = tmp_path / f"{who}.tar", tmp_path / who
            # The Engine runs without a network of its own.
            args = [
                "build",
                "--network=host",
                "--build-arg=COLOUR=red",
                "--label=a=b",
                "-t",
                "example.org/app:1",
            ]
            args += [
                f"--attest=type=provenance,version=v0.2,{params}",
                *more,
                "-o",
                f"type=oci,dest={archive}",
            ]
            if who == "ours":
                crossdock(*args, context).ok()
            else:
                done = subprocess.run(
                    [str(docker_cli.buildx), *args, str(context)],
                    env=docker_cli.environment({"DOCKER_HOST": docker_engine_containerd.address}),
                    capture_output=True,
                    text=True,
                    timeout=180,
                    check=False,
                )
                assert done.returncode == 0, done.stderr
            folder.mkdir()
            subprocess.run(["tar", "-C", str(folder), "-xf", str(archive)], check=True)
            layouts.append(Layout(folder))
        return layouts[0], layouts[1]

    return build


def _comparable(predicate: dict[str, Any]) -> dict[str, Any]:
    """Leave out what differs between runs, and what newer BuildKits write in another way."""
    metadata = predicate["metadata"]
    for key in _RUN:
        assert metadata.pop(key)
    details = metadata[_METADATA]
    for info in details.get("source", {}).get("infos", ()):
        _steps(info)
    if "source" in details:
        # A step without a place is an empty object, or is left out.
        places = details["source"]["locations"]
        details["source"]["locations"] = {k: _lines(v["locations"]) for k, v in places.items() if v}
    if "buildConfig" in predicate:
        _steps(predicate["buildConfig"])
    # Compressed by other programs.
    details["layers"] = {k: [len(c) for c in chains] for k, chains in details.get("layers", {}).items()}
    return predicate


def _lines(locations: list[dict[str, Any]]) -> list[int]:
    """Columns are told by newer ones only."""
    return [end["line"] for place in locations for span in place["ranges"] for end in span.values()]


def _text(predicate: dict[str, Any]) -> list[str]:
    """As lines, so that a failure shows which differ."""
    return json.dumps(_comparable(predicate), indent=1, sort_keys=True).splitlines()


def _steps(definition: dict[str, Any]) -> None:
    definition["digestMapping"] = sorted(definition["digestMapping"].values())
    for step in definition["llbDefinition"]:
        # The step that stands for the result: null once, an empty object now.
        step["op"]["Op"] = step["op"]["Op"] or {}
        attrs = step["op"]["Op"].get("source", {}).get("attrs", {})
        attrs.pop("image.resolvemode", None)  # buildx has the Engine look at its own images first
        if not attrs:
            step["op"]["Op"].get("source", {}).pop("attrs", None)
        for mount in step["op"]["Op"].get("exec", {}).get("mounts", ()):
            # What is zero is left out now, and a secret has no input.
            mount["input"], mount["output"] = mount.get("input", 0), mount.get("output", 0)
            if mount.get("mountType"):
                del mount["input"], mount["output"]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_predicates_have_the_same_members(pair: Any, mode: str) -> None:
    ours, theirs = pair(f"mode={mode},builder-id=https://ci.example.org/1,reproducible=true")
    (own,), (other,) = ours.statements(), theirs.statements()
    assert own["predicateType"] == other["predicateType"]
    assert [s["name"] for s in own["subject"]] == [s["name"] for s in other["subject"]]
    assert _text(own["predicate"]) == _text(other["predicate"])
    assert list(own["predicate"]) == list(other["predicate"])


def test_manifests_have_the_same_members(pair: Any) -> None:
    ours, theirs = pair("mode=min", "--no-cache")
    own, other = ours.attested[0], theirs.attested[0]
    assert own.keys() == other.keys()
    assert own["annotations"].keys() == other["annotations"].keys()
    assert own["platform"] == other["platform"]
    # This BuildKit knows the older form only.
    assert theirs.blob(other)["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json"
    assert [m["platform"] for m in ours.index["manifests"]] == [
        m["platform"] for m in theirs.index["manifests"]
    ]


def test_the_older_form_is_theirs(pair: Any, crossdock: Crossdock) -> None:
    crossdock.environment["BUILDX_NO_DEFAULT_OCI_ARTIFACT"] = "1"
    ours, theirs = pair("mode=min")
    own, other = ours.blob(ours.attested[0]), theirs.blob(theirs.attested[0])
    assert list(own) == list(other)
    for manifest in (own, other):
        for part in (manifest["config"], *manifest["layers"]):
            part["digest"], part["size"] = "", 0
    assert own == other
