"""``du``, ``prune`` and ``store check`` on a store with something in it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

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
