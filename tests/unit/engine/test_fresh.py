"""Builds that ignore the cache share a nonce only when they run at once and began together."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from crossdock.engine.fresh import FreshRun

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_runs_at_once_share(tmp_path: Path) -> None:
    with FreshRun(tmp_path) as a, FreshRun(tmp_path) as b, FreshRun(tmp_path) as c:
        assert a.nonce() == b.nonce() == c.nonce() == a.nonce()


def test_one_after_the_other_share_nothing(tmp_path: Path) -> None:
    with FreshRun(tmp_path) as a:
        first = a.nonce()
    with FreshRun(tmp_path) as b:
        assert b.nonce() != first


def test_one_that_begins_later_does_not_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time_ns()
    with FreshRun(tmp_path) as a, FreshRun(tmp_path) as b, FreshRun(tmp_path) as c:
        first = a.nonce()
        monkeypatch.setattr("crossdock.engine.fresh.time.time_ns", lambda: now + 3_000_000_000)
        later = b.nonce()
        assert later != first
        assert c.nonce() == later, "those of the later time meet"


def test_a_clock_that_was_set_back_joins_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time_ns()
    with FreshRun(tmp_path) as a, FreshRun(tmp_path) as b:
        first = a.nonce()
        monkeypatch.setattr("crossdock.engine.fresh.time.time_ns", lambda: now - 3_000_000_000)
        assert b.nonce() != first


def test_what_is_not_asked_costs_nothing(tmp_path: Path) -> None:
    with FreshRun(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "fresh").write_bytes(b"\xff\xfe garbage")
    with FreshRun(tmp_path) as a, FreshRun(tmp_path) as b:
        assert a.nonce() == b.nonce() != ""
