"""The predicate: what is in it, in which mode, in both versions of SLSA."""

from __future__ import annotations

import json
from typing import Any

import pytest

from crossdock.builds.attest.capture import Captured
from crossdock.builds.attest.provenance import (
    BuildFacts,
    as_slsa_02,
    check_complete,
    finished,
    predicate,
)
from crossdock.builds.attest.requests import ProvenanceOptions
from crossdock.errors import SolveError
from crossdock.image.platform import Platform

COMMIT = "c" * 40


def facts(frontend: str = "dockerfile.v0", **attrs: str) -> BuildFacts:
    named = {key.replace("__", ":"): value for key, value in attrs.items()}
    return BuildFacts(frontend, named, "id", 1_500_000_000, builder_platform=Platform("linux", "amd64"))


def made(mode: str, given: BuildFacts, found: Captured | None = None, **options: Any) -> dict[str, Any]:
    return predicate(ProvenanceOptions(mode=mode, **options), given, found or Captured())


def request(one: dict[str, Any]) -> dict[str, Any]:
    external: dict[str, Any] = one["buildDefinition"]["externalParameters"]
    return external


def test_min_leaves_out_values_and_says_so() -> None:
    given = facts(**{"build-arg:A": "secret", "label:b": "c", "target": "x", "platform": "linux/amd64"})
    found = Captured()
    found.secrets["token"] = False
    one = made("min", given, found)
    assert request(one)["request"] == {"frontend": "dockerfile.v0", "args": {"target": "x"}}
    assert not one["runDetails"]["metadata"]["buildkit_completeness"]["request"]
    assert "secret" not in json.dumps(one)
    assert "token" not in json.dumps(one)
    plain = made("min", facts(target="x"))
    assert plain["runDetails"]["metadata"]["buildkit_completeness"]["request"]


def test_max_has_values_but_no_logins() -> None:
    given = facts(
        **{
            "build-arg:A": "b",
            "build-arg:HTTP_PROXY": "http://u:p4ss@proxy:1",
            "context:tools": "https://u:p4ss@example.org/tools.git",
            "attest:provenance": "mode=max",
            "cgroup-parent": "x",
            "vcs:source": "https://u:p4ss@example.org/app.git",
            "vcs:revision": COMMIT,
            "vcs:empty": "",
        }
    )
    found = Captured()
    found.secrets.update(b=True, a=False)
    found.ssh["default"] = False
    one = made("max", given, found)
    assert request(one)["request"] == {
        "frontend": "dockerfile.v0",
        "args": {
            "build-arg:A": "b",
            "build-arg:HTTP_PROXY": "http://xxxxx:xxxxx@proxy:1",
            "context:tools": "https://xxxxx:xxxxx@example.org/tools.git",
        },
        "secrets": [{"id": "a"}, {"id": "b", "optional": True}],
        "ssh": [{"id": "default"}],
    }
    assert one["runDetails"]["metadata"]["buildkit_metadata"] == {
        "vcs": {"revision": COMMIT, "source": "https://xxxxx:xxxxx@example.org/app.git"}
    }
    assert "p4ss" not in json.dumps(one)


@pytest.mark.parametrize(
    ("context", "uri"),
    [
        ("https://example.org/app.git#main:sub", "https://example.org/app.git#main:sub"),
        ("https://example.org/app.git?ref=main&subdir=sub", "https://example.org/app.git#main:sub"),
        ("https://u:p@example.org/app.git#main", "https://xxxxx:xxxxx@example.org/app.git#main"),
    ],
)
def test_a_git_context_is_the_source_of_the_configuration(context: str, uri: str) -> None:
    found = Captured()
    found.git[uri.partition(":sub")[0]] = COMMIT
    one = made("min", facts(context=context, filename="x/Dockerfile"), found)
    assert request(one)["configSource"] == {"uri": uri, "digest": {"sha1": COMMIT}, "path": "x/Dockerfile"}
    assert "args" not in request(one)["request"]


def test_a_download_is_the_source_of_the_configuration() -> None:
    found = Captured()
    found.http["https://example.org/a.tar"] = "sha256:" + "d" * 64
    one = made("min", facts(context="https://example.org/a.tar"), found)
    source = {"uri": "https://example.org/a.tar", "digest": {"sha256": "d" * 64}}
    assert request(one)["configSource"] == source


def test_hermetic_is_what_had_no_network_and_knows_all() -> None:
    assert made("min", facts())["runDetails"]["metadata"]["buildkit_hermetic"] is True
    for change in ("network", "incomplete"):
        found = Captured()
        setattr(found, change, True)
        assert "buildkit_hermetic" not in made("min", facts(), found)["runDetails"]["metadata"]
    found = Captured()
    found.add_local("context")
    metadata = made("min", facts(), found)["runDetails"]["metadata"]
    assert "buildkit_hermetic" not in metadata
    assert metadata["buildkit_completeness"]["resolvedDependencies"] is False


def test_a_graph_of_the_client_has_no_request() -> None:
    one = made("max", facts(frontend=""))
    assert request(one) == {"configSource": {}, "request": {}}
    assert one["runDetails"]["metadata"]["buildkit_completeness"]["request"] is False


def test_the_end_stands_after_the_start() -> None:
    one = made("min", facts())
    finished(one, 2_000_000_000)
    metadata = one["runDetails"]["metadata"]
    assert list(metadata)[:3] == ["invocationId", "startedOn", "finishedOn"]
    assert metadata["startedOn"] == "1970-01-01T00:00:01.5Z"
    assert metadata["finishedOn"] == "1970-01-01T00:00:02Z"


def test_the_older_version_has_everything_under_its_names() -> None:
    one = made("max", facts(**{"build-arg:A": "b", "filename": "D"}), reproducible=True, builder_id="me")
    one["buildDefinition"]["internalParameters"] = {"buildConfig": {"x": 1}, "builderPlatform": "linux/amd64"}
    finished(one, 2_000_000_000)
    assert as_slsa_02(one) == {
        "builder": {"id": "me"},
        "buildType": "https://mobyproject.org/buildkit@v1",
        "invocation": {
            "configSource": {"entryPoint": "D"},
            "parameters": {"frontend": "dockerfile.v0", "args": {"build-arg:A": "b"}},
            "environment": {"platform": "linux/amd64"},
        },
        "buildConfig": {"x": 1},
        "metadata": {
            "buildInvocationID": "id",
            "buildStartedOn": "1970-01-01T00:00:01.5Z",
            "buildFinishedOn": "1970-01-01T00:00:02Z",
            "completeness": {"parameters": True, "environment": True, "materials": True},
            "reproducible": True,
            "https://mobyproject.org/buildkit@v1#metadata": {},
            "https://mobyproject.org/buildkit@v1#hermetic": True,
        },
    }


def test_complete_materials_names_what_is_missing() -> None:
    options = ProvenanceOptions(complete_materials=True)
    check_complete(options, Captured())
    found = Captured()
    found.add_local("context")
    check_complete(ProvenanceOptions(), found)
    with pytest.raises(SolveError) as caught:
        check_complete(options, found)
    assert caught.value.detail == "not known by a digest:\n  - context: local directory"
