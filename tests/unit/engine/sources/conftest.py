"""A store, and a registry client for a scripted server."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from crossdock.cancel import CancelToken
from crossdock.engine.ops.env import OpEnv
from crossdock.engine.solver import OpContext
from crossdock.engine.store import Store
from crossdock.image.platform import local_platform
from crossdock.llb.graph import Node
from crossdock.llb.ops import SourceOp
from crossdock.registry import Credentials, RegistryClient, RegistryConfig
from crossdock.registry.exchange import RetryPolicy
from crossdock.secret import Secret
from support.imagekit import Shelf
from support.scripted import ScriptedServer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from crossdock.engine.store import LayerId, Lease
    from crossdock.progress.events import Event


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


class Runner:
    """Runs source ops on one store, as a solve would."""

    def __init__(self, store: Store, lease: Lease) -> None:
        self.store = store
        self.lease = lease
        self.secrets: dict[str, str] = {}
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def op(self, kind: type[Any], identifier: str, attrs: Mapping[str, str] | None = None, **env: Any) -> Any:
        """Make an op."""
        made = OpEnv(
            store=self.store,
            lease=self.lease,
            sandbox=_no_sandbox,
            directories=lambda layers, *_: [self.directory(x) for x in layers],
            platform=local_platform(),
            secrets=lambda name: Secret(self.secrets[name]) if name in self.secrets else None,
            ssh=lambda _name: None,
            lenient_owner=os.geteuid() != 0,
            **env,
        )
        return kind(Node(SourceOp(identifier, dict(attrs or {}))), made)

    def context(self, cancel: CancelToken | None = None) -> OpContext:
        return OpContext(cancel or CancelToken(), self)

    def key(self, op: Any) -> str:
        """The op's cache key."""
        digest: str = op.cache_map(self.context()).digest
        return digest

    def folder(self, op: Any) -> Path:
        """Execute, after the key as the solver does; the directory of the only layer."""
        context = self.context()
        op.cache_map(context)
        (ref,) = op.execute([], context)
        (layer,) = ref.layers
        return self.directory(layer)

    def directory(self, layer: LayerId) -> Path:
        directory = self.store.layers.directory(layer)
        assert directory is not None
        return directory


def _no_sandbox() -> Any:
    msg = "a source asked for a sandbox"
    raise AssertionError(msg)


@pytest.fixture
def runner(store: Store, lease: Lease) -> Runner:
    return Runner(store, lease)
