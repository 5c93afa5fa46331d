"""Run commands at once and print how long they took and what the kernel says of their memory.

A process of its own because the kernel counts, in a command's peak, the size of the process that started it: that must
be small. Reads JSON ``[[word, …], …]`` from standard input; writes ``{"seconds", "codes", "peaks", "cpu"}`` (peaks in bytes)
to standard output; the commands' output goes to standard error.
"""

import json
import os
import sys
import time


def main() -> None:
    """Fork the commands, wait for all of them."""
    commands = json.load(sys.stdin)
    nothing = os.open(os.devnull, os.O_RDONLY)
    streams = [(os.POSIX_SPAWN_DUP2, nothing, 0), (os.POSIX_SPAWN_DUP2, 2, 1)]
    started = time.monotonic()
    pids = [os.posix_spawnp(command[0], command, os.environ, file_actions=streams) for command in commands]
    ended = [os.wait4(pid, 0)[1:] for pid in pids]
    seconds = time.monotonic() - started
    codes = [os.waitstatus_to_exitcode(status) for status, _ in ended]
    peaks = [usage.ru_maxrss * 1024 for _, usage in ended]
    cpu = sum(usage.ru_utime + usage.ru_stime for _, usage in ended)
    json.dump({"seconds": seconds, "codes": codes, "peaks": peaks, "cpu": cpu}, sys.stdout)


if __name__ == "__main__":
    main()
