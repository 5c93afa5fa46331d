"""``kill -9`` at random moments of builds, pushes, exports and prunes: the store is whole, the next build right.

``FAULT_ROUNDS=200 pytest tests/fault/test_build_faults.py`` is the long run.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import tarfile
import tempfile
import threading
import time
from typing import TYPE_CHECKING

import pytest

from crossdock.engine.sandbox.supervise import descendants
from fault.buildscene import Scene, all_gone, finished_steps, kill_some

if TYPE_CHECKING:
    import subprocess

    from support.cli import Crossdock
    from support.servers import BaseImages

pytestmark = [pytest.mark.needs("base", "crun", "userns", "overlay"), pytest.mark.slow]

#: the suite's share; the long run has 200
ROUNDS = int(os.environ.get("FAULT_ROUNDS", "15"))
SEED = int(os.environ.get("FAULT_SEED", str(time.time_ns() % 10**6)))
#: what runs, and is killed, in a round: outputs of one or two builds, or a prune
KINDS = {
    "push": (["--push"],),
    "oci archive": (["-o", "type=oci,dest={folder}/out.tar"],),
    "directory": (["-o", "type=local,dest={folder}/out"],),
    "two builds": (["--push"], ["-o", "type=oci,dest={folder}/out.tar"]),
    "build and prune": (["--push"], None),
    "prune": (None,),
}
#: how a build without a kill is distributed over time here
LONGEST_S = 2.5


@pytest.fixture
def scene(crossdock: Crossdock, base: BaseImages, repository: str) -> Scene:
    """A build of this case, built once."""
    made = Scene(crossdock, base.amd64, repository)
    made.seed("reference")
    made.build().ok()
    made.expected = made.digest()
    return made


@pytest.mark.timeout(60 + 40 * ROUNDS)
def test_a_kill_at_any_moment_costs_only_what_was_not_finished(scene: Scene) -> None:
    chance = random.Random(SEED)
    began = time.monotonic()
    scene.seed("timing")
    scene.build().ok()
    usual_s = min(time.monotonic() - began, LONGEST_S)
    alive = reused = 0
    for number in range(ROUNDS):
        kind = chance.choice(list(KINDS))
        scene.seed(f"round {number} of {SEED}")
        where = f"round {number} of FAULT_SEED={SEED}: {kind}"
        try:
            killed, finished = one_round(scene, kind, chance.uniform(0, usual_s), chance)
            scene.judge_store()
            scene.judge_build(finished)
        except (AssertionError, pytest.fail.Exception) as exc:
            exc.add_note(where)
            raise
        alive += killed
        reused += bool(finished)
    print(f"{ROUNDS} rounds, {alive} killed at work, {reused} left finished steps that were reused")
    # where the kills fall is chance, and on a busy machine a few of them may all come early
    assert alive
    assert ROUNDS < 50 or (alive > ROUNDS // 3 and reused)


def one_round(scene: Scene, kind: str, delay_s: float, chance: random.Random) -> tuple[bool, set[str]]:
    """Start, wait, kill; returns whether it was still at work, and the steps it had finished."""
    children = [started(scene, output) for output in KINDS[kind]]
    time.sleep(delay_s)
    alive = any(child.poll() is None for child in children)
    below = [pid for child in children for pid in (child.pid, *descendants(child.pid))]
    for child in chance.sample(children, len(children)):
        kill_some(child, chance)
    logs = [child.communicate(timeout=60)[1] for child in children]
    assert not (left := all_gone(below)), f"still running: {left}"
    if None in KINDS[kind]:
        return alive, set()
    return alive, set().union(*map(finished_steps, logs))


def started(scene: Scene, output: list[str] | None) -> subprocess.Popen[str]:
    if output is None:
        return scene.crossdock.start("prune", "-af")
    return scene.start(*(part.format(folder=scene.crossdock.folder) for part in output))


@pytest.mark.timeout(400)
def test_pruning_all_the_time_breaks_none_of_ten_builds(scene: Scene) -> None:
    stop = threading.Event()
    prunes: list[int] = []

    def prune() -> None:
        while not stop.is_set():
            prunes.append(scene.crossdock("prune", "-af").code)

    pruner = threading.Thread(target=prune)
    pruner.start()
    try:
        children = []
        for number in range(10):
            # contexts of their own, so that each has work of its own
            folder = scene.crossdock.folder / f"context{number}"
            shutil.copytree(scene.folder, folder, symlinks=True)
            (folder / "seed").write_text(f"build {number}")
            output = f"type=oci,dest={scene.crossdock.folder}/out{number}.tar"
            children.append(scene.start("-o", output, folder=folder))
        logs = [(child.communicate(timeout=300)[1], child.returncode) for child in children]
    finally:
        stop.set()
        pruner.join()
    failed = [log for log, code in logs if code != 0]
    assert not failed, failed[0]
    assert set(prunes) == {0}
    scene.judge_store()
    scene.judge_build(set())


@pytest.mark.parametrize("moment_s", [0.0, 0.1, 0.25, 0.5])
def test_ctrl_c_leaves_no_process_mount_or_file(scene: Scene, moment_s: float) -> None:
    scene.seed("interrupted")
    child = scene.start("--push", "-o", f"type=oci,dest={scene.crossdock.folder}/out.tar")
    assert child.stderr is not None
    first = child.stderr.readline()
    time.sleep(moment_s)
    below = [child.pid, *descendants(child.pid)]
    os.killpg(child.pid, signal.SIGINT)
    began = time.monotonic()
    _, log = child.communicate(timeout=20)
    # by the signal itself: in the instant after the build was over
    assert child.returncode in (130, 0, -signal.SIGINT), first + log
    assert time.monotonic() - began < 2.5, log
    assert "Traceback" not in log
    assert not all_gone(below)
    left = [name for name in os.listdir(scene.crossdock.folder) if "out.tar" in name]
    # written whole before the signal came, or not at all
    assert left in ([], ["out.tar"])
    if left:
        with tarfile.open(scene.crossdock.folder / "out.tar") as archive:
            assert "index.json" in archive.getnames()
    assert not [name for name in os.listdir(tempfile.gettempdir()) if "crossdock" in name]
    store = scene.crossdock.root
    assert os.listdir(store / "content/ingest") == []
    assert not list(store.glob("layers/*/partial"))
    assert not list(store.glob("layers/*/work")), (child.returncode, log)
    scene.judge_store()
