"""A store, and a registry client for a scripted server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from crossdock.cancel import CancelToken
from crossdock.engine.store import Store
from crossdock.registry import Credentials, RegistryClient, RegistryConfig
from crossdock.registry.exchange import RetryPolicy
from support.imagekit import Shelf
from support.scripted import ScriptedServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from crossdock.engine.store import Lease


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def lease(store: Store) -> Iterator[Lease]:
    with store.lease() as held:
        yield held


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as scripted:
        yield scripted


@pytest.fixture
def shelf(server: ScriptedServer) -> Shelf:
    return Shelf(server)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[RegistryClient]:
    made = RegistryClient(
        config=RegistryConfig(cert_dirs=[tmp_path / "certs.d"]),
        credentials=Credentials.none(),
        cancel=CancelToken(),
        retry=RetryPolicy(attempts=3, pause_s=0.001),
    )
    yield made
    made.close()
