"""Mapping id ranges with shadow's setuid helpers. Imported only for ordinary users that have ranges."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crossdock.distro import install_hint
from crossdock.engine.sandbox.paths import find_program

if TYPE_CHECKING:
    from crossdock.engine.sandbox.idmap import IdRange

__all__ = ["write_with_helpers"]


def write_with_helpers(pid: int, uids: tuple[IdRange, ...], gids: tuple[IdRange, ...]) -> str:
    """Map the ids of ``pid`` with newuidmap and newgidmap; returns why that failed, or ``""``."""
    running: list[tuple[str, int, int]] = []
    for name, ranges in (("newgidmap", gids), ("newuidmap", uids)):
        path = find_program(name)
        if path is None:
            _finish(running)
            return f"{name} is missing: {install_hint('newuidmap')}"
        argv = [name, str(pid), *(str(number) for r in ranges for number in r)]
        running.append((name, *_spawn(path, argv)))
    return _finish(running)


def _spawn(path: str, argv: list[str]) -> tuple[int, int]:
    read_end, write_end = os.pipe()
    try:
        actions = [(os.POSIX_SPAWN_DUP2, write_end, 2)]
        pid = os.posix_spawn(path, argv, os.environ, file_actions=actions, setsigmask=())
    finally:
        os.close(write_end)
    return pid, read_end


def _finish(running: list[tuple[str, int, int]]) -> str:
    problem = ""
    for name, pid, read_end in running:
        with open(read_end, "rb") as stream:
            said = stream.read().decode(errors="replace").strip()
        _, status = os.waitpid(pid, 0)
        if status != 0 and not problem:
            problem = f"{name} failed: {said or f'status {os.waitstatus_to_exitcode(status)}'}"
    return problem
