"""Many processes on one store at once."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from fault.victims import finish, judge, start

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
def test_ten_processes_write_at_once(tmp_path: Path) -> None:
    root = tmp_path / "s"
    with ExitStack() as stack:
        workers = [stack.enter_context(start(root, seed, 15, "build")) for seed in range(10)]
        finished: list[str] = []
        for worker in workers:
            lines, errors = finish(worker)
            assert worker.returncode == 0, errors
            assert errors == ""
            finished += lines
    assert len(finished) == 10 * (15 * 4 + 2)
    judge(root, finished)


@pytest.mark.slow
def test_pruning_beside_ten_builds_breaks_none(tmp_path: Path) -> None:
    root = tmp_path / "s"
    with ExitStack() as stack:
        pruner = stack.enter_context(start(root, 0, 1_000_000, "prune"))
        workers = [stack.enter_context(start(root, seed, 15, "build")) for seed in range(10)]
        for worker in workers:
            lines, errors = finish(worker)
            assert worker.returncode == 0, errors
            assert lines[-1] == "end"
        assert pruner.poll() is None, finish(pruner)
        pruner.kill()
        finish(pruner)
    judge(root)
