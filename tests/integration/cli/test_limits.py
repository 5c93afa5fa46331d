"""A store within its limit, and a disk that is full."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from support.cli import PROGRAM

if TYPE_CHECKING:
    from pathlib import Path

    from support.cli import Crossdock, Ran
    from support.servers import BaseImages

pytestmark = pytest.mark.needs("userns", "overlay")

MB = 1_000_000


def context(folder: Path, name: str, size: int) -> Path:
    """A context with one file of so many bytes that do not compress."""
    made = folder / name
    made.mkdir()
    with open("/dev/urandom", "rb") as source:
        (made / "big").write_bytes(source.read(size))
    (made / "Dockerfile").write_text("FROM scratch\nCOPY big /\n")
    return made


def used(crossdock: Crossdock) -> int:
    records = crossdock("du", "--format", "json").ok().out.splitlines()
    return sum(map(size, (json.loads(line)["Size"] for line in records)))


def size(text: str) -> int:
    """Read a size as docker shows it: 91B, 4.19MB."""
    number = text.rstrip("BkMG")
    return int(float(number) * 1000 ** ("BkMG".index(text[len(number)])))


def test_the_limit_holds_after_every_build(crossdock: Crossdock, tmp_path: Path) -> None:
    for number in range(4):
        done = crossdock(
            "build", context(tmp_path, f"c{number}", 4 * MB), env={"CROSSDOCK_MAX_USED_SPACE": "10MB"}
        )
        done.ok()
        assert used(crossdock) <= 10 * 1024 * 1024
    assert used(crossdock) >= 4 * MB, "the last build is kept"
    assert "no problems found" in crossdock("store", "check").ok().out


def test_a_builder_has_a_limit_of_its_own(crossdock: Crossdock, tmp_path: Path) -> None:
    refused = crossdock(
        "create", "--name", "b", "--driver", "embedded", "--driver-opt", "max-used-space=much"
    )
    assert "invalid size" in refused.failed(1).err
    crossdock("create", "--name", "b", "--driver", "embedded", "--driver-opt", "max-used-space=6MB").ok()
    for number in range(3):
        crossdock("build", "--builder", "b", context(tmp_path, f"c{number}", 4 * MB)).ok()
    assert used(crossdock) <= 6 * 1024 * 1024


def test_a_build_that_alone_needs_more_says_so(crossdock: Crossdock, tmp_path: Path) -> None:
    done = crossdock("build", context(tmp_path, "c", 4 * MB), env={"CROSSDOCK_MAX_USED_SPACE": "1MB"}).failed(
        102
    )
    # when its layer is committed, or on a busy machine while it is written
    assert "more than the store may hold" in done.err or "has reached its limit" in done.err
    assert used(crossdock) <= 1024 * 1024, "what the failed build left is removed"


WRITE = "dd if=/dev/urandom of={} bs=1048576 count={} 2>/dev/null"


def limited(crossdock: Crossdock, folder: Path, dockerfile: str, limit: str) -> Ran:
    (folder / "Dockerfile").write_text(dockerfile)
    return crossdock("build", "--progress", "plain", folder, env={"CROSSDOCK_MAX_USED_SPACE": limit})


@pytest.mark.needs("base", "crun")
@pytest.mark.parametrize("place", ["/x", "/cache/x"])
def test_a_step_ends_as_soon_as_it_is_above_the_limit(
    crossdock: Crossdock, base: BaseImages, tmp_path: Path, place: str
) -> None:
    """It would go on for a minute; what it wrote, and the store, are within the limit afterwards."""
    run = f"RUN --mount=type=cache,target=/cache {WRITE.format(place, 60)} && sleep 60 && echo too late"
    done = limited(crossdock, tmp_path, f"FROM {base.index}\n{run}\n", "40MB").failed(102)
    assert "ERROR: the store has reached its limit of 41.94MB (max-used-space)" in done.err
    assert done.err.count("max-used-space") <= 2, "of the step, and of the build"
    assert "too late" not in done.err.replace(run, "")
    assert "Traceback" not in done.err
    assert used(crossdock) <= 40 * 1024 * 1024
    assert "no problems found" in crossdock("store", "check").ok().out


@pytest.mark.needs("base", "crun")
def test_a_step_that_needs_room_gets_it_from_what_is_old(
    crossdock: Crossdock, base: BaseImages, tmp_path: Path
) -> None:
    first = f"FROM {base.index}\nRUN {WRITE.format('/old', 25)}\n"
    limited(crossdock, tmp_path, first, "45MB").ok()
    second = f"FROM {base.index}\nRUN {WRITE.format('/new', 25)} && sleep 1\n"
    limited(crossdock, tmp_path, second, "45MB").ok()
    assert used(crossdock) <= 45 * 1024 * 1024


@pytest.mark.needs("base", "crun")
def test_the_rest_of_the_build_is_ended_with_the_step(
    crossdock: Crossdock, base: BaseImages, tmp_path: Path
) -> None:
    text = f"""
        FROM {base.index} AS quiet
        RUN sleep 60 && touch /q
        FROM {base.index} AS large
        RUN {WRITE.format("/x", 60)} && sleep 60
        FROM scratch
        COPY --from=quiet /q /
        COPY --from=large /x /
    """
    done = limited(crossdock, tmp_path, text, "40MB").failed(102)
    failed = [line for line in done.err.splitlines() if "ERROR" in line and "limit" in line]
    assert failed, done.err


@pytest.mark.needs("base")
def test_an_image_that_is_too_large_is_not_unpacked(
    crossdock: Crossdock, base: BaseImages, tmp_path: Path
) -> None:
    """While it is being unpacked, or as soon as it is."""
    done = limited(crossdock, tmp_path, f"FROM {base.index}\nRUN true\n", "1MB").failed(102)
    assert "max-used-space" in done.err or "more than the store may hold" in done.err
    assert used(crossdock) <= 1024 * 1024


@pytest.mark.needs("base", "crun")
def test_git_checkouts_and_steps_have_their_types(
    crossdock: Crossdock, base: BaseImages, tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text(
        f"FROM {base.index}\nRUN --mount=type=cache,target=/c echo 1 > /c/x\n"
    )
    crossdock("build", tmp_path).ok()
    types = set(crossdock("du", "--format", "{{.Type}}").ok().out.split())
    assert {"regular", "exec.cachemount"} <= types
    out = crossdock("du", "--filter", "type=exec.cachemount", "--format", "{{.Type}}").ok().out.split()
    assert set(out) == {"exec.cachemount"}


# a namespace's root may not use what is the machine's: /run, and in /tmp what another user made there
MOUNT = 'mount -t tmpfs tmpfs /run && mount -t tmpfs -o size=24m,mode=700 tmpfs "$1" && shift && exec sh -c "$1" sh'


@pytest.mark.parametrize("what", ["copy", "export"])
def test_a_full_disk_is_one_clear_error_and_the_store_is_whole(
    crossdock: Crossdock, tmp_path: Path, what: str
) -> None:
    """COPY meets the end of the disk itself; an export meets it in the layer's blob."""
    place = tmp_path / "small"
    place.mkdir()
    large = context(tmp_path, "large", 40 * MB if what == "copy" else 15 * MB)
    small = context(tmp_path, "few", 2 * MB)
    output = "" if what == "copy" else f"-o type=oci,dest={tmp_path}/out.tar"
    script = f"""
        {PROGRAM} build --progress plain {output} {large}; echo "exit $?"
        {PROGRAM} store check; echo "check $?"
        {PROGRAM} prune --all --force >/dev/null; echo "prune $?"
        {PROGRAM} build --progress quiet {output} {small}; echo "again $?"
    """
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", MOUNT, "sh", place, script],
        env={**crossdock.environment, "CROSSDOCK_ROOT": str(place / "store")},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    said = done.stdout + done.stderr
    assert "exit 102" in said, said
    assert "no space left on device" in said
    assert "Traceback" not in said
    for word in ("check 0", "prune 0", "again 0"):
        assert word in said, said
