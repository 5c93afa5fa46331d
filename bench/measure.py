"""Time and peak memory of a command, and of the daemon that serves it.

Nothing polls, so nothing disturbs: a command's peak is what the kernel tells when it is reaped (the biggest process of
its tree), a daemon's is its high-water mark, reset before each run.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


_LAUNCH = Path(__file__).resolve().parent / "launch.py"


class RunError(Exception):
    """A measured command failed; the text ends with what it printed."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One run: wall-clock seconds, processor seconds, and the greatest resident size (bytes) of client and daemon."""

    seconds: float
    client_bytes: int
    daemon_bytes: int = 0
    #: user and system time of the commands, of the daemon, and of their children that have ended
    cpu_s: float = 0.0

    @property
    def peak_bytes(self) -> int:
        """Client and daemon together."""
        return self.client_bytes + self.daemon_bytes


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Medians of several runs, and their spread."""

    seconds: float
    least_s: float
    most_s: float
    cpu_s: float
    peak_bytes: int
    runs: int


def summarise(runs: Sequence[Measurement]) -> Summary:
    """Median time; the greatest peak, since a limit must hold every time."""
    times = [run.seconds for run in runs]
    return Summary(
        seconds=statistics.median(times),
        least_s=min(times),
        most_s=max(times),
        cpu_s=statistics.median(run.cpu_s for run in runs),
        peak_bytes=max(run.peak_bytes for run in runs),
        runs=len(runs),
    )


def run(
    commands: Sequence[Sequence[str]], *, env: Mapping[str, str], cwd: Path, daemon: int = 0
) -> Measurement:
    """Run ``commands`` at once and wait for all; several commands share the clock.

    Raises: RunError when one exits with another code than 0.
    """
    daemons = _tree(daemon) if daemon else []
    before_s = _cpu_s(daemons)
    for pid in daemons:
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # resets VmHWM
    with tempfile.TemporaryFile() as log:
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(_LAUNCH)],
            input=json.dumps([list(command) for command in commands]).encode(),
            env=env,
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=log,
            check=False,
        )
        found: dict[str, Any] = (
            json.loads(done.stdout) if done.returncode == 0 else {"codes": ["not started"]}
        )
        if any(found["codes"]):
            log.seek(0)
            tail = log.read()[-3000:].decode(errors="replace")
            msg = f"{' '.join(commands[0])}: exit {found['codes']}\n{tail}"
            raise RunError(msg)
    return Measurement(
        seconds=found["seconds"],
        client_bytes=max(found["peaks"]),
        daemon_bytes=sum(map(_high_water, daemons)),
        cpu_s=found["cpu"] + _cpu_s(daemons) - before_s,
    )


def _tree(pid: int) -> list[int]:
    """``pid`` and its descendants that live now (a daemon's own processes, not the steps to come)."""
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{each}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def _high_water(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0  # it ended meanwhile
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(match.group(1)) * 1024 if match else 0


def _cpu_s(pids: Sequence[int]) -> float:
    """Processor seconds that processes and their reaped children have used so far."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, words[11:15]))  # utime, stime, cutime, cstime: proc(5)
    return ticks / os.sysconf("SC_CLK_TCK")
