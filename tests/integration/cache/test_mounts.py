"""Cache mounts in exported caches: packed, restored where they are new, bounded, never in the way."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from integration.cache.cachekit import Builder, steps_run

if TYPE_CHECKING:
    from pathlib import Path

    from support.servers import BaseImages

pytestmark = pytest.mark.needs("base", "crun", "userns", "overlay")

COUNT = """FROM {base}
ARG n
RUN --mount=type=cache,target=/c,id=counter{options} \
    echo $n >> /c/runs && mkdir -p /c/d && ln -sf ../runs /c/d/link && cat /c/runs > /seen && ls -ln / > /ids
"""


@pytest.fixture(params=["registry", "local"])
def place(request: pytest.FixtureRequest, repository: str, tmp_path: Path) -> tuple[str, str]:
    if request.param == "registry":
        return f"type=registry,ref={repository}:cache", f"type=registry,ref={repository}:cache"
    return f"type=local,dest={tmp_path}/exported", f"type=local,src={tmp_path}/exported"


@pytest.fixture
def counting(tmp_path: Path, base: BaseImages) -> Path:
    folder = tmp_path / "counting"
    folder.mkdir()
    (folder / "Dockerfile").write_text(COUNT.format(base=base.index, options=""))
    return folder


def seen(builder: Builder, store: str, context: Path, number: int, *args: str, out: Path) -> list[str]:
    builder(store, context, "--build-arg", f"n={number}", "-o", str(out), *args)
    return (out / "seen").read_text().split()


def test_a_new_mount_starts_with_what_was_exported(
    builder: Builder, counting: Path, place: tuple[str, str], tmp_path: Path
) -> None:
    to, source = place
    assert seen(builder, "one", counting, 1, "--cache-to", f"{to},mounts=true", out=tmp_path / "a") == ["1"]
    fresh = seen(builder, "two", counting, 2, "--cache-from", f"{source},mounts=true", out=tmp_path / "b")
    assert fresh == ["1", "2"]
    again = seen(builder, "two", counting, 3, "--cache-from", f"{source},mounts=true", out=tmp_path / "c")
    assert again == ["1", "2", "3"]
    assert "no problems found" in builder.command("two", "store", "check").out


def test_without_the_option_nothing_is_restored(
    builder: Builder, counting: Path, place: tuple[str, str], tmp_path: Path
) -> None:
    to, source = place
    seen(builder, "one", counting, 1, "--cache-to", f"{to},mounts=true", out=tmp_path / "a")
    assert seen(builder, "two", counting, 2, "--cache-from", source, out=tmp_path / "b") == ["2"]


def test_a_mount_with_an_owner_is_restored_as_such(
    builder: Builder, counting: Path, base: BaseImages, place: tuple[str, str], tmp_path: Path
) -> None:
    (counting / "Dockerfile").write_text(COUNT.format(base=base.index, options=",uid=0,mode=0750"))
    to, source = place
    seen(builder, "one", counting, 1, "--cache-to", f"{to},mounts=true", out=tmp_path / "a")
    fresh = seen(builder, "two", counting, 2, "--cache-from", f"{source},mounts=true", out=tmp_path / "b")
    assert fresh == ["1", "2"]
    assert "drwxr-x---" in (tmp_path / "b/ids").read_text()


def test_a_mount_above_the_limit_is_left_out(builder: Builder, counting: Path, tmp_path: Path) -> None:
    to = f"type=local,dest={tmp_path}/c,mounts=true,mounts-max-size=1B"
    done = builder("one", counting, "--build-arg", "n=1", "--cache-to", to)
    assert "counter is left out" in done.err
    source = f"type=local,src={tmp_path}/c,mounts=true"
    assert seen(builder, "two", counting, 2, "--cache-from", source, out=tmp_path / "b") == ["2"]


def test_a_damaged_mount_begins_empty(builder: Builder, counting: Path, tmp_path: Path) -> None:
    where = tmp_path / "c"
    builder("one", counting, "--build-arg", "n=1", "--cache-to", f"type=local,dest={where}")
    before = {path.name for path in (where / "blobs/sha256").iterdir()}
    builder("one", counting, "--build-arg", "n=1", "--cache-to", f"type=local,dest={where},mounts=true")
    for path in (where / "blobs/sha256").iterdir():
        if path.name not in before and not path.read_bytes().startswith(b"{"):
            path.write_bytes(path.read_bytes()[:-8] + b"XXXXXXXX")
    source = f"type=local,src={where},mounts=true"
    done = builder("two", counting, "--build-arg", "n=2", "--cache-from", source, "-o", str(tmp_path / "b"))
    assert "counter begins empty" in done.err
    assert (tmp_path / "b/seen").read_text().split() == ["2"]


def test_the_newest_content_replaces_the_older(
    builder: Builder, counting: Path, place: tuple[str, str], tmp_path: Path
) -> None:
    to, source = place
    args = ("--cache-to", f"{to},mounts=true", "--cache-from", f"{source},mounts=true")
    seen(builder, "one", counting, 1, *args, out=tmp_path / "a")
    seen(builder, "two", counting, 2, *args, out=tmp_path / "b")
    assert seen(builder, "three", counting, 3, *args, out=tmp_path / "c") == ["1", "2", "3"]


def test_steps_are_cached_all_the_same(builder: Builder, counting: Path, tmp_path: Path) -> None:
    builder("one", counting, "--cache-to", f"type=local,dest={tmp_path}/c,mounts=true")
    done = builder("two", counting, "--cache-from", f"type=local,src={tmp_path}/c,mounts=true")
    assert steps_run(done.err) == set()
    index = json.loads((tmp_path / "c/index.json").read_text())
    assert len(index["manifests"]) == 1
