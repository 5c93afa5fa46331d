"""The builder store: buildx's files, read and written as buildx does."""

from __future__ import annotations

import json
import os
import threading
from typing import TYPE_CHECKING

import pytest

from crossdock.builders.model import Node, NodeGroup
from crossdock.builders.store import BuilderStore, store_dir
from crossdock.errors import BuilderError
from crossdock.image.platform import Platform, parse_platform

if TYPE_CHECKING:
    from pathlib import Path

KEY = "unix:///var/run/docker.sock"

#: written by buildx 0.13
BUILDX_INSTANCE = (
    '{"Name":"mine","Driver":"docker-container","Nodes":[{"Name":"mine0","Endpoint":"unix:///var/run/docker.sock",'
    '"Platforms":[{"architecture":"arm","os":"linux","variant":"v7"}],"DriverOpts":{"network":"host"},'
    '"Flags":["--debug"],"Files":{"buildkitd.toml":"ZGVidWc9dHJ1ZQ=="}}],"Dynamic":false}'
)


@pytest.fixture
def store(tmp_path: Path) -> BuilderStore:
    return BuilderStore(str(tmp_path / "buildx"))


def group(name: str, driver: str = "embedded") -> NodeGroup:
    return NodeGroup(name=name, driver=driver, nodes=[Node(name=f"{name}0", endpoint="embedded")])


def test_what_buildx_wrote_is_read(store: BuilderStore) -> None:
    with store.transaction() as txn:
        (store_path(store) / "instances/mine").write_text(BUILDX_INSTANCE)
        found = txn.get("mine")
    assert found is not None
    (node,) = found.nodes
    assert found.driver == "docker-container"
    assert node.platforms == (Platform("linux", "arm", "v7"),)
    assert node.driver_opts == {"network": "host"}
    assert node.flags == ["--debug"]
    assert node.files == {"buildkitd.toml": b"debug=true"}


def test_what_is_read_is_written_back_unchanged_with_unknown_fields(store: BuilderStore) -> None:
    data = json.loads(BUILDX_INSTANCE)
    data["Future"] = {"a": 1}
    data["Nodes"][0]["Later"] = [1, 2]
    read = NodeGroup.from_json(data, "test")
    assert read.to_json() == data


def test_a_new_builder_has_the_shape_that_go_writes(store: BuilderStore) -> None:
    made = NodeGroup(
        name="test",
        driver="embedded",
        nodes=[Node(name="test0", endpoint="embedded", platforms=(parse_platform("linux/arm64"),))],
    )
    with store.transaction() as txn:
        txn.save(made)
    assert (store_path(store) / "instances/test").read_text() == (
        '{"Name":"test","Driver":"embedded","Nodes":[{"Name":"test0","Endpoint":"embedded","Platforms":'
        '[{"architecture":"arm64","os":"linux"}],"DriverOpts":null,"Flags":null,"Files":null}],"Dynamic":false}'
    )
    assert (store_path(store) / "activity/test").exists()
    assert oct((store_path(store) / "instances/test").stat().st_mode & 0o777) == "0o600"


def test_names_are_case_insensitive_and_listed_in_order(store: BuilderStore) -> None:
    with store.transaction() as txn:
        txn.save(group("zeta"))
        txn.save(group("Alpha"))
        assert [g.name for g in txn.list()] == ["Alpha", "zeta"]
        assert txn.get("ALPHA") is not None


def test_only_instances_lie_in_the_instances_folder(store: BuilderStore) -> None:
    with store.transaction() as txn:
        txn.save(group("one"))
    assert os.listdir(store_path(store) / "instances") == ["one"]


class TestCurrent:
    def test_nothing_chosen(self, store: BuilderStore) -> None:
        with store.transaction() as txn:
            assert txn.current(KEY) is None

    def test_the_choice_belongs_to_its_endpoint(self, store: BuilderStore) -> None:
        with store.transaction() as txn:
            txn.save(group("one"))
            txn.set_current(KEY, "one")
            assert name(txn.current(KEY)) == "one"
            assert txn.current("other") is None

    def test_a_global_choice_belongs_to_all_endpoints(self, store: BuilderStore) -> None:
        with store.transaction() as txn:
            txn.save(group("one"))
            txn.set_current(KEY, "one", global_=True)
            assert name(txn.current("other")) == "one"

    def test_a_default_comes_back_when_the_endpoint_does(self, store: BuilderStore) -> None:
        with store.transaction() as txn:
            txn.save(group("one"))
            txn.save(group("two"))
            txn.set_current(KEY, "one", default=True)
            txn.set_current("other", "two")
            assert name(txn.current(KEY)) == "one"

    def test_choosing_again_without_default_forgets_the_default(self, store: BuilderStore) -> None:
        with store.transaction() as txn:
            txn.save(group("one"))
            txn.set_current(KEY, "one", default=True)
            txn.set_current(KEY, "")
            assert txn.current(KEY) is None

    def test_a_removed_builder_is_no_longer_current(self, store: BuilderStore) -> None:
        with store.transaction() as txn:
            txn.save(group("one"))
            txn.set_current(KEY, "one")
            txn.remove("one")
            assert txn.current(KEY) is None


def test_removing_takes_activity_and_local_state_along(store: BuilderStore) -> None:
    with store.transaction() as txn:
        txn.save(group("one"))
        refs = store_path(store) / "refs/one/one0"
        refs.mkdir(parents=True)
        (refs / "abc").write_text("{}")
        txn.remove("one")
    assert not (store_path(store) / "refs/one").exists()
    assert not (store_path(store) / "activity/one").exists()
    assert not (store_path(store) / "instances/one").exists()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a builder definition"),
        ('{"Nodes":[3]}', "malformed"),
        ('{"Nodes":[{"Files":{"a":"!"}}]}', "malformed"),
    ],
)
def test_a_damaged_builder_is_an_error_that_names_the_file(store: BuilderStore, text: str, why: str) -> None:
    with store.transaction() as txn:
        (store_path(store) / "instances/bad").write_text(text)
        with pytest.raises(BuilderError, match=why) as caught:
            txn.get("bad")
    assert "instances/bad" in caught.value.summary


@pytest.mark.parametrize("bad", ["", "1abc", "a/b", "../x", "a b", "é"])
def test_names_that_buildx_refuses_are_refused(store: BuilderStore, bad: str) -> None:
    with store.transaction() as txn, pytest.raises(BuilderError, match="invalid name"):
        txn.get(bad)


def test_transactions_exclude_each_other(store: BuilderStore) -> None:
    order: list[str] = []

    def second() -> None:
        with store.transaction():
            order.append("second")

    with store.transaction():
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_an_unusable_directory_is_a_builder_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(BuilderError, match="cannot use the builder store"),
        BuilderStore(str(tmp_path / "file/buildx")).transaction(),
    ):
        pass


def test_the_directory_follows_buildx_config_then_docker_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", "/d")
    monkeypatch.delenv("BUILDX_CONFIG", raising=False)
    assert store_dir() == "/d/buildx"
    monkeypatch.setenv("BUILDX_CONFIG", "/b")
    assert store_dir() == "/b"


def name(found: NodeGroup | None) -> str:
    return "" if found is None else found.name


def store_path(store: BuilderStore) -> Path:
    from pathlib import Path

    return Path(store.root)
