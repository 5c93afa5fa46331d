"""Locks between processes, all ``flock``: the kernel releases them when their holder dies.

Order, outermost first: a cache mount or layer lock, the removal lock (shared by whoever adds, exclusive for
whoever removes), the write lock of the metadata, SQLite's own. Nobody takes an earlier one while holding a
later one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from crossdock.cancel import CancelToken

__all__ = ["OncePerKey", "RemovalLock", "alone", "hold", "is_held", "try_flock"]

_FIRST_WAIT_S = 0.002
_LONGEST_WAIT_S = 0.05
#: by how much each wait is longer than the one before: who waits comes a quarter late at most
_LONGER = 1.25
_MODE = 0o600


def try_flock(fd: int, *, exclusive: bool = True) -> bool:
    """Take a ``flock`` without waiting; False when somebody else holds it."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError as exc:
        if exc.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def is_held(path: Path) -> bool:
    """True when a living process holds the lock file; False when it is free or gone."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not try_flock(fd)
    finally:
        os.close(fd)


@contextmanager
def hold(
    path: Path,
    cancel: CancelToken | None,
    *,
    exclusive: bool = True,
    directory: bool = False,
    unless: Callable[[], bool] | None = None,
) -> Iterator[int]:
    """Hold the lock on ``path``, waiting as long as it takes; yields the descriptor.

    A lock file is created when absent and stays. Without ``cancel`` the wait is the kernel's, at once woken;
    with it the lock is polled (2 to 50 ms). The wait ends without the lock when ``unless`` says, each time the lock is
    not free, that it is not needed any more; then -1 is yielded. Raises: the token's cause; OSError.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY if directory else os.O_RDWR | os.O_CREAT
    fd = os.open(path, flags | os.O_CLOEXEC, _MODE)
    try:
        if cancel is None:
            fcntl.flock(fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        else:
            wait_s = _FIRST_WAIT_S
            while not try_flock(fd, exclusive=exclusive):
                if unless is not None and unless():
                    yield -1
                    return
                cancel.sleep(wait_s)
                wait_s = min(wait_s * _LONGER, _LONGEST_WAIT_S)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def alone(path: Path, cancel: CancelToken, *, unless: Callable[[], bool]) -> Iterator[None]:
    """Run the block while no other does for this lock file, which is gone afterwards; for work whose result others share.

    Who waits goes on without the lock as soon as ``unless`` says that there is a result: many that wait for one would
    otherwise pass the lock on, one after the other, only to find out that the work is done. So look for the result first.
    Raises: the token's cause; OSError.
    """
    while True:
        with hold(path, cancel, unless=unless) as fd:
            if fd < 0:
                yield
                return
            if _is_at(fd, path):
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return
        # Its last holder removed it between our open and our lock.


def _is_at(fd: int, path: Path) -> bool:
    try:
        named = os.stat(path)
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (named.st_dev, named.st_ino) == (mine.st_dev, mine.st_ino)


class RemovalLock:
    """Separates adding from removing.

    Whoever makes something visible or declares it in use does so under :meth:`adding` (many at once). Whoever
    removes reads the leases, deletes the metadata and renames the files away under :meth:`removing`. So
    nothing is removed between "in use" being declared and being seen. Each use opens the file anew: a
    ``flock`` belongs to the open file, and threads sharing one would release each other's.

    The kernel hands a ``flock`` to whoever runs first, so a remover that comes back at once would keep all
    others waiting. Hence the turnstile: those who have to wait hold it until they are in, and a remover
    passes it first.
    """

    __slots__ = ("_path", "_turnstile")

    def __init__(self, path: Path) -> None:
        self._path = os.fspath(path)
        self._turnstile = self._path + "-turnstile"

    @contextmanager
    def adding(self) -> Iterator[None]:
        """Keep removals out for a moment; inside, wait for nothing but the write lock."""
        fd = _open_lock(self._path)
        try:
            if not try_flock(fd, exclusive=False):
                turnstile = _open_lock(self._turnstile)
                try:
                    fcntl.flock(turnstile, fcntl.LOCK_SH)
                    fcntl.flock(fd, fcntl.LOCK_SH)
                finally:
                    os.close(turnstile)
            yield
        finally:
            os.close(fd)

    @contextmanager
    def removing(self) -> Iterator[None]:
        """Keep additions and other removals out; milliseconds only."""
        turnstile = _open_lock(self._turnstile)
        fd = -1
        try:
            fd = _open_lock(self._path)
            fcntl.flock(turnstile, fcntl.LOCK_EX)
            fcntl.flock(turnstile, fcntl.LOCK_UN)
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(turnstile)
            if fd >= 0:
                os.close(fd)


def _open_lock(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)


class OncePerKey:
    """Mutual exclusion by key among the threads of this process; waits honour cancellation."""

    __slots__ = ("_busy", "_condition")

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._busy: set[str] = set()

    @contextmanager
    def holding(self, key: str, cancel: CancelToken, *, patience_s: float | None = None) -> Iterator[None]:
        """Run the block alone for ``key``; after ``patience_s`` seconds of waiting, not alone.

        Raises: the token's cause while waiting.
        """
        with cancel.waking(self._wake), self._condition:
            free = self._condition.wait_for(lambda: cancel.cancelled or key not in self._busy, patience_s)
            cancel.check()
            if free:
                self._busy.add(key)
        try:
            yield
        finally:
            if free:
                with self._condition:
                    self._busy.discard(key)
                    self._condition.notify_all()

    def _wake(self) -> None:
        with self._condition:
            self._condition.notify_all()
