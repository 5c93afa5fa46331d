"""Which builder, and which node builds what."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

import pytest

from crossdock.builders.dockerconfig import (
    context_names,
    current_context,
    current_endpoint_key,
    endpoint_of,
    proxy_build_args,
)
from crossdock.builders.drivers.base import NodeInfo
from crossdock.builders.drivers.table import DRIVERS, make_driver
from crossdock.builders.model import Node, NodeGroup
from crossdock.builders.request import BuildRequest, OutputSpec
from crossdock.builders.result import BuildResult
from crossdock.builders.routing import run_build, with_default_outputs
from crossdock.builders.select import built_in, current_builder, find_builder, list_all
from crossdock.builders.store import BuilderStore
from crossdock.cancel import CancelToken
from crossdock.errors import BuilderError, ConfigError, PlatformNotOffered
from crossdock.image.platform import local_platform, parse_platforms
from crossdock.progress.events import NullSink

if TYPE_CHECKING:
    from pathlib import Path

    from crossdock.builders.drivers.base import Driver

NOWHERE = "unix:///nonexistent/docker.sock"


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("BUILDX_CONFIG", "DOCKER_CONTEXT", "BUILDX_NO_DEFAULT_LOAD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("DOCKER_HOST", NOWHERE)
    (tmp_path / "docker").mkdir()
    return tmp_path / "docker"


class FakeNode:
    """A driver at the rim: remembers what it was asked to build."""

    def __init__(self, offers: str = "") -> None:
        self.offers = parse_platforms([offers])
        self.built: list[str] = []

    def info(self, _cancel: CancelToken) -> NodeInfo:
        return NodeInfo(status="running", platforms=self.offers)

    def build(self, request: BuildRequest, *_rest: object) -> BuildResult:
        self.built = [str(p) for p in request.platforms]
        return BuildResult()


def build(nodes: list[tuple[str, str]], platforms: str = "") -> list[FakeNode]:
    """Run a build over nodes given as (fixed platforms, offered platforms)."""
    group = NodeGroup(
        name="b",
        driver="remote",
        nodes=[Node(name=f"b{i}", platforms=parse_platforms([f])) for i, (f, _) in enumerate(nodes)],
    )
    fakes = [FakeNode(offers) for _, offers in nodes]
    drivers = [(n, cast("Driver", f)) for n, f in zip(group.nodes, fakes, strict=True)]
    request = BuildRequest(context=".", platforms=parse_platforms([platforms]))
    run_build(group, drivers, request, NullSink(), CancelToken())
    return fakes


class TestRouting:
    def test_a_node_builds_what_it_was_given(self) -> None:
        (node,) = build([("linux/amd64,linux/arm64", "")], "linux/arm64")
        assert node.built == ["linux/arm64"]

    def test_a_free_node_builds_anything(self) -> None:
        (node,) = build([("", "")], "linux/s390x,linux/386")
        assert node.built == ["linux/s390x", "linux/386"]

    def test_a_platform_that_was_not_given_is_refused_with_the_way_out(self) -> None:
        with pytest.raises(PlatformNotOffered, match="does not offer linux/s390x") as caught:
            build([("linux/amd64", "")], "linux/amd64,linux/s390x")
        assert "--platform linux/amd64,linux/s390x" in (caught.value.hint or "")

    def test_a_variant_covers_lower_ones(self) -> None:
        (node,) = build([("linux/arm/v7", "")], "linux/arm/v6")
        assert node.built == ["linux/arm/v6"]

    def test_without_a_platform_a_narrowed_node_builds_its_first(self) -> None:
        (node,) = build([("linux/s390x,linux/ppc64le", "")])
        assert node.built == ["linux/s390x"]
        (node,) = build([(f"linux/s390x,{local_platform()}", "")])
        assert node.built == []

    def test_the_node_that_was_given_a_platform_goes_before_one_that_offers_it(self) -> None:
        first, second = build([("", "linux/arm64"), ("linux/arm64", "")], "linux/arm64")
        assert (first.built, second.built) == ([], ["linux/arm64"])

    def test_a_platform_of_no_node(self) -> None:
        with pytest.raises(PlatformNotOffered, match="no node of builder 'b' offers linux/s390x"):
            build([("linux/amd64", ""), ("linux/arm64", "")], "linux/s390x")


class TestDefaultOutputs:
    def outputs(self, group: NodeGroup) -> list[str]:
        return [o.type for o in with_default_outputs(group, BuildRequest(context=".")).outputs]

    def test_docker_keeps_images_and_others_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.outputs(NodeGroup(name="default", driver="docker")) == ["image"]
        assert self.outputs(built_in()) == []
        monkeypatch.setenv("BUILDX_NO_DEFAULT_LOAD", "1")
        assert self.outputs(NodeGroup(name="default", driver="docker")) == []

    def test_default_load(self) -> None:
        node = Node(name="a0", driver_opts={"default-load": "true"})
        assert self.outputs(NodeGroup(name="a", driver="embedded", nodes=[node])) == ["docker"]

    def test_outputs_that_were_asked_for_stay_alone(self) -> None:
        request = BuildRequest(context=".", outputs=(OutputSpec(type="cacheonly"),))
        assert with_default_outputs(NodeGroup(name="default", driver="docker"), request) is request


class TestSelection:
    def test_nothing_chosen_is_the_built_in_builder(self) -> None:
        assert current_builder().name == "embedded"

    def test_under_docker_without_an_engine_it_is_too_and_says_so(self) -> None:
        notices: list[str] = []
        assert current_builder(plugin=True, notice=notices.append).name == "embedded"
        assert notices == ["no Docker Engine answers: using the builder 'embedded'"]

    def test_the_chosen_one(self) -> None:
        with BuilderStore().transaction() as txn:
            txn.save(NodeGroup(name="mine", driver="embedded", nodes=[Node(name="mine0")]))
            txn.set_current(NOWHERE, "mine")
        assert current_builder().name == current_builder(plugin=True).name == "mine"

    def test_by_name(self, config: Path) -> None:
        assert find_builder("embedded").built_in
        assert find_builder("default").docker_context
        with pytest.raises(BuilderError, match="no builder 'x' found"):
            find_builder("x")

    def test_all(self) -> None:
        with BuilderStore().transaction() as txn:
            txn.save(NodeGroup(name="mine", driver="embedded"))
            assert [g.name for g in list_all(txn)] == ["mine", "embedded", "default"]

    def test_a_driver_that_does_not_exist(self) -> None:
        with pytest.raises(BuilderError, match="failed to find driver 'podman'"):
            make_driver(NodeGroup(name="x", driver="podman"), Node(name="x0"))

    def test_every_driver_is_importable_or_absent(self) -> None:
        from importlib import import_module

        for spec in DRIVERS.values():
            if spec.target:
                module, _, name = spec.target.partition(":")
                assert callable(getattr(import_module(module), name))


class TestDockerConfig:
    def write(self, config: Path, **values: object) -> None:
        (config / "config.json").write_text(json.dumps(values))

    def test_docker_host_means_the_default_context(self, config: Path) -> None:
        self.write(config, currentContext="farm")
        assert current_context() == "default"
        assert current_endpoint_key() == NOWHERE

    def test_contexts(self, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import hashlib

        monkeypatch.delenv("DOCKER_HOST")
        digest = hashlib.sha256(b"farm").hexdigest()
        (config / "contexts/meta" / digest).mkdir(parents=True)
        (config / "contexts/meta" / digest / "meta.json").write_text(
            json.dumps(
                {"Name": "farm", "Endpoints": {"docker": {"Host": "tcp://farm:2376", "SkipTLSVerify": True}}}
            )
        )
        (config / "contexts/tls" / digest / "docker").mkdir(parents=True)
        self.write(config, currentContext="farm")
        assert context_names() == ["default", "farm"]
        assert current_context() == current_endpoint_key() == "farm"
        endpoint = endpoint_of("farm")
        assert endpoint.host == "tcp://farm:2376"
        assert endpoint.tls_dir.endswith(f"{digest}/docker")
        assert not endpoint.tls_verify
        monkeypatch.setenv("DOCKER_CONTEXT", "absent")
        with pytest.raises(BuilderError, match="'absent' does not exist"):
            endpoint_of(current_context())

    def test_a_damaged_config_is_named(self, config: Path) -> None:
        (config / "config.json").write_text("{")
        with pytest.raises(ConfigError, match=r"config\.json"):
            proxy_build_args({})

    def test_proxies_become_build_arguments_unless_given(self, config: Path) -> None:
        self.write(
            config,
            proxies={
                "default": {"httpProxy": "http://p", "httpsProxy": "http://s"},
                NOWHERE: {"httpProxy": "http://here", "noProxy": "x"},
            },
        )
        assert proxy_build_args({}) == {"HTTP_PROXY": "http://here", "NO_PROXY": "x"}
        assert proxy_build_args({"http_proxy": "mine"}) == {"NO_PROXY": "x"}
