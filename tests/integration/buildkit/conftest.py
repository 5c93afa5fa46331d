"""What cases here share: a docker configuration of their own, builds to make, and BuildKit daemons behind relays."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from crossdock.builders.drivers.remote import make
from crossdock.builders.model import Node, NodeGroup
from crossdock.progress import Event, Vertex, VertexLog
from support import relays

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from crossdock.builders.drivers.buildkit import BuildKitDriver
    from crossdock.buildkit.transport import ByteStream


@pytest.fixture(autouse=True)
def docker_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder (DOCKER_CONFIG), where builds leave their local state."""
    folder = tmp_path / "docker-config"
    folder.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    return folder


class Events(list[Event]):
    """Keeps what was emitted."""

    def emit(self, event: Event, /) -> None:
        self.append(event)

    @property
    def output(self) -> bytes:
        return b"".join(e.data for e in self if isinstance(e, VertexLog))

    @property
    def names(self) -> list[str]:
        return [e.name for e in self if isinstance(e, Vertex)]

    def cached(self) -> set[str]:
        return {e.name for e in self if isinstance(e, Vertex) and e.cached}


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """A context of a small file and one of three megabytes."""
    folder = tmp_path / "context"
    (folder / "sub").mkdir(parents=True)
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY a /a\nCOPY sub /sub\nENV X=1\n")
    (folder / "a").write_text("hello")
    (folder / "sub/x").write_bytes(os.urandom(3_000_000))
    return folder


#: the daemons that protocol cases run with
DAEMONS = ["engine", *(["buildkitd"] if shutil.which("buildkitd") and shutil.which("runc") else [])]


@pytest.fixture(scope="session", params=DAEMONS)
def daemon(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], ByteStream]]:
    """A function that opens a connection to a real BuildKit: that of Engine 26.1, and buildkitd where it is on PATH."""
    if request.param == "engine":
        yield relays.grpc_of(request.getfixturevalue("docker_engine_containerd"))
        return
    with relays.buildkitd(tmp_path_factory.mktemp("bk")) as path:
        yield relays.socket_of(path)


@pytest.fixture
def relay(daemon: Callable[[], ByteStream]) -> Iterator[Callable[..., relays.Relay]]:
    """Start relays to the daemon; all are stopped with the case."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(relays.Relay(daemon, **options))


def remote(address: str, options: Mapping[str, str] | None = None) -> BuildKitDriver:
    """The remote driver of an address."""
    node = Node(name="r0", endpoint=address, driver_opts=dict(options or {}))
    return make(NodeGroup(name="r", driver="remote", nodes=[node]), node)
