"""The format is BuildKit's: a real BuildKit reads caches of ours, and ours keep what a real BuildKit wrote."""

from __future__ import annotations

import json
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from crossdock.builders.dockerconfig import DockerEndpoint
from crossdock.builders.drivers.docker import DockerDriver
from crossdock.builders.request import BuildRequest
from crossdock.builders.usage import PruneRequest
from crossdock.cancel import CancelToken
from crossdock.progress import Event, Vertex
from integration.cache.cachekit import Builder, contexts, steps_run
from support.servers import skopeo

if TYPE_CHECKING:
    from pathlib import Path

    import services
    from support.servers import BaseImages

pytestmark = [
    pytest.mark.needs("root", "docker", "docker26", "base", "crun", "userns", "overlay", "skopeo"),
    pytest.mark.slow,
]


@pytest.fixture(autouse=True)
def _own_docker_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))


class Events(list[Event]):
    """Keeps what was emitted."""

    def emit(self, event: Event, /) -> None:
        self.append(event)

    def vertices(self) -> dict[str, Vertex]:
        return {event.name: event for event in self if isinstance(event, Vertex)}


def buildkit(engine: services.DockerEngine, context: Path, **request: Any) -> dict[str, Vertex]:
    """Build with the BuildKit of an Engine; RUN steps have no network there."""
    events = Events()
    driver = DockerDriver(DockerEndpoint("test", engine.address))
    driver.build(BuildRequest(context=str(context), network="none", **request), events, CancelToken())
    return events.vertices()


def config_of(reference: str) -> dict[str, Any]:
    raw = json.loads(skopeo("inspect", "--tls-verify=false", "--raw", f"docker://{reference}").stdout)
    entries = [raw["config"]] if "config" in raw else raw["manifests"]
    digest = next(e["digest"] for e in entries if e["mediaType"] == "application/vnd.buildkit.cacheconfig.v0")
    host, _, path = reference.rpartition(":")[0].partition("/")
    with urllib.request.urlopen(f"http://{host}/v2/{path}/blobs/{digest}", timeout=10) as r:
        config: dict[str, Any] = json.load(r)
    return config


def test_buildkit_reads_a_cache_of_ours(
    docker_engine_containerd: services.DockerEngine, builder: Builder, context: Path, repository: str
) -> None:
    reference = f"{repository}:cache"
    builder("one", context, "--cache-to", f"type=registry,ref={reference},mode=max")
    seen = buildkit(docker_engine_containerd, context, cache_from=({"type": "registry", "ref": reference},))
    importing = seen[f"importing cache manifest from {reference}"]
    assert importing.completed_ns
    assert importing.error == ""


def test_a_cache_of_buildkits_is_kept_beside_ours(
    docker_engine_containerd: services.DockerEngine, builder: Builder, context: Path, repository: str
) -> None:
    reference = f"{repository}:cache"
    entry = {"type": "registry", "ref": reference}
    buildkit(docker_engine_containerd, context, cache_to=({**entry, "mode": "max"},))
    theirs = {record["digest"] for record in config_of(reference)["records"]}
    done = builder(
        "one", context, "--cache-from", reference, "--cache-to", f"type=registry,ref={reference},mode=max"
    )
    assert "is not used" not in done.err
    assert "RUN slow" in steps_run(done.err)
    merged = config_of(reference)
    assert theirs <= {record["digest"] for record in merged["records"]}
    assert steps_run(builder("two", context, "--cache-from", reference).err) == set()


def records_in(cache: Path) -> set[str]:
    """Digests of the keys that a directory lists."""
    blobs = cache / "blobs/sha256"
    (listed,) = json.loads((cache / "index.json").read_text())["manifests"]
    manifest = json.loads((blobs / listed["digest"][7:]).read_text())
    entries = [manifest["config"]] if "config" in manifest else manifest["manifests"]
    (config,) = [e for e in entries if e["mediaType"] == "application/vnd.buildkit.cacheconfig.v0"]
    return {record["digest"] for record in json.loads((blobs / config["digest"][7:]).read_text())["records"]}


@pytest.mark.parametrize("merge", ["true", "false"])
def test_what_a_directory_holds_is_kept_by_the_client_since_buildkit_replaces_it(
    docker_engine_containerd: services.DockerEngine, base: BaseImages, tmp_path: Path, merge: str
) -> None:
    cache = tmp_path / "cache"
    one, two = contexts(tmp_path, base.index, "pq")
    entry = {"type": "local", "dest": str(cache), "mode": "max", "merge": merge}
    driver = DockerDriver(DockerEndpoint("test", docker_engine_containerd.address))

    def forget() -> None:
        # What the daemon knows of other builds goes into its export too, where steps have inputs in common.
        driver.prune(PruneRequest(all=True), CancelToken())

    forget()
    buildkit(docker_engine_containerd, one, cache_to=(entry,))
    first = records_in(cache)
    forget()
    buildkit(docker_engine_containerd, two, cache_to=(entry,))
    assert (first <= records_in(cache)) == (merge == "true")
    forget()
    seen = buildkit(docker_engine_containerd, two, cache_from=({"type": "local", "src": str(cache)},))
    assert next(v for name, v in seen.items() if "echo slow" in name).cached
