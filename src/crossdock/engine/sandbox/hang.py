"""A step that does nothing any more: no output and no CPU time for too long. Emulators of old versions do that."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from crossdock.engine.sandbox.supervise import descendants

__all__ = ["HangWatch"]


class HangWatch:
    """Ends a step after ``deadline_s`` seconds without output and without CPU time; called about once a second."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._ticks = -1
        self._idle_since_s = 0.0
        #: whether the step was ended
        self.hung = False

    def __call__(self, runtime_pid: int, quiet_s: float) -> None:
        """Look at the processes below the runtime; ``quiet_s`` is the time since the last output."""
        processes = descendants(runtime_pid)
        ticks = sum(map(_cpu_ticks, processes))
        if ticks != self._ticks or quiet_s < self._idle_since_s:
            self._ticks, self._idle_since_s = ticks, quiet_s
        if quiet_s - self._idle_since_s < self._deadline_s:
            return
        self.hung = True
        for pid in processes:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _cpu_ticks(pid: int) -> int:
    """Return user and system time of a process in clock ticks; 0 when it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])
