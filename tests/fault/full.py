"""Runs inside namespaces on a small tmpfs: ``full.py FOLDER``. Fills the disk to every level and uses the store.

Prints one line per surprise; none means that all went as it should.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from crossdock.engine.store import Store
from crossdock.engine.store.gc import GCPolicy
from crossdock.errors import StoreFull
from fault.worker import Worker

STEP = 20 << 10
LEVELS = 120


def fill(path: Path, leave: int) -> None:
    """Take all space but ``leave`` bytes."""
    status = os.statvfs(path.parent)
    with path.open("wb", buffering=0) as file:
        size = status.f_bavail * status.f_frsize - leave
        if size > 0:
            os.posix_fallocate(file.fileno(), 0, size)


def attempt(root: Path, level: int) -> str:
    """Use the store with so little room; returns what happened: ``done``, ``full``, or a surprise."""
    try:
        with Store.open(root) as store:
            worker = Worker(store, level)
            for number in range(3):
                worker.build(number)
    except StoreFull as exc:
        return "full" if exc.hint else f"a full disk without a hint: {exc}"
    except Exception:  # noqa: BLE001 - every other outcome is what this looks for
        return traceback.format_exc()
    return "done"


def main() -> None:
    folder = Path(sys.argv[1])
    root, filler = folder / "s", folder / "filler"
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open("/dev/null", os.O_WRONLY), 1)  # the worker's own lines
    outcomes: list[str] = []
    Store.open(root).close()
    for level in range(LEVELS):
        fill(filler, level * STEP)
        outcome = attempt(root, level)
        outcomes.append(outcome)
        if outcome not in ("done", "full"):
            print(f"level {level}: {outcome}", file=out)
        # a full disk must not keep anyone from making room
        try:
            with Store.open(root) as store:
                problems = store.check(repair=False)
                if problems:
                    print(f"level {level}: {problems}", file=out)
                store.prune(GCPolicy(all=True))
                for image in store.images.all():
                    store.images.remove(image.name)
                store.prune(GCPolicy(all=True))
                left = store.disk_usage()
                if left:
                    print(f"level {level}: not pruned: {left}", file=out)
        except Exception:  # noqa: BLE001 - reported
            print(f"level {level}, pruning: {traceback.format_exc()}", file=out)
        filler.unlink()
    with Store.open(root) as store:
        Worker(store, 1000).build(0)
        problems = store.check(repair=False)
        if problems:
            print(f"at the end: {problems}", file=out)
    print("levels that were full:", outcomes.count("full"), file=out)
    print("levels that were done:", outcomes.count("done"), file=out)


if __name__ == "__main__":
    main()
