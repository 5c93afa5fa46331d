"""What goes wrong on the way to a daemon, and in what it is sent: one clear error each, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from crossdock.builders.dockerconfig import DockerEndpoint
from crossdock.builders.drivers.docker import DockerDriver
from crossdock.builders.request import BuildRequest, OutputSpec
from crossdock.builders.usage import PruneRequest
from crossdock.buildkit.history import history
from crossdock.cancel import CancelToken
from crossdock.errors import BuilderError, Cancelled, ContextError, CrossdockError, ExportError
from crossdock.progress import Vertex, VertexLog
from integration.buildkit.conftest import DAEMONS, Events, remote
from support import relays
from support.relays import Relay, grpc_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import TypeAlias

    import services
    from crossdock.buildkit.transport import ByteStream
    from crossdock.progress import Event
    from support.cli import Crossdock
    from support.servers import BaseImages

    Start: TypeAlias = Callable[..., Relay]

pytestmark = [pytest.mark.needs("root", "docker", "docker26", "registry", "base"), pytest.mark.slow]


class Acting(Events):
    """Does something once, when an event says so."""

    def __init__(self, when: Callable[[Event], bool], act: Callable[[], object]) -> None:
        super().__init__()
        self._when, self._act, self._acted = when, act, False

    def emit(self, event: Event, /) -> None:
        super().emit(event)
        if not self._acted and self._when(event):
            self._acted = True
            self._act()


def says(text: bytes) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, VertexLog) and text in event.data


def local(folder: Path) -> tuple[OutputSpec, ...]:
    return (OutputSpec(type="local", dest=str(folder)),)


# a daemon that dies


def test_no_daemon(tmp_path: Path, context: Path) -> None:
    absent = remote(f"unix://{tmp_path}/none.sock")
    assert absent.info(CancelToken()).status == "inactive"
    with pytest.raises(BuilderError, match=r"cannot connect to BuildKit at unix://.*no such file") as caught:
        absent.build(BuildRequest(context=str(context)), Events(), CancelToken())
    assert caught.value.hint


def test_a_daemon_that_dies_before_it_answers(relay: Start, context: Path) -> None:
    with pytest.raises(
        BuilderError, match=r"(cannot reach BuildKit at|the connection to) .*the peer closed it"
    ):
        remote(relay(cut_up=1).address).build(BuildRequest(context=str(context)), Events(), CancelToken())


def test_a_daemon_that_dies_while_the_context_is_sent(relay: Start, context: Path) -> None:
    (context / "sub/x").write_bytes(os.urandom(20_000_000))
    started = relay(cut_up=2_000_000)
    with pytest.raises(CrossdockError, match=r"connection .*(lost|broke)") as caught:
        remote(started.address).build(BuildRequest(context=str(context)), Events(), CancelToken())
    assert caught.value.retryable


def test_a_daemon_that_dies_during_a_step(relay: Start, context: Path, base: BaseImages) -> None:
    (context / "Dockerfile").write_text(f"FROM {base.amd64}\nRUN echo started && sleep 600\n")
    started = relay()
    request = BuildRequest(context=str(context), no_cache=True, network="none")
    with pytest.raises(BuilderError, match="was lost during the build"):
        remote(started.address).build(request, Acting(says(b"started"), started.cut), CancelToken())


def test_a_daemon_that_dies_while_an_output_is_sent(relay: Start, context: Path, tmp_path: Path) -> None:
    (context / "sub/x").write_bytes(os.urandom(20_000_000))
    out = tmp_path / "out"
    request = BuildRequest(context=str(context), outputs=local(out))
    with pytest.raises(CrossdockError, match=r"connection .*(lost|broke)"):
        remote(relay(cut_down=5_000_000).address).build(request, Events(), CancelToken())
    assert [p.name for p in out.rglob(".crossdock-*")] == []
    assert not (out / "sub/x").exists()


def test_an_archive_is_not_left_half_written(relay: Start, context: Path, tmp_path: Path) -> None:
    (context / "sub/x").write_bytes(os.urandom(20_000_000))
    target = tmp_path / "out" / "x.tar"
    target.parent.mkdir()
    request = BuildRequest(context=str(context), outputs=(OutputSpec(type="tar", dest=str(target)),))
    with pytest.raises(CrossdockError, match=r"connection .*(lost|broke)"):
        remote(relay(cut_down=5_000_000).address).build(request, Events(), CancelToken())
    assert list(target.parent.iterdir()) == []


@pytest.fixture(params=DAEMONS)
def mortal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[relays.Mortal]:
    (tmp_path / "mortal").mkdir()
    with relays.mortal(request.param, tmp_path / "mortal") as started:
        yield started


@pytest.mark.parametrize("phase", ["before", "context", "step", "output"])
def test_a_daemon_that_is_killed(
    mortal: relays.Mortal, context: Path, tmp_path: Path, busybox_layout: Path, phase: str
) -> None:
    """The real one, with SIGKILL, in each phase of a build: one error that says so, and no half of an output."""
    (context / "sub/x").write_bytes(os.urandom(40_000_000))
    (context / "Dockerfile").write_text(
        "FROM base\nCOPY . /\n" + ("RUN echo started && sleep 600\n" if phase == "step" else "")
    )
    out = tmp_path / "out"
    request = BuildRequest(
        context=str(context),
        outputs=local(out),
        network="none",
        named_contexts={"base": f"oci-layout://{busybox_layout}"},
    )
    after_up, after_down = (3_000_000 if phase == where else 0 for where in ("context", "output"))
    with Relay(mortal.dial, act=mortal.kill, after_up=after_up, after_down=after_down) as relay:
        if phase == "before":
            mortal.kill()
        sink = Acting(says(b"started"), mortal.kill if phase == "step" else lambda: None)
        with pytest.raises(CrossdockError, match=r"connection|connect|reach") as caught:
            remote(relay.address).build(request, sink, CancelToken())
    assert caught.value.retryable
    assert [p for p in out.rglob("*") if p.name.startswith(".crossdock-")] == []
    assert not (out / "sub/x").exists()


def test_a_lost_session_is_said_to_be_one(docker_engine: services.DockerEngine, context: Path) -> None:
    """Only the connection on which the Engine calls us ends; that of our own calls stays."""
    streams: list[ByteStream] = []
    node = DockerDriver(DockerEndpoint("test", docker_engine.address))
    client = node.client()
    whole = client.open_session

    def kept(session: object) -> ByteStream:
        stream = whole(session)  # type: ignore[arg-type]  # a Session
        streams.append(stream)
        return stream

    client.open_session = kept
    node.client = lambda: client  # type: ignore[method-assign]
    node._connect = lambda: client
    (context / "sub/x").write_bytes(os.urandom(60_000_000))

    def is_sending(event: Event) -> bool:
        return isinstance(event, Vertex) and "load build context" in event.name and bool(event.started_ns)

    sink = Acting(is_sending, lambda: streams[0].close())  # noqa: PLW0108 - there is none yet
    with pytest.raises(CrossdockError, match=r"session|connection|context") as caught:
        node.build(BuildRequest(context=str(context), no_cache=True), sink, CancelToken())
    assert "Traceback" not in str(caught.value)


def test_a_peer_that_is_no_daemon(tmp_path: Path, context: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener, contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                with near:
                    near.recv(4096)
                    near.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with pytest.raises(BuilderError, match=r"does not speak gRPC|the peer closed it"):
            remote(f"tcp://127.0.0.1:{listener.getsockname()[1]}").build(
                BuildRequest(context=str(context)), Events(), CancelToken()
            )
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_silent_daemon_does_not_hold_ls_for_ever(tmp_path: Path) -> None:
    from crossdock.builders.model import Node, NodeGroup
    from crossdock.builders.status import load_status

    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{tmp_path}/s")
        silent.listen()
        groups = [
            NodeGroup(name=f"r{n}", driver="remote", nodes=[Node(name="n", endpoint=f"unix://{tmp_path}/s")])
            for n in range(4)
        ]
        began = time.monotonic()
        statuses = load_status(groups, timeout_s=1.0, cancel=CancelToken())
    assert time.monotonic() - began < 3
    assert all("no answer" in str(n.error) for s in statuses for n in s.nodes)


def test_a_silent_daemon_does_not_hold_a_build_for_ever(
    tmp_path: Path, context: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossdock.buildkit.gateway._JOB_S", 1.0)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{tmp_path}/s")
        silent.listen()
        with pytest.raises(BuilderError, match="accepts connections and says nothing"):
            remote(f"unix://{tmp_path}/s").build(BuildRequest(context=str(context)), Events(), CancelToken())


# cancelling


def test_cancelling_ends_the_build_on_the_daemon(
    docker_engine_containerd: services.DockerEngine, context: Path, base: BaseImages
) -> None:
    """The step is gone from the Engine's processes, and its history says that the build has ended."""
    (context / "Dockerfile").write_text(f"FROM {base.amd64}\nRUN echo started && sleep 617\n")
    node = DockerDriver(DockerEndpoint("test", docker_engine_containerd.address))
    cancel = CancelToken()
    request = BuildRequest(context=str(context), no_cache=True, network="none")
    with pytest.raises(Cancelled):
        node.build(request, Acting(says(b"started"), cancel.cancel), cancel)
    deadline = time.monotonic() + 15
    while _runs("sleep\0617") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _runs("sleep\0617")
    with node.client() as client:
        deadline = time.monotonic() + 15
        while (found := history(client)[0]).completed_ns is None and time.monotonic() < deadline:
            time.sleep(0.1)
    assert found.completed_ns is not None


def test_ctrl_c_ends_the_build_on_the_daemon(
    docker_engine_containerd: services.DockerEngine, crossdock: Crossdock, context: Path, base: BaseImages
) -> None:
    (context / "Dockerfile").write_text(f"FROM {base.amd64}\nRUN echo started && sleep 618\n")
    environment = {"DOCKER_HOST": docker_engine_containerd.address, "BUILDX_BUILDER": "default"}
    flags = ("--no-cache", "--network=none", "--progress=plain")
    started = crossdock.start("build", *flags, context, env=environment)
    assert started.stderr is not None
    for line in started.stderr:
        if "started" in line and "echo" not in line:
            break
    started.send_signal(signal.SIGINT)
    said = started.stderr.read()
    assert started.wait(30) == 130
    assert "Traceback" not in said
    deadline = time.monotonic() + 15
    while _runs("sleep\0618") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _runs("sleep\0618")


def _runs(words: str) -> bool:
    for folder in os.listdir("/proc"):
        if folder.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{folder}/cmdline") as file:
                if words in file.read():
                    return True
    return False


# daemons that are too old: the BuildKit 0.8 inside Engine 20.10


@pytest.fixture
def old(docker_engine: services.DockerEngine) -> Iterator[Relay]:
    """BuildKit 0.8, behind the driver that takes it for a buildkitd."""
    with Relay(grpc_of(docker_engine)) as started:
        yield started


@pytest.mark.parametrize(
    ("request_", "what", "version"),
    [
        ({"attests": {"sbom": {}}}, "attestations", "v0.11"),
        (
            {
                "outputs": (
                    OutputSpec(type="local", dest="a"),
                    OutputSpec(type="local", dest="b"),
                )
            },
            "2 outputs",
            "v0.13",
        ),
        ({"named_contexts": {"lib": "docker-image://busybox"}}, "named contexts", "v0.10"),
    ],
)
def test_features_are_named_with_the_version_that_has_them(
    old: Relay, context: Path, request_: dict[str, object], what: str, version: str
) -> None:
    request = BuildRequest(context=str(context), **request_)  # type: ignore[arg-type]
    with pytest.raises(BuilderError, match=f"too old for {what}") as caught:
        remote(old.address).build(request, Events(), CancelToken())
    assert version in str(caught.value.hint)


def test_limits_of_space_are_refused_by_old_daemons(old: Relay) -> None:
    with pytest.raises(BuilderError, match="too old for --max-used-space") as caught:
        remote(old.address).prune(PruneRequest(max_used_space=1), CancelToken())
    assert "v0.17" in str(caught.value.hint)


def test_attestations_on_a_classic_store(docker_engine_26: services.DockerEngine, context: Path) -> None:
    node = DockerDriver(DockerEndpoint("test", docker_engine_26.address))
    request = BuildRequest(context=str(context), attests={"provenance": {"mode": "max"}})
    with pytest.raises(BuilderError, match="classic image store cannot keep attestations") as caught:
        node.build(request, Events(), CancelToken())
    assert "embedded" in str(caught.value.hint)


# contexts


def test_a_name_that_is_not_utf8_is_named(relay: Start, context: Path) -> None:
    (context / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    os.close(os.open(os.fsencode(context) + b"/\xff", os.O_CREAT))
    with pytest.raises(ContextError, match="not UTF-8"):
        remote(relay().address).build(BuildRequest(context=str(context)), Events(), CancelToken())


def test_sockets_and_devices_in_a_context(relay: Start, context: Path, tmp_path: Path) -> None:
    (context / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    os.mkfifo(context / "pipe")
    os.mknod(context / "null", 0o20666, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(context / "s"))
    archive = tmp_path / "out.tar"
    request = BuildRequest(context=str(context), outputs=(OutputSpec(type="tar", dest=str(archive)),))
    remote(relay().address).build(request, Events(), CancelToken())
    import tarfile

    with tarfile.open(archive) as tar:
        kinds = {m.name.removeprefix("./"): m.type for m in tar}
    assert kinds["null"] == tarfile.CHRTYPE
    assert kinds["pipe"] == tarfile.FIFOTYPE
    assert kinds["s"] == tarfile.REGTYPE


def test_an_output_that_cannot_be_written(relay: Start, context: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    request = BuildRequest(context=str(context), outputs=local(tmp_path / "out"))
    with pytest.raises(ExportError, match=r"cannot create .*out"):
        remote(relay().address).build(request, Events(), CancelToken())


def test_a_full_pipe_does_not_deadlock(relay: Start, tmp_path: Path) -> None:
    """Both directions busy at once: 4,000 files out and back."""
    context = tmp_path / "many"
    context.mkdir()
    for number in range(4000):
        (context / f"f{number:05}").write_bytes(b"x" * (number % 700))
    request = BuildRequest(
        context=str(context), dockerfile_text=b"FROM scratch\nCOPY . /\n", outputs=local(tmp_path / "out")
    )
    remote(relay().address).build(request, Events(), CancelToken())
    assert len(list((tmp_path / "out").iterdir())) == 4000
