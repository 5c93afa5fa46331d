"""``du``, ``prune`` and ``store check`` on a store with something in it."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from support.cli import PROGRAM

if TYPE_CHECKING:
    from pathlib import Path

    from support.cli import Crossdock
    from support.servers import BaseImages

pytestmark = pytest.mark.needs("base", "crun", "userns", "overlay")


@pytest.fixture
def built(crossdock: Crossdock, base: BaseImages, tmp_path: Path) -> Crossdock:
    (tmp_path / "Dockerfile").write_text(f"FROM {base.index}\nRUN head -c 300000 /dev/urandom > /big\n")
    crossdock("build", tmp_path).ok()
    return crossdock


def test_du_lists_records_and_sums(built: Crossdock) -> None:
    lines = built("du").ok().out.splitlines()
    assert lines[0].split() == ["ID", "RECLAIMABLE", "SIZE", "LAST", "ACCESSED"]
    assert lines[-2].startswith("Reclaimable:")
    assert lines[-1].startswith("Total:")
    records = [json.loads(line) for line in built("du", "--format", "json").ok().out.splitlines()]
    assert any("RUN head" in r["Description"] for r in records)
    assert {"ID", "Type", "Size", "Mutable", "Shared", "UsageCount"} <= set(records[0])
    verbose = built("du", "--verbose").ok().out
    assert "Created at:   20" in verbose
    assert "Usage count:" in verbose
    assert re.search(r"Kept because: the layer \w+ stands on it", verbose), "the base is below the step"
    assert "Kept" not in records[0]


def test_filters_select(built: Crossdock) -> None:
    out = built("du", "--filter", "description~=RUN", "--format", "{{.Description}}").ok().out
    assert out
    assert all("RUN" in line for line in out.splitlines())
    assert built("du", "--filter", "until=1h", "--format", "{{.ID}}").ok().out == ""
    assert "fields are" in built("du", "--filter", "colour=red").failed(1).err


def test_prune_asks_first(built: Crossdock) -> None:
    done = built("prune", stdin="n\n").ok()
    assert done.out.startswith("WARNING! This will remove all dangling build cache.")
    assert "Total" not in done.out
    assert "Total:\t" in built("prune", "-a", stdin="y\n").ok().out


def test_prune_empties_the_store_and_the_next_build_works(built: Crossdock, tmp_path: Path) -> None:
    done = built("prune", "--all", "--force").ok()
    assert "Total:\t" in done.out
    assert [json.loads(line) for line in built("du", "--format", "json").ok().out.splitlines()] == []
    built("build", tmp_path).ok()
    assert "no problems found" in built("store", "check").ok().out


def test_reserved_space_keeps_records(built: Crossdock) -> None:
    assert built("prune", "--force", "--reserved-space", "1gb").ok().out == "Total:\t0B\n"


def test_damage_is_found_and_repaired(built: Crossdock) -> None:
    blob = max(
        (p for p in (built.root / "content").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    blob.chmod(0o600)
    blob.write_bytes(b"damaged" + blob.read_bytes()[7:])
    done = built("store", "check").failed(1)
    assert "the store has" in done.err
    assert "(repaired)" in built("store", "check", "--repair").ok().out
    assert "no problems found" in built("store", "check").ok().out


def test_du_says_what_a_running_build_keeps_and_prune_leaves_it(
    built: Crossdock, base: BaseImages, tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text(
        f"FROM {base.index}\nRUN head -c 300000 /dev/urandom > /big\n"
        "RUN --mount=type=cache,target=/c touch /c/x && echo begun && sleep 60\n"
    )
    running = subprocess.Popen(
        [PROGRAM, "build", "--progress=plain", str(tmp_path)],
        env=built.environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert running.stderr is not None
        assert any(line.rstrip().endswith(" begun") and "RUN" not in line for line in running.stderr)
        before = [json.loads(line)["ID"] for line in built("du", "--format", "json").ok().out.splitlines()]
        verbose = built("du", "--verbose").ok().out
        assert verbose.count("Kept because: in use by a running build") >= 3
        for filters in ([], ["--filter", "type=exec.cachemount"], ["--filter", "until=0s"]):
            built("prune", "--all", "--force", *filters).ok()
        after = [json.loads(line)["ID"] for line in built("du", "--format", "json").ok().out.splitlines()]
        assert set(after) <= set(before)
        assert built("du", "--verbose").ok().out.count("in use by a running build") >= 3
    finally:
        running.terminate()
        running.communicate()


def test_rules_by_age_and_type(built: Crossdock, base: BaseImages, tmp_path: Path) -> None:
    """What docker's users write: cache mounts older than a day, everything older than a week, sources first."""
    (tmp_path / "Dockerfile").write_text(
        f"FROM {base.index}\nRUN --mount=type=cache,target=/c head -c 9000 /dev/urandom > /c/x\n"
    )
    built("build", tmp_path).ok()

    def types() -> list[str]:
        return built("du", "--format", "{{.Type}}").ok().out.split()

    assert "exec.cachemount" in types()
    built("prune", "--force", "--filter", "until=24h").ok()
    built("prune", "--force", "--filter", "type=exec.cachemount", "--filter", "until=24h").ok()
    assert "exec.cachemount" in types(), "it is new"
    built("prune", "--force", "--filter", "type=exec.cachemount", "--filter", "until=0s").ok()
    assert "exec.cachemount" not in types()
    assert "regular" in types()
    built("prune", "--force", "--filter", "type!=exec.cachemount", "--reserved-space", "1gb").ok()
    assert "regular" in types(), "so much is kept"
