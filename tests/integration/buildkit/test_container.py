"""The docker-container driver: a real Engine, real containers, a real BuildKit at the end.

The image is made here, since none may be downloaded: busybox, and two scripts in the place of BuildKit's programs.
``buildctl`` is asked whether the daemon is there and to be the connection to it, which leads to the BuildKit inside an Engine
26.1 over loopback; ``buildkitd`` notes how it was started. Where real programs are on PATH, an image of them is used too.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

import baseimage
from crossdock.builders.drivers.docker_container import DockerContainerDriver
from crossdock.builders.drivers.docker_container import make as make_driver
from crossdock.builders.model import Node, NodeGroup
from crossdock.builders.request import BuildRequest, OutputSpec
from crossdock.cancel import CancelToken
from crossdock.errors import BuilderError, UsageError
from crossdock.progress import VertexStatus
from integration.buildkit.conftest import Events
from support.relays import Relay, grpc_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import services
    from support.cli import Crossdock

pytestmark = [pytest.mark.needs("root", "docker", "docker26", "base"), pytest.mark.slow]

IMAGE = "case/buildkit:1"
_BUILDCTL = """#!/bin/sh
case "$1" in
debug) exec nc 127.0.0.1 "$BACKEND" </dev/null >/dev/null ;;
dial-stdio) exec nc 127.0.0.1 "$BACKEND" ;;
esac
echo "buildctl: unknown command $1" >&2; exit 1
"""
_BUILDKITD = """#!/bin/sh
[ "$1" = --version ] && echo "buildkitd case v0.0.1 0" && exit
{ echo "args: $*"; env; find /etc/buildkit -type f | sort; cat /etc/buildkit/*.toml; } 2>/dev/null > /var/lib/buildkit/started
echo "case daemon runs"
[ -n "$FAIL" ] && echo "case daemon fails" && exit 3
trap 'exit 0' TERM INT
while :; do sleep 0.2; done
"""


def import_image(engine: services.DockerEngine, name: str, files: dict[str, bytes]) -> None:
    out = io.BytesIO()
    busybox = baseimage.busybox_image(["linux/amd64"])
    manifest = json.loads(busybox.manifests[busybox.platforms["linux/amd64"]][1])
    import gzip

    out.write(gzip.decompress(busybox.blobs[manifest["layers"][0]["digest"]]))
    out.seek(0)
    with tarfile.open(fileobj=out, mode="a") as tar:
        for path, data in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(data), 0o755
            tar.addfile(entry, io.BytesIO(data))
    repository, _, tag = name.rpartition(":")
    changes = "".join(
        f"&changes={quote(c)}" for c in ['ENTRYPOINT ["/usr/bin/buildkitd"]', "ENV PATH=/usr/bin:/bin:/sbin"]
    )
    engine.request("POST", f"/images/create?fromSrc=-&repo={repository}&tag={tag}{changes}", out.getvalue())


@pytest.fixture(scope="module")
def image(docker_engine_bounded: services.DockerEngine) -> str:
    files = {"usr/bin/buildctl": _BUILDCTL.encode(), "usr/bin/buildkitd": _BUILDKITD.encode()}
    import_image(docker_engine_bounded, IMAGE, files)
    return IMAGE


@pytest.fixture
def backend(docker_engine_containerd: services.DockerEngine) -> Iterator[Relay]:
    with Relay(grpc_of(docker_engine_containerd), tcp=True) as relay:
        yield relay


@pytest.fixture
def node(
    docker_engine_bounded: services.DockerEngine, image: str, backend: Relay, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., DockerContainerDriver]]:
    """Make drivers; their containers and volumes are gone afterwards."""
    monkeypatch.setenv("DOCKER_HOST", docker_engine_bounded.address)
    made: list[DockerContainerDriver] = []

    def make(
        name: str = "case0",
        flags: list[str] | None = None,
        files: dict[str, bytes] | None = None,
        **options: str,
    ) -> DockerContainerDriver:
        opts = {
            "image": image,
            "network": "host",
            "cgroup-parent": f"/{docker_engine_bounded.folder.name}",
            "env.BACKEND": str(backend.port),
            **{k if k.startswith("env.") else k.replace("_", "-"): v for k, v in options.items()},
        }
        one = Node(
            name=name, endpoint=docker_engine_bounded.address, driver_opts=opts, flags=flags, files=files
        )
        made.append(make_driver(NodeGroup(name="case", driver="docker-container", nodes=[one]), one))
        return made[-1]

    yield make
    for driver in made:
        with contextlib.suppress(BuilderError):
            driver.rm(CancelToken(), keep_state=False, keep_daemon=False)


def inspect(engine: services.DockerEngine, name: str = "case0") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(engine.request("GET", f"/containers/buildx_buildkit_{name}/json"))
    return found


def volumes(engine: services.DockerEngine) -> list[str]:
    return [v["Name"] for v in json.loads(engine.request("GET", "/volumes"))["Volumes"] or ()]


def started(engine: services.DockerEngine, name: str = "case0") -> str:
    """What the daemon noted when it started."""
    raw = engine.request("GET", f"/containers/buildx_buildkit_{name}/archive?path=/var/lib/buildkit/started")
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        file = tar.extractfile("started")
        assert file is not None
        return file.read().decode()


def test_life(
    docker_engine_bounded: services.DockerEngine, node: Callable[..., DockerContainerDriver], events: Events
) -> None:
    driver = node(
        flags=["--debug"], files={"buildkitd.toml": b"debug = true\n", "certs/r.example/ca.pem": b"CA"}
    )
    assert driver.info(CancelToken()).status == "inactive"
    driver.bootstrap(events, CancelToken())
    parts = [e.name for e in events if isinstance(e, VertexStatus)]
    assert "[internal] booting buildkit" in events.names
    assert f"pulling image {IMAGE}" in parts
    assert f"using local image {IMAGE}" in parts
    assert "creating container buildx_buildkit_case0" in parts

    info = driver.info(CancelToken())
    assert info.status == "running"
    assert "linux/amd64" in map(str, info.platforms)
    told = started(docker_engine_bounded)
    assert "args: --debug --config /etc/buildkit/buildkitd.toml" in told
    assert "/etc/buildkit/certs/r.example/ca.pem" in told
    assert "debug = true" in told

    driver.bootstrap(Events(), CancelToken())  # again is nothing
    driver.stop(CancelToken())
    driver.stop(CancelToken())
    assert driver.info(CancelToken()).status == "stopped"
    again = Events()
    driver.bootstrap(again, CancelToken())
    assert "starting container buildx_buildkit_case0" in [
        e.name for e in again if isinstance(e, VertexStatus)
    ]
    driver.rm(CancelToken(), keep_state=True, keep_daemon=False)
    assert driver.info(CancelToken()).status == "inactive"
    assert "buildx_buildkit_case0_state" in volumes(docker_engine_bounded)
    driver.bootstrap(Events(), CancelToken())
    driver.rm(CancelToken(), keep_state=False, keep_daemon=True)
    assert driver.info(CancelToken()).status == "running"
    driver.rm(CancelToken(), keep_state=False, keep_daemon=False)
    assert "buildx_buildkit_case0_state" not in volumes(docker_engine_bounded)
    driver.rm(CancelToken(), keep_state=False, keep_daemon=False)


def test_options_reach_the_container(
    docker_engine_bounded: services.DockerEngine, node: Callable[..., DockerContainerDriver]
) -> None:
    driver = node(
        memory="512m",
        memory_swap="1g",
        cpu_period="100000",
        cpu_quota="50000",
        cpu_shares="256",
        cpuset_cpus="0",
        cpuset_mems="0",
        restart_policy="on-failure:3",
        **{"env.HTTP_PROXY": "http://proxy.example"},
    )
    driver.bootstrap(Events(), CancelToken())
    host = inspect(docker_engine_bounded)["HostConfig"]
    assert host["Privileged"] is True
    assert host["Init"] is True
    assert (host["Memory"], host["MemorySwap"]) == (512 << 20, 1 << 30)
    assert (host["CpuPeriod"], host["CpuQuota"], host["CpuShares"]) == (100_000, 50_000, 256)
    assert (host["CpusetCpus"], host["CpusetMems"]) == ("0", "0")
    assert host["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
    assert host["NetworkMode"] == "host"
    assert host["CgroupParent"] == f"/{docker_engine_bounded.folder.name}"
    assert "HTTP_PROXY=http://proxy.example" in inspect(docker_engine_bounded)["Config"]["Env"]
    mounts = inspect(docker_engine_bounded)["Mounts"]
    assert [(m["Name"], m["Destination"]) for m in mounts] == [
        ("buildx_buildkit_case0_state", "/var/lib/buildkit")
    ]


def test_builds_at_once_make_one_container(
    docker_engine_bounded: services.DockerEngine, node: Callable[..., DockerContainerDriver]
) -> None:
    drivers = [node() for _ in range(3)]
    with ThreadPoolExecutor() as pool:
        for made in [pool.submit(driver.bootstrap, Events(), CancelToken()) for driver in drivers]:
            made.result()
    assert drivers[0].info(CancelToken()).status == "running"


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("memory", "lots", "invalid value 'lots'"),
        ("restart-policy", "sometimes", "invalid value"),
        ("colour", "red", "invalid driver option colour"),
    ],
)
def test_options_that_cannot_be(
    node: Callable[..., DockerContainerDriver], option: str, value: str, text: str
) -> None:
    with pytest.raises(UsageError, match=text):
        node(**{option: value})


def test_builds_start_what_is_not_running(
    node: Callable[..., DockerContainerDriver], context: Path, tmp_path: Path, events: Events
) -> None:
    request = BuildRequest(
        context=str(context), outputs=(OutputSpec(type="local", dest=str(tmp_path / "out")),)
    )
    node().build(request, events, CancelToken())
    assert "[internal] booting buildkit" in events.names
    assert (tmp_path / "out/sub/x").read_bytes() == (context / "sub/x").read_bytes()


def test_load_puts_the_image_into_the_engine(
    docker_engine_bounded: services.DockerEngine, node: Callable[..., DockerContainerDriver], context: Path
) -> None:
    request = BuildRequest(
        context=str(context), tags=("case/loaded:1",), outputs=(OutputSpec(type="docker"),)
    )
    result = node().build(request, Events(), CancelToken())
    found = json.loads(docker_engine_bounded.request("GET", "/images/case/loaded:1/json"))
    assert "X=1" in found["Config"]["Env"]
    assert result.image_id


def test_an_image_that_nobody_has(node: Callable[..., DockerContainerDriver]) -> None:
    with pytest.raises(BuilderError, match=r"cannot pull 127\.0\.0\.1:1/none:1") as caught:
        node(image="127.0.0.1:1/none:1").bootstrap(Events(), CancelToken())
    assert "--driver-opt image=" in str(caught.value.hint)


def test_a_daemon_that_does_not_come_up_shows_its_log(
    node: Callable[..., DockerContainerDriver], events: Events
) -> None:
    driver = node(**{"env.FAIL": "1", "restart-policy": "no"})
    with pytest.raises(BuilderError, match=r"did not become ready|not running"):
        driver.bootstrap(events, CancelToken())
    assert b"case daemon fails" in events.output


def test_no_engine(tmp_path: Path) -> None:
    one = Node(name="x0", endpoint=f"unix://{tmp_path}/none.sock")
    driver = make_driver(NodeGroup(name="x", driver="docker-container", nodes=[one]), one)
    assert driver.info(CancelToken()).status == "inactive"
    with pytest.raises(BuilderError, match="cannot reach the Docker Engine"):
        driver.bootstrap(Events(), CancelToken())


def test_the_command_line_from_create_to_rm(
    docker_engine_bounded: services.DockerEngine,
    image: str,
    backend: Relay,
    crossdock: Crossdock,
    context: Path,
) -> None:
    env = {"DOCKER_HOST": docker_engine_bounded.address}
    opts = [
        f"image={image}",
        "network=host",
        f"cgroup-parent=/{docker_engine_bounded.folder.name}",
        f"env.BACKEND={backend.port}",
    ]
    flags = [f"--driver-opt={o}" for o in opts]
    crossdock("create", "--name", "bc", "--driver", "docker-container", *flags, "--bootstrap", env=env).ok()
    try:
        shown = crossdock("inspect", "bc", env=env).ok().out
        assert "Status:" in shown
        assert "running" in shown
        out = crossdock.folder / "out"
        crossdock("build", "--builder", "bc", "-o", str(out), context, env=env).ok()
        assert (out / "a").read_text() == "hello"
        assert "Total:" in crossdock("du", "--builder", "bc", env=env).ok().out
        crossdock("stop", "bc", env=env).ok()
        assert "stopped" in crossdock("ls", env=env).ok().out
    finally:
        crossdock("rm", "-f", "bc", env=env).ok()
    assert "buildx_buildkit_bc0_state" not in volumes(docker_engine_bounded)


@pytest.mark.skipif(
    not (shutil.which("buildkitd") and shutil.which("buildctl") and shutil.which("buildkit-runc")),
    reason="needs buildkitd, buildctl and a static buildkit-runc on PATH: a developer's machine",
)
def test_an_image_of_the_real_programs(
    docker_engine_bounded: services.DockerEngine,
    node: Callable[..., DockerContainerDriver],
    context: Path,
    tmp_path: Path,
) -> None:
    files = {f"usr/bin/{p}": _read(shutil.which(p) or p) for p in ("buildkitd", "buildctl", "buildkit-runc")}
    import_image(docker_engine_bounded, "case/real:1", files)
    request = BuildRequest(
        context=str(context), outputs=(OutputSpec(type="local", dest=str(tmp_path / "out")),)
    )
    node(name="real0", image="case/real:1").build(request, Events(), CancelToken())
    assert (tmp_path / "out/a").read_text() == "hello"


def _read(path: str) -> bytes:
    with open(os.path.realpath(path), "rb") as file:
        return file.read()
