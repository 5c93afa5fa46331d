"""The kubernetes driver with the official client, a stand-in for the API server, and a real BuildKit behind exec."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest

from crossdock.builders.model import Node, NodeGroup
from crossdock.builders.request import BuildRequest, OutputSpec
from crossdock.cancel import CancelToken
from crossdock.errors import BuilderError
from crossdock.progress import VertexStatus
from integration.buildkit.conftest import Events
from support.kubeapi import KubeApi
from support.relays import grpc_of

pytest.importorskip("kubernetes", reason="needs the extra crossdock[kubernetes]")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import services
    from crossdock.builders.drivers.kubernetes import KubernetesDriver
    from support.cli import Crossdock

pytestmark = [pytest.mark.needs("root", "docker26"), pytest.mark.slow]


@pytest.fixture
def api(docker_engine_containerd: services.DockerEngine) -> Iterator[KubeApi]:
    with KubeApi(grpc_of(docker_engine_containerd)) as server:
        yield server


@pytest.fixture
def node(api: KubeApi, tmp_path: Path) -> Callable[..., KubernetesDriver]:
    from crossdock.builders.drivers.kubernetes import make

    def make_node(
        flags: list[str] | None = None, files: dict[str, bytes] | None = None, **options: str
    ) -> KubernetesDriver:
        config = api.kubeconfig(tmp_path / "kubeconfig", namespace="builds")
        query = urlencode({"deployment": "kube0", "kubeconfig": str(config)})
        opts = {k.replace("__", ".").replace("_", "-"): v for k, v in options.items()}
        one = Node(
            name="kube0", endpoint=f"kubernetes:///kube?{query}", driver_opts=opts, flags=flags, files=files
        )
        return make(NodeGroup(name="kube", driver="kubernetes", nodes=[one]), one)

    return make_node


def request(context: Path, out: Path) -> BuildRequest:
    return BuildRequest(context=str(context), outputs=(OutputSpec(type="local", dest=str(out)),))


def test_life(api: KubeApi, node: Callable[..., KubernetesDriver], events: Events) -> None:
    files = {"buildkitd.toml": b"debug = true\n", "certs/r.example/ca.pem": b"CA"}
    driver = node(files=files, replicas="2")
    assert driver.info(CancelToken()).status == "inactive"
    driver.bootstrap(events, CancelToken())
    parts = [e.name for e in events if isinstance(e, VertexStatus)]
    assert "[internal] booting buildkit" in events.names
    assert "creating deployment kube0" in parts
    assert "waiting for 2 pods to be ready, timeout: 120 seconds" in parts
    config_maps = {n: o["data"] for (k, _, n), o in api.objects.items() if k == "configmaps"}
    assert config_maps == {
        "kube0-config": {"buildkitd.toml": "debug = true\n"},
        "kube0-config-1": {"ca.pem": "CA"},
    }
    info = driver.info(CancelToken())
    assert info.status == "running"
    assert "linux/amd64" in map(str, info.platforms)
    driver.bootstrap(Events(), CancelToken())
    driver.stop(CancelToken())
    assert driver.info(CancelToken()).status == "running"
    driver.rm(CancelToken(), keep_state=False, keep_daemon=True)
    assert api.objects
    driver.rm(CancelToken(), keep_state=False, keep_daemon=False)
    driver.rm(CancelToken(), keep_state=False, keep_daemon=False)
    assert api.objects == {}


def test_a_build_starts_the_pods_and_goes_through_exec(
    api: KubeApi, node: Callable[..., KubernetesDriver], context: Path, tmp_path: Path, events: Events
) -> None:
    node().build(request(context, tmp_path / "out"), events, CancelToken())
    assert (tmp_path / "out/sub/x").read_bytes() == (context / "sub/x").read_bytes()
    assert set(api.execs) == {("kube0-0", "buildkitd", ("buildctl", "dial-stdio"))}
    assert "[internal] booting buildkit" in events.names


def test_what_was_there_before_is_brought_up_to_date(
    api: KubeApi, node: Callable[..., KubernetesDriver]
) -> None:
    node(files={"buildkitd.toml": b"old"}).bootstrap(Events(), CancelToken())
    del api.objects["deployments", "builds", "kube0"]
    node(files={"buildkitd.toml": b"new"}).bootstrap(Events(), CancelToken())
    assert api.objects["configmaps", "builds", "kube0-config"]["data"] == {"buildkitd.toml": "new"}


def test_sticky_pods_follow_the_context(
    api: KubeApi, node: Callable[..., KubernetesDriver], tmp_path: Path
) -> None:
    driver = node(replicas="5")
    driver.bootstrap(Events(), CancelToken())

    def pod_of(context: str) -> str:
        driver._sticky_key = context
        return driver._choose()

    chosen = {c: pod_of(c) for c in map(str, range(40))}
    assert {c: pod_of(c) for c in chosen} == chosen
    assert len(set(chosen.values())) == 5
    gone = chosen["0"]
    api.terminating.add(gone)
    after = {c: pod_of(c) for c in chosen}
    assert gone not in after.values()
    # Only contexts of the pod that went have moved.
    assert all(after[c] == pod for c, pod in chosen.items() if pod != gone)


def test_random_pods_differ(node: Callable[..., KubernetesDriver]) -> None:
    driver = node(replicas="5", loadbalance="random")
    driver.bootstrap(Events(), CancelToken())
    assert len({driver._choose() for _ in range(60)}) > 1


def test_dialling_is_tried_again(
    api: KubeApi, node: Callable[..., KubernetesDriver], context: Path, tmp_path: Path
) -> None:
    driver = node()
    driver.bootstrap(Events(), CancelToken())
    api.refuse_execs = 2
    driver.build(request(context, tmp_path / "out"), Events(), CancelToken())
    assert (tmp_path / "out/a").exists()


def test_an_exec_that_never_works_is_one_error(api: KubeApi, node: Callable[..., KubernetesDriver]) -> None:
    driver = node()
    driver.bootstrap(Events(), CancelToken())
    api.refuse_execs = 99
    with pytest.raises(BuilderError, match="Kubernetes API refused"):
        driver.disk_usage((), CancelToken())


def test_pods_that_do_not_come(api: KubeApi, node: Callable[..., KubernetesDriver]) -> None:
    api.ready_after_s = 60
    began = time.monotonic()
    with pytest.raises(BuilderError, match="expected 1 replicas of kube0 to be ready, got 0") as caught:
        node(timeout="1s").bootstrap(Events(), CancelToken())
    assert time.monotonic() - began < 10
    assert "kubectl describe" in str(caught.value.hint)


def test_waiting_can_be_cancelled(api: KubeApi, node: Callable[..., KubernetesDriver]) -> None:
    import threading

    from crossdock.errors import Cancelled

    api.ready_after_s = 60
    cancel = CancelToken()
    timer = threading.Timer(0.5, cancel.cancel)
    timer.start()
    with pytest.raises(Cancelled):
        node().bootstrap(Events(), cancel)
    timer.join()


def test_an_api_that_refuses(api: KubeApi, node: Callable[..., KubernetesDriver]) -> None:
    api.refuse_all = 403
    with pytest.raises(BuilderError, match="Kubernetes API refused: 403") as caught:
        node().bootstrap(Events(), CancelToken())
    assert "forbidden" in str(caught.value.detail)


def test_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from crossdock.builders.drivers.kubernetes import make

    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    one = Node(name="kube0", endpoint="kubernetes:///kube?deployment=kube0&kubeconfig=")
    driver = make(NodeGroup(name="kube", driver="kubernetes", nodes=[one]), one)
    with pytest.raises(BuilderError, match="no Kubernetes cluster is configured"):
        driver.bootstrap(Events(), CancelToken())


def test_the_command_line(api: KubeApi, crossdock: Crossdock, context: Path, tmp_path: Path) -> None:
    env = {"KUBECONFIG": str(api.kubeconfig(tmp_path / "kc"))}
    crossdock(
        "create", "--name", "k", "--driver", "kubernetes", "--driver-opt=namespace=builds", env=env
    ).ok()
    shown = crossdock("inspect", "--bootstrap", "k", env=env).ok().out
    assert "running" in shown
    crossdock("build", "--builder", "k", "-o", str(crossdock.folder / "out"), context, env=env).ok()
    assert (crossdock.folder / "out/a").read_text() == "hello"
    manifest: dict[str, Any] = api.workload()
    assert manifest["metadata"]["namespace"] == "builds"
    crossdock("rm", "k", env=env).ok()
    assert api.objects == {}
