"""Starting victims and judging what they leave."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from crossdock.engine.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterable

    from crossdock.engine.store import Lease

WORKER = Path(__file__).with_name("worker.py")


def start(root: Path, seed: int, rounds: int, mode: str, *point: str) -> subprocess.Popen[str]:
    """Start a victim; its standard output is a pipe."""
    command = [sys.executable, str(WORKER), str(root), str(seed), str(rounds), mode, *point]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(victim: subprocess.Popen[str]) -> tuple[list[str], str]:
    """Wait for a victim; returns the lines it printed and its errors."""
    output, errors = victim.communicate(timeout=120)
    return output.splitlines(), errors


def run(root: Path, seed: int, rounds: int, mode: str, *point: str) -> list[str]:
    """Run a victim to its end, which must be a good one unless it has a point, and then its death; returns its lines."""
    with start(root, seed, rounds, mode, *point) as victim:
        lines, errors = finish(victim)
    wanted = -signal.SIGKILL if point else 0
    assert victim.returncode == wanted, (point, victim.returncode, errors)
    assert point or lines[-1] == "end"
    return lines


def judge(root: Path, finished: Iterable[str] = (), *, contents: bool = True) -> None:
    """Open the store as the next build would; fail when anything is wrong or something finished is lost.

    Without ``contents`` only the blobs among ``finished`` are read.
    """
    with Store.open(root) as store:
        for thread in threading.enumerate():
            if thread.name == "store-trash":
                thread.join(30)
        problems = store.check(repair=False, contents=contents)
        assert problems == [], problems
        with store.lease() as lease:
            for line in finished:
                _judge_line(store, lease, line)


def _judge_line(store: Store, lease: Lease, line: str) -> None:
    kind, _, value = line.partition(" ")
    if kind == "blob":
        store.content.read(value)
    elif kind == "result":
        found = store.records.result(value, lease)
        assert found is not None, f"lost: {line}"
        assert store.records.canonical(f"key of {value}") == value
        for layer in found.outputs[0]:
            directory = store.layers.directory(layer)
            assert directory is not None, f"no directory: {line}"
            assert len(list(directory.iterdir())) == 5
        top = store.layers.directory(found.outputs[0][-1])
        assert top is not None
        assert (top / "d4/data").read_text() == value * 50
    elif kind == "packed":
        found = store.records.result(value, lease)
        assert found is not None, f"lost: {line}"
        info = store.layers.get(found.outputs[0][-1])
        assert not info.has_directory
        assert store.content.read(info.blobs[0].descriptor.digest) == value.encode() * 1000
