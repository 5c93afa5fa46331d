"""What a cached build pays for: one HEAD and one PUT over plain HTTP."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import crossdock
from crossdock.image import sha256_digest
from support.scripted import Reply, ScriptedServer

SCRIPT = """
import sys
from crossdock.cancel import CancelToken
from crossdock.image import Descriptor, parse_reference, sha256_digest
from crossdock.registry import Credentials, RegistryClient, RegistryConfig

client = RegistryClient(config=RegistryConfig(), credentials=Credentials(), cancel=CancelToken())
ref = parse_reference(sys.argv[1] + "/app:1")
assert client.head_manifest(ref) is None
client.push_manifest(ref, Descriptor("x/y", sha256_digest(b"{}"), 2), b"{}")
client.close()
print(*sorted(sys.modules))
"""

DEAR = [
    "urllib3",
    "ssl",
    "http.client",
    "email",
    "logging",
    "subprocess",
    "concurrent",
    "asyncio",
    "random",
    "encodings.idna",
]


@pytest.fixture
def loaded() -> set[str]:
    digest = sha256_digest(b"{}")
    with ScriptedServer() as server:
        server.on("PUT", "/v2/app/manifests/1", Reply(201, headers={"docker-content-digest": digest}))
        source = str(Path(crossdock.__file__).parents[1])
        code = f"import sys; sys.path.insert(0, {source!r})\n{SCRIPT}"
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", code, server.host], capture_output=True, text=True, check=True
        )
        assert server.connections == 1
    return set(done.stdout.split())


def test_nothing_dear_is_imported(loaded: set[str]) -> None:
    assert [name for name in DEAR if name in loaded] == []


def test_only_what_is_needed_of_the_package_is_imported(loaded: set[str]) -> None:
    ours = {name.rpartition(".")[2] for name in loaded if name.startswith("crossdock.registry.")}
    assert ours == {"auth", "client", "config", "credentials", "exchange", "http1", "session", "transport"}
