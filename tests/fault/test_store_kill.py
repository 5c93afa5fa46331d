"""``kill -9`` at every named point and at random moments: the next opener finds a whole store."""

from __future__ import annotations

import os
import random
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from crossdock.engine.store import hooks
from fault.victims import finish, judge, run, start

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

#: the suite's share; `FAULT_ROUNDS=200` for the long run
ROUNDS = int(os.environ.get("FAULT_ROUNDS", "12"))
#: a point and which pass of it kills: the first and some later one
PASSES = [
    (point, nth)
    for point in hooks.POINTS
    for nth in ("1", "3")
    if nth == "1" or not point.startswith("store.open")
]


@pytest.mark.parametrize(("point", "nth"), PASSES)
def test_a_process_killed_at_a_point_leaves_a_whole_store(tmp_path: Path, point: str, nth: str) -> None:
    root = tmp_path / "s"
    if not point.startswith("store.open"):
        run(root, 1, 3, "mixed")
    if point.startswith("store.recovery"):
        leave_dead_leases(root, int(nth))
    run(root, 2, 12, "mixed", point, nth)
    judge(root)
    run(root, 3, 6, "mixed")
    judge(root)


def leave_dead_leases(root: Path, count: int) -> None:
    """Kill that many processes so that the next opener finds all of them."""
    with ExitStack() as stack:
        victims = [stack.enter_context(start(root, seed, 10_000, "build")) for seed in range(10, 10 + count)]
        for victim in victims:
            assert victim.stdout is not None
            while victim.stdout.readline().split(" ")[0] != "result":
                pass
        for victim in victims:
            victim.kill()
        for victim in victims:
            finish(victim)


def wait_until_open(victim: subprocess.Popen[str]) -> None:
    """Starting Python takes longer than what is to be hit."""
    assert victim.stdout is not None
    assert victim.stdout.readline() == "open\n"


@pytest.mark.slow
def test_builds_killed_at_random_lose_nothing_they_finished(tmp_path: Path) -> None:
    root = tmp_path / "s"
    chance = random.Random(20)
    finished: list[str] = []
    killed = 0
    for number in range(ROUNDS):
        with start(root, 1000 + number, 10_000, "build") as victim:
            wait_until_open(victim)
            time.sleep(chance.uniform(0, 0.4))
            victim.kill()
            lines, errors = finish(victim)
        assert errors == ""
        killed += bool(lines)
        # the last line may be cut by the kill
        whole = [line for line in lines if line.count(" ") == 1][:-1]
        judge(root, whole, contents=False)
        finished += whole
    judge(root, finished)
    assert killed > ROUNDS // 2
    assert len(finished) > ROUNDS


@pytest.mark.slow
def test_two_processes_one_building_one_pruning_killed_at_random(tmp_path: Path) -> None:
    root = tmp_path / "s"
    chance = random.Random(21)
    for number in range(ROUNDS):
        with (
            start(root, 2000 + number, 10_000, "build") as builder,
            start(root, 0, 10_000, "prune") as pruner,
        ):
            wait_until_open(builder)
            time.sleep(chance.uniform(0, 0.4))
            for victim in chance.sample([builder, pruner], 2):
                victim.kill()
                time.sleep(chance.uniform(0, 0.02))
            for victim in (builder, pruner):
                _, errors = finish(victim)
                assert errors == ""
        judge(root)
    judge(root, run(root, 5, 4, "build"))
