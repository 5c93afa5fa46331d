"""The docker driver against real Engines: classic 20.10, and 26.1 with the containerd image store."""

from __future__ import annotations

import json
import tarfile
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from crossdock.builders.dockerconfig import DockerEndpoint
from crossdock.builders.dockerengine import connect
from crossdock.builders.drivers.docker import DockerDriver, engine_client
from crossdock.builders.request import BuildRequest, OutputSpec, SecretSpec
from crossdock.buildkit.client import Client
from crossdock.cancel import CancelToken
from crossdock.errors import BuilderError, Cancelled, CrossdockError
from crossdock.image import parse_platforms
from crossdock.progress import Event, Vertex, VertexLog
from crossdock.secret import Secret
from support.servers import skopeo

if TYPE_CHECKING:
    from pathlib import Path

    import services
    from support.servers import BaseImages

pytestmark = [pytest.mark.needs("root", "docker", "docker26", "registry", "base"), pytest.mark.slow]


class Events(list[Event]):
    """Keeps what was emitted."""

    def emit(self, event: Event, /) -> None:
        self.append(event)

    @property
    def output(self) -> bytes:
        return b"".join(e.data for e in self if isinstance(e, VertexLog))

    def cached(self) -> set[str]:
        return {e.name for e in self if isinstance(e, Vertex) and e.cached}


def driver(engine: services.DockerEngine) -> DockerDriver:
    return DockerDriver(DockerEndpoint("test", engine.address))


def inspect(engine: services.DockerEngine, name: str) -> dict[str, Any]:
    connection = connect(DockerEndpoint("test", engine.address))
    connection.request("GET", f"/images/{name}/json")
    body: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return body


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    (folder / "sub").mkdir(parents=True)
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY a /a\nCOPY sub /sub\nENV X=1\n")
    (folder / "a").write_text("hello")
    (folder / "sub/x").write_bytes(b"x" * 3_000_000)
    return folder


@pytest.fixture(params=["docker_engine", "docker_engine_containerd"], scope="session")
def engine(request: pytest.FixtureRequest) -> services.DockerEngine:
    found: services.DockerEngine = request.getfixturevalue(request.param)
    return found


def test_info_tells_platforms_and_what_the_store_can(
    docker_engine: services.DockerEngine, docker_engine_containerd: services.DockerEngine
) -> None:
    classic = driver(docker_engine).info(CancelToken())
    containerd = driver(docker_engine_containerd).info(CancelToken())
    assert classic.status == containerd.status == "running"
    assert "linux/amd64" in map(str, classic.platforms)
    assert (classic.features["Multi-platform build"], containerd.features["Multi-platform build"]) == (
        False,
        True,
    )


def test_an_image_lands_in_the_engine(engine: services.DockerEngine, context: Path) -> None:
    request = BuildRequest(context=str(context), tags=("case/lands:1",), outputs=(OutputSpec(type="docker"),))
    result = driver(engine).build(request, Events(), CancelToken())
    assert result.digest.startswith("sha256:")
    assert "X=1" in inspect(engine, "case/lands:1")["Config"]["Env"]


def test_files_come_back(engine: services.DockerEngine, context: Path, tmp_path: Path) -> None:
    out, archive = tmp_path / "out", tmp_path / "out.tar"
    for output in (OutputSpec(type="local", dest=str(out)), OutputSpec(type="tar", dest=str(archive))):
        driver(engine).build(BuildRequest(context=str(context), outputs=(output,)), Events(), CancelToken())
    assert (out / "a").read_text() == "hello"
    assert (out / "sub/x").stat().st_size == 3_000_000
    with tarfile.open(archive) as tar:
        assert "sub/x" in tar.getnames()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_an_unchanged_context_is_not_sent_again(engine: services.DockerEngine, context: Path) -> None:
    request = BuildRequest(context=str(context), outputs=(OutputSpec(type="docker"),), tags=("case/again:1",))
    driver(engine).build(request, Events(), CancelToken())
    events = Events()
    driver(engine).build(request, events, CancelToken())
    assert any("COPY sub" in name for name in events.cached())


def test_two_platforms_pushed_as_one_index(
    docker_engine_containerd: services.DockerEngine, context: Path, repository: str
) -> None:
    platforms = parse_platforms(["linux/amd64,linux/arm64"])
    output = OutputSpec(type="image", attrs={"push": "true"})
    request = BuildRequest(
        context=str(context), tags=(f"{repository}:1",), platforms=platforms, outputs=(output,)
    )
    result = driver(docker_engine_containerd).build(request, Events(), CancelToken())
    assert result.index is not None
    assert result.index.digest == result.digest


def test_two_platforms_on_a_classic_store_are_refused_with_a_way_out(
    docker_engine: services.DockerEngine, context: Path
) -> None:
    request = BuildRequest(context=str(context), platforms=parse_platforms(["linux/amd64,linux/arm64"]))
    with pytest.raises(BuilderError, match="several platforms") as caught:
        driver(docker_engine).build(request, Events(), CancelToken())
    assert "embedded" in str(caught.value.hint)


def test_a_secret_reaches_the_step_and_nothing_else(
    engine: services.DockerEngine, context: Path, base: BaseImages
) -> None:
    (context / "Dockerfile").write_text(
        f"# syntax-free\nFROM {base.amd64}\nRUN --mount=type=secret,id=s cp /run/secrets/s /copied && wc -c < /copied\n"
    )
    value = Secret("hunter2-" + "x" * 30)
    request = BuildRequest(
        context=str(context),
        secrets=(SecretSpec(id="s", value=value),),
        outputs=(OutputSpec(type="docker"),),
        network="none",
    )
    events = Events()
    driver(engine).build(request, events, CancelToken())
    assert b"38" in events.output
    assert b"hunter2" not in events.output


@pytest.mark.parametrize(
    ("dockerfile", "text"),
    [
        ("FROM scratch\nRUNN x\n", "unknown instruction"),
        ("FROM scratch\nCOPY nope /\n", "nope"),
    ],
)
def test_mistakes_are_reported_as_errors(
    engine: services.DockerEngine, context: Path, dockerfile: str, text: str
) -> None:
    request = BuildRequest(context=str(context), dockerfile_text=dockerfile.encode())
    with pytest.raises(CrossdockError, match=text):
        driver(engine).build(request, Events(), CancelToken())


def test_cancelling_ends_the_build_on_the_engine_too(
    docker_engine: services.DockerEngine, context: Path, base: BaseImages
) -> None:
    (context / "Dockerfile").write_text(f"FROM {base.amd64}\nRUN echo started && sleep 600\n")
    cancel, events = CancelToken(), Events()

    def stop() -> None:
        deadline = time.monotonic() + 60
        while b"started" not in events.output and time.monotonic() < deadline:
            time.sleep(0.05)
        cancel.cancel()

    killer = threading.Thread(target=stop)
    killer.start()
    request = BuildRequest(context=str(context), network="none", outputs=(OutputSpec(type="docker"),))
    began = time.monotonic()
    with pytest.raises(Cancelled):
        driver(docker_engine).build(request, events, cancel)
    killer.join()
    assert b"started" in events.output
    assert time.monotonic() - began < 120


def test_no_engine_is_one_clear_error(tmp_path: Path, context: Path) -> None:
    endpoint = DockerEndpoint("gone", f"unix://{tmp_path}/none.sock")
    absent = DockerDriver(endpoint)
    assert absent.info(CancelToken()).status == "inactive"
    with pytest.raises(BuilderError, match="cannot connect to the Docker Engine"):
        absent.build(BuildRequest(context=str(context)), Events(), CancelToken())


def test_a_classic_store_pushes_through_the_engine(
    docker_engine: services.DockerEngine, context: Path, repository: str
) -> None:
    output = OutputSpec(type="image", attrs={"push": "true"})
    request = BuildRequest(context=str(context), tags=(f"{repository}:1",), outputs=(output,))
    events = Events()
    driver(docker_engine).build(request, events, CancelToken())
    assert any(isinstance(e, Vertex) and e.name.startswith("pushing ") and e.completed_ns for e in events)
    assert json.loads(skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{repository}:1").stdout)[
        "layers"
    ]


def test_disk_usage_and_prune(docker_engine: services.DockerEngine, context: Path) -> None:
    from crossdock.builders.usage import PruneRequest

    node = driver(docker_engine)
    node.build(BuildRequest(context=str(context)), Events(), CancelToken())
    assert node.disk_usage((), CancelToken())
    assert node.prune(PruneRequest(all=True), CancelToken())
    assert [r for r in node.disk_usage((), CancelToken()) if not r.in_use] == []


def test_the_client_alone_lists_workers(docker_engine_containerd: services.DockerEngine) -> None:
    endpoint = DockerEndpoint("test", docker_engine_containerd.address)
    with engine_client(endpoint) as client:
        assert isinstance(client, Client)
        assert client.workers()[0].platforms
