"""Caches in a directory of the client: builds that export to the same one keep each other's results."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from integration.cache.cachekit import all_at_once, contexts, steps_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from integration.server.conftest import Buildx, Server
    from support.cli import Crossdock
    from support.servers import BaseImages

    Build = Callable[..., str]

pytestmark = pytest.mark.needs("base", "crun", "userns", "overlay", "dockercli")


@pytest.fixture(params=["buildx", "crossdock"])
def build(request: pytest.FixtureRequest, buildx: Buildx, server: Server, crossdock: Crossdock) -> Build:
    """A client of the server; returns what it prints."""
    if request.param == "buildx":
        return lambda *args: buildx.build(*args).stderr
    crossdock("create", "--name", "ours", "--driver", "remote", server.address).ok()
    return lambda *args: crossdock("build", "--builder", "ours", "--progress=plain", *args).ok().err


def ran_with(build: Build, buildx: Buildx, context: Path, cache: Path) -> set[str]:
    """What runs on a server that has nothing but the cache."""
    buildx("prune", "-af")
    return steps_run(build(context, "--cache-from", f"type=local,src={cache}"))


def manifests(cache: Path) -> list[Path]:
    return [p for p in (cache / "blobs/sha256").iterdir() if b'"schemaVersion"' in p.read_bytes()[:64]]


def test_builds_one_after_another_keep_each_others_results(
    build: Build, buildx: Buildx, base: BaseImages, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    folders = contexts(tmp_path, base.index, "xyz")
    for folder in folders:
        build(folder, "--cache-to", f"type=local,dest={cache},mode=max")
        buildx("prune", "-af")
    for folder in folders:
        assert ran_with(build, buildx, folder, cache) == set()


def test_two_platforms_share_one_directory(
    build: Build, buildx: Buildx, base: BaseImages, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    (folder,) = contexts(tmp_path, base.index, "x")
    for platform in ("linux/amd64", "linux/arm64"):
        build(folder, "--platform", platform, "--cache-to", f"type=local,dest={cache},mode=max")
    buildx("prune", "-af")
    printed = build(
        folder, "--platform", "linux/amd64,linux/arm64", "--cache-from", f"type=local,src={cache}"
    )
    assert steps_run(printed) == set()


def test_builds_at_once_keep_each_others_results(
    build: Build, buildx: Buildx, base: BaseImages, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    folders = contexts(tmp_path, base.index, "xyz")
    all_at_once(build, [(f, "--cache-to", f"type=local,dest={cache},mode=max") for f in folders])
    # Which of them wrote the index last is the clients' affair; whoever comes next finds them all.
    (last,) = contexts(tmp_path, base.index, "w")
    build(last, "--cache-to", f"type=local,dest={cache},mode=max")
    for folder in (*folders, last):
        assert ran_with(build, buildx, folder, cache) == set()


def test_merge_can_be_switched_off(build: Build, buildx: Buildx, base: BaseImages, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    one, two = contexts(tmp_path, base.index, "xy")
    build(one, "--cache-to", f"type=local,dest={cache},mode=max")
    buildx("prune", "-af")
    build(two, "--cache-to", f"type=local,dest={cache},mode=max,merge=false")
    assert ran_with(build, buildx, two, cache) == set()
    assert ran_with(build, buildx, one, cache) != set()


def test_an_unchanged_cache_is_not_written_again(build: Build, base: BaseImages, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (folder,) = contexts(tmp_path, base.index, "x")
    build(folder, "--cache-to", f"type=local,dest={cache},mode=max")
    before = sorted(os.listdir(cache / "blobs/sha256"))
    build(folder, "--cache-to", f"type=local,dest={cache},mode=max")
    assert sorted(os.listdir(cache / "blobs/sha256")) == before


def test_tags_are_caches_of_their_own(build: Build, buildx: Buildx, base: BaseImages, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    one, two = contexts(tmp_path, base.index, "xy")
    build(one, "--cache-to", f"type=local,dest={cache},mode=max,tag=one")
    buildx("prune", "-af")
    build(two, "--cache-to", f"type=local,dest={cache},mode=max")
    assert ran_with(build, buildx, one, cache) != set()
    buildx("prune", "-af")
    assert steps_run(build(one, "--cache-from", f"type=local,src={cache},tag=one")) == set()


def test_what_an_embedded_build_wrote_is_kept(
    build: Build, buildx: Buildx, crossdock: Crossdock, base: BaseImages, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    one, two = contexts(tmp_path, base.index, "xy")
    own = {"CROSSDOCK_ROOT": str(tmp_path / "own-root")}
    crossdock("build", one, "--cache-to", f"type=local,dest={cache},mode=max", env=own).ok()
    build(two, "--cache-to", f"type=local,dest={cache},mode=max")
    for folder in (one, two):
        assert ran_with(build, buildx, folder, cache) == set()


def test_results_whose_layers_are_gone_are_left_out(
    build: Build, buildx: Buildx, base: BaseImages, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    one, two = contexts(tmp_path, base.index, "xy")
    build(one, "--cache-to", f"type=local,dest={cache},mode=max")
    for path in (cache / "blobs/sha256").iterdir():
        if not path.read_bytes().startswith(b"{"):
            path.unlink()
    build(two, "--cache-to", f"type=local,dest={cache},mode=max")
    listed = json.loads((cache / "index.json").read_text())["manifests"][0]["digest"]
    manifest = json.loads((cache / "blobs/sha256" / listed[7:]).read_text())
    assert all((cache / "blobs/sha256" / layer["digest"][7:]).exists() for layer in manifest["layers"])
    assert ran_with(build, buildx, two, cache) == set()


def test_a_damaged_cache_is_replaced_with_a_note(
    build: Build, buildx: Buildx, base: BaseImages, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    one, two = contexts(tmp_path, base.index, "xy")
    build(one, "--cache-to", f"type=local,dest={cache},mode=max")
    for path in (cache / "blobs/sha256").iterdir():
        if path not in manifests(cache):
            size = path.stat().st_size
            path.unlink()  # buildx leaves it read-only
            path.write_bytes(b"x" * size)
    printed = build(two, "--cache-to", f"type=local,dest={cache},mode=max")
    assert "cannot be merged and is replaced" in printed
    assert ran_with(build, buildx, two, cache) == set()


def test_a_client_that_vanishes_while_it_exports_holds_nobody_up(
    buildx: Buildx, base: BaseImages, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    one, two = contexts(tmp_path, base.index, "xy")
    (one / "Dockerfile").write_text(
        f"FROM {base.index}\nRUN dd if=/dev/urandom of=/big bs=1M count=60 2>/dev/null\n"
    )
    client = buildx.start(
        "build", "--progress", "plain", one, "--cache-to", f"type=local,dest={cache},compression=uncompressed"
    )
    assert client.stdout is not None
    for line in client.stdout:
        if b"writing layer" in line:
            break
    client.kill()
    client.communicate(timeout=30)
    buildx.build(two, "--cache-to", f"type=local,dest={cache},mode=max")
    buildx("prune", "-af")
    assert steps_run(buildx.build(two, "--cache-from", f"type=local,src={cache}").stderr) == set()
