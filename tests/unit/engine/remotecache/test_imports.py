"""Imports that go wrong cost a warning, and no more time than they are given."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from crossdock.cancel import CancelToken
from crossdock.engine.remotecache import imports
from crossdock.engine.remotecache.place import Surroundings
from crossdock.engine.remotecache.spec import CacheSpec
from crossdock.errors import Cancelled, NotSupported
from crossdock.progress.events import Event, Vertex, VertexWarning
from crossdock.registry import Credentials, RegistryClient, RegistryConfig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Sink(list[Event]):
    def emit(self, event: Event, /) -> None:
        self.append(event)

    @property
    def warnings(self) -> list[str]:
        return [event.short for event in self if isinstance(event, VertexWarning)]


@pytest.fixture
def around(tmp_path: Path) -> Surroundings:
    def client(cancel: CancelToken) -> RegistryClient:
        config, credentials = RegistryConfig(cert_dirs=()), Credentials()
        return RegistryClient(config=config, credentials=credentials, cancel=cancel)

    return Surroundings(client, tmp_path, {})


@pytest.fixture
def stalling() -> Iterator[str]:
    """A registry that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}/app:cache"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in held:
            connection.close()


def test_a_registry_that_stalls_is_given_up(
    around: Surroundings, stalling: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(imports, "DEADLINE_S", 0.4)
    sink = Sink()
    specs = [
        CacheSpec("registry", {"ref": stalling}),
        CacheSpec("local", {"src": str(tmp_path / "nothing")}),
    ]
    started = time.monotonic()
    assert imports.import_caches(specs, around, sink=sink, cancel=CancelToken()) == []
    assert time.monotonic() - started < 5
    assert sorted(sink.warnings) == sorted(
        [
            f"build cache {stalling} is not used: it did not answer within 0 seconds",
            f"build cache local:{tmp_path}/nothing is not used: there is no build cache at local:{tmp_path}/nothing",
        ]
    )
    names = {event.name for event in sink if isinstance(event, Vertex)}
    assert f"importing cache manifest from {stalling}" in names


def test_cancelling_a_build_ends_its_imports(around: Surroundings, stalling: str) -> None:
    cancel = CancelToken()
    threading.Timer(0.2, cancel.cancel).start()
    with pytest.raises(Cancelled):
        imports.import_caches([CacheSpec("registry", {"ref": stalling})], around, sink=Sink(), cancel=cancel)


def test_a_missing_package_is_named_with_its_extra(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "boto3", None)
    spec = CacheSpec("s3", {"bucket": "b", "region": "r"})
    with pytest.raises(NotSupported, match="boto3") as caught:
        imports.import_caches([spec], around, sink=Sink(), cancel=CancelToken())
    assert "crossdock[s3]" in str(caught.value.hint)
