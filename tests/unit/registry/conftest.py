"""A client with short pauses, and servers that do as they are told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from crossdock.cancel import CancelToken
from crossdock.registry import Credential, Credentials, HostConfig, RegistryClient, RegistryConfig
from crossdock.registry.exchange import RetryPolicy
from crossdock.registry.transport import Timeouts
from support.scripted import ScriptedServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as scripted:
        yield scripted


@pytest.fixture
def other() -> Iterator[ScriptedServer]:
    with ScriptedServer() as scripted:
        yield scripted


@pytest.fixture
def make_client(tmp_path: Path) -> Iterator[Callable[..., RegistryClient]]:
    """Make clients that know no file of this machine; they are closed at the end."""
    made: list[RegistryClient] = []

    def make(
        *,
        logins: Mapping[str, Credential] | None = None,
        hosts: Mapping[str, HostConfig] | None = None,
        credentials: Credentials | None = None,
        cancel: CancelToken | None = None,
        idle_s: float = 5.0,
        insecure: bool = False,
    ) -> RegistryClient:
        client = RegistryClient(
            config=RegistryConfig(hosts=hosts, cert_dirs=[tmp_path / "certs.d"]),
            credentials=credentials or Credentials(env={}, logins=logins),
            cancel=cancel or CancelToken(),
            insecure=insecure,
            timeouts=Timeouts(connect_s=5.0, idle_s=idle_s),
            retry=RetryPolicy(attempts=4, pause_s=0.001),
        )
        made.append(client)
        return client

    yield make
    for client in made:
        client.close()
