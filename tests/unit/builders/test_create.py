"""Making builders: what `create` stores and what it refuses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from crossdock.builders.create import CreateOptions, create, leave
from crossdock.builders.store import BuilderStore
from crossdock.errors import BuilderError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from crossdock.builders.model import NodeGroup


NOWHERE = "unix:///nonexistent/docker.sock"


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("BUILDX_CONFIG", "BUILDKIT_HOST", "DOCKER_CONTEXT", "BUILDX_BUILDER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("DOCKER_HOST", NOWHERE)
    return tmp_path / "docker"


def stored(name: str) -> NodeGroup:
    with BuilderStore().transaction() as txn:
        found = txn.get(name)
    assert found is not None
    return found


def test_the_name_is_random_when_none_is_given() -> None:
    first, second = create(CreateOptions(driver="embedded")), create(CreateOptions(driver="embedded"))
    assert first.name != second.name
    assert stored(first.name).nodes[0].name == f"{first.name}0"


def test_use_makes_it_current() -> None:
    create(CreateOptions(name="one", driver="embedded", use=True))
    with BuilderStore().transaction() as txn:
        current = txn.current(NOWHERE)
    assert current is not None
    assert current.name == "one"


def test_platforms_are_normalised() -> None:
    create(CreateOptions(name="one", driver="embedded", platforms=("linux/arm,aarch64", "x86_64")))
    assert [str(p) for p in stored("one").nodes[0].platforms] == [
        "linux/arm/v7",
        "linux/arm64",
        "linux/amd64",
    ]


def test_an_existing_node_is_changed_by_name() -> None:
    create(CreateOptions(name="one", driver="embedded"))
    create(CreateOptions(name="one", node="one0", platforms=("linux/s390x",)))
    (node,) = stored("one").nodes
    assert [str(p) for p in node.platforms] == ["linux/s390x"]


def test_nodes_are_appended_and_take_platforms_from_others() -> None:
    create(
        CreateOptions(name="r", driver="remote", endpoint="tcp://a:1", platforms=("linux/amd64,linux/arm64",))
    )
    create(CreateOptions(name="r", append=True, endpoint="tcp://b:1", platforms=("linux/arm64",)))
    first, second = stored("r").nodes
    assert [str(p) for p in first.platforms] == ["linux/amd64"]
    assert second.name == "r1"


def test_leave_removes_a_node_but_not_the_last() -> None:
    create(CreateOptions(name="r", driver="remote", endpoint="tcp://a:1"))
    create(CreateOptions(name="r", append=True, endpoint="tcp://b:1"))
    leave("r", "r0")
    assert [n.name for n in stored("r").nodes] == ["r1"]
    with pytest.raises(BuilderError, match="last node"):
        leave("r", "r1")


def test_container_drivers_allow_the_host_network_by_default() -> None:
    create(CreateOptions(name="c", driver="docker-container"))
    assert stored("c").nodes[0].flags == ["--allow-insecure-entitlement=network.host"]


def test_buildkit_host_in_the_environment_means_remote(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUILDKIT_HOST", "tcp://x:1234")
    made = create(CreateOptions(name="r"))
    assert (made.driver, made.nodes[0].endpoint) == ("remote", "tcp://x:1234")


def test_a_daemon_config_travels_with_its_certificates(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("CA")
    config = tmp_path / "buildkitd.toml"
    config.write_text(f'[registry."reg.example:5000"]\n  ca=["{tmp_path}/ca.pem"]\n')
    create(CreateOptions(name="c", driver="docker-container", daemon_config=str(config)))
    files = stored("c").nodes[0].files
    assert files is not None
    assert files["certs/reg.example_5000/ca.pem"] == b"CA"
    assert b"/etc/buildkit/certs/reg.example_5000/ca.pem" in files["buildkitd.toml"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (CreateOptions(name="default"), "reserved"),
        (CreateOptions(name="embedded"), "reserved"),
        (CreateOptions(append=True), "append requires a builder name"),
        (CreateOptions(name="absent", append=True), "failed to find instance 'absent' for append"),
        (CreateOptions(name="x", driver="docker"), "cannot be created"),
        (CreateOptions(name="x", driver="podman"), "failed to find driver 'podman'"),
        (CreateOptions(name="x", driver="remote"), "no remote endpoint"),
        (CreateOptions(name="x", driver="remote", endpoint="ftp://a"), "unrecognized url scheme"),
        (CreateOptions(name="x", driver="embedded", endpoint="tcp://a"), "takes no endpoint"),
        (CreateOptions(name="x", driver="embedded", daemon_flags=["--debug"]), "--buildkitd-flags"),
        (
            CreateOptions(name="x", driver="embedded", driver_opts={"image": "a"}),
            "invalid driver option image",
        ),
        (CreateOptions(name="x", driver="kubernetes", endpoint="tcp://a"), "does not support endpoint"),
        (CreateOptions(name="1x", driver="embedded"), "invalid name"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_cannot_be_is_refused_and_nothing_is_stored(options: CreateOptions, why: str) -> None:
    with pytest.raises(BuilderError, match=why):
        create(options)
    with BuilderStore().transaction() as txn:
        assert txn.list() == []


def test_an_existing_builder_is_not_replaced_by_accident() -> None:
    create(CreateOptions(name="one", driver="embedded"))
    with pytest.raises(BuilderError, match="no append mode"):
        create(CreateOptions(name="one", driver="embedded"))
    with pytest.raises(BuilderError, match="has one node"):
        create(CreateOptions(name="one", append=True))
    with pytest.raises(BuilderError, match="mismatched driver"):
        create(CreateOptions(name="one", node="one0", driver="remote", endpoint="tcp://a:1"))


def test_a_docker_context_keeps_its_name(config: Path) -> None:
    import hashlib

    meta = config / "contexts/meta" / hashlib.sha256(b"farm").hexdigest()
    meta.mkdir(parents=True)
    (meta / "meta.json").write_text(
        json.dumps({"Name": "farm", "Endpoints": {"docker": {"Host": "tcp://farm:2376"}}})
    )
    with pytest.raises(BuilderError, match="already exists as context builder"):
        create(CreateOptions(name="farm", driver="embedded"))
    made = create(CreateOptions(name="c", driver="docker-container", endpoint="farm"))
    assert made.nodes[0].endpoint == "farm"


def test_an_unknown_platform_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="unknown platform"):
        create(CreateOptions(name="one", driver="embedded", platforms=("linux/foo",)))
