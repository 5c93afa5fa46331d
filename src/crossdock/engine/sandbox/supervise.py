"""Waiting for the worker: forward signals to it, reap orphans, end as it ended.

Used twice: by the process the user started (outside the namespaces) and by the init inside the PID namespace. Both
block every signal and take them one by one with ``sigwaitinfo``, so no Python signal handler runs here.
"""

from __future__ import annotations

import os
import resource
import signal
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["block_signals", "descendants", "end_like", "kill_descendants", "restore_signals", "wait_for"]

#: the terminal sends these to the whole process group: forwarded only when a process sent them to us alone
_FROM_TERMINAL = frozenset({signal.SIGINT, signal.SIGQUIT})
#: left alone: stopping and continuing work on the process group
_UNBLOCKED = frozenset({signal.SIGTSTP, signal.SIGCONT, signal.SIGTTIN, signal.SIGTTOU, signal.SIGWINCH})
_IGNORED = frozenset({signal.SIGCHLD, signal.SIGPIPE, signal.SIGURG, signal.SIGIO})
_SI_KERNEL = 0x80


def block_signals() -> set[int]:
    """Block what a supervisor takes with sigwaitinfo; returns the previous mask for :func:`restore_signals`."""
    wanted = signal.valid_signals() - _UNBLOCKED
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, wanted))


def restore_signals(mask: set[int]) -> None:
    """Give a process its signal mask back."""
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def wait_for(child: int, *, on_orphan: Callable[[int], None] | None = None) -> int:
    """Forward signals to ``child`` until it ends, reaping every other child; returns its wait status.

    The caller blocked the signals (:func:`block_signals`) before it forked.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    wanted = signal.valid_signals() - _UNBLOCKED
    while True:
        status = _reap(child, on_orphan)
        if status is not None:
            return status
        info = signal.sigwaitinfo(wanted)
        number = info.si_signo
        if number in _IGNORED or (number in _FROM_TERMINAL and info.si_code == _SI_KERNEL):
            continue
        try:
            os.kill(child, number)
        except ProcessLookupError:
            continue


def _reap(child: int, on_orphan: Callable[[int], None] | None) -> int | None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return 0
        if pid == 0:
            return None
        if pid == child:
            return status
        if on_orphan is not None:
            on_orphan(pid)


def descendants(pid: int) -> list[int]:
    """Return the processes below ``pid``, parents first; those that end meanwhile are simply absent."""
    found: list[int] = []
    queue = [pid]
    while queue:
        children = _children(queue.pop(0))
        found += children
        queue += children
    return found


def _children(pid: int) -> list[int]:
    """Return what ``pid`` started; each of its threads has children of its own."""
    children: list[int] = []
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return children
    for task in tasks:
        try:
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
                children += map(int, file.read().split())
        except OSError:
            continue
    return children


def kill_descendants(pid: int) -> None:
    """SIGKILL everything below ``pid``."""
    for victim in descendants(pid):
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            continue


def end_like(status: int) -> NoReturn:
    """End this process as a process with wait status ``status`` ended; never returns."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
        os._exit(128 + number)
    os._exit(os.waitstatus_to_exitcode(status))
