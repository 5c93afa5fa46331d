"""Leases: what living processes use, so that nobody removes it.

A lease is a file that its process holds locked; every layer, blob and cache record touched is appended to it.
When the process dies the kernel drops the lock, and the list tells recovery what may be half-made.
"""

from __future__ import annotations

import fcntl
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from crossdock.engine.store import hooks
from crossdock.engine.store.ids import new_id
from crossdock.engine.store.locks import try_flock
from crossdock.engine.store.rim import rim
from crossdock.errors import StoreError, StoreFull

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from crossdock.engine.store.locks import RemovalLock

__all__ = ["BLOB", "LAYER", "MOUNT", "RESULT", "Lease", "LeaseFiles"]

#: prefixes of the names in a lease file
LAYER, BLOB, RESULT, MOUNT = "l:", "b:", "r:", "m:"

_SUFFIX = ".lock"


class Lease:
    """What one build uses. Made by ``Store.lease()``; safe from any thread until that context ends."""

    __slots__ = ("_counter", "_fd", "_held", "_lock", "_removal", "id", "path")

    def __init__(self, path: Path, lease_id: str, fd: int, removal: RemovalLock) -> None:
        #: name of the lease; also the prefix of its files in ``content/ingest``
        self.id = lease_id
        self.path = path
        self._fd = fd
        self._removal = removal
        # Guards _held, _counter and appends to the file.
        self._lock = threading.Lock()
        self._held: set[str] = set()
        self._counter = 0

    def protect(
        self, *, layers: Iterable[str] = (), blobs: Iterable[str] = (), results: Iterable[str] = ()
    ) -> None:
        """Keep these from removal while the lease lives. What is already gone stays gone: look after, not before.

        Raises: StoreFull, StoreError.
        """
        names = [LAYER + x for x in layers]
        names += [BLOB + x for x in blobs]
        names += [RESULT + x for x in results]
        self.add(names)

    def add(self, names: Iterable[str]) -> None:
        """Like :meth:`protect`, with prefixed names."""
        if not self.missing(names):
            return
        with rim("write a lease"), self._removal.adding():
            self.append(names)

    def append(self, names: Iterable[str]) -> None:
        """Like :meth:`add`, for a caller who holds ``RemovalLock.adding``."""
        with self._lock:
            new = [name for name in dict.fromkeys(names) if name not in self._held]
            if not new:
                return
            if self._fd < 0:
                summary = "the lease is over"
                raise StoreError(summary)
            # A line starts with its newline: after a short write the next one still stands alone.
            data = "".join("\n" + name for name in new).encode()
            with rim("write a lease"):
                if os.write(self._fd, data) != len(data):
                    summary = "cannot write a lease: no space left on device"
                    raise StoreFull(summary, hint="free some space, or run `crossdock prune`")
            self._held.update(new)

    def missing(self, names: Iterable[str]) -> bool:
        """True when one of the prefixed names is not held yet."""
        with self._lock:
            return not self._held.issuperset(names)

    def names(self) -> frozenset[str]:
        """Return all prefixed names held."""
        with self._lock:
            return frozenset(self._held)

    def number(self) -> int:
        """Return 1, 2, 3 …: unique within the lease."""
        with self._lock:
            self._counter += 1
            return self._counter

    def end(self) -> None:
        """Give everything up; idempotent."""
        with self._lock:
            if self._fd < 0:
                return
            # Unlinked while locked: nobody can take it for the lease of a dead process.
            self.path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1


class LeaseFiles:
    """The ``leases`` folder."""

    __slots__ = ("_folder", "_removal")

    def __init__(self, folder: Path, removal: RemovalLock) -> None:
        self._folder = folder
        self._removal = removal

    def create(self) -> Lease:
        """Start a lease. Raises: StoreFull, StoreError."""
        with rim("create a lease"):
            while True:
                lease_id = new_id()
                path = self._folder / (lease_id + _SUFFIX)
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
                # Between creation and lock somebody may have taken it for dead and removed it.
                if try_flock(fd) and os.fstat(fd).st_nlink:
                    hooks.point("store.lease:after_create")
                    return Lease(path, lease_id, fd, self._removal)
                os.close(fd)

    def live_names(self, besides: Path | None = None) -> frozenset[str]:
        """Return the prefixed names held by living processes; to act on it, hold ``RemovalLock.removing``."""
        names: set[str] = set()
        with rim("read leases"):
            for path in self._paths():
                if path == besides:
                    continue
                with _opened(path) as fd:
                    if fd >= 0 and not try_flock(fd, exclusive=False):
                        names.update(_read_names(fd))
        return frozenset(names)

    def live_count(self) -> int:
        """Return the number of leases held by living processes."""
        count = 0
        with rim("read leases"):
            for path in self._paths():
                with _opened(path) as fd:
                    count += fd >= 0 and not try_flock(fd, exclusive=False)
        return count

    def dead(self) -> Iterator[tuple[str, Path, frozenset[str]]]:
        """Yield id, path and names of leases whose process died; each is locked while the consumer handles it."""
        for path in self._paths():
            with _opened(path) as fd:
                if fd >= 0 and try_flock(fd) and os.fstat(fd).st_nlink:
                    yield path.name.removesuffix(_SUFFIX), path, frozenset(_read_names(fd))

    def _paths(self) -> list[Path]:
        return [self._folder / name for name in os.listdir(self._folder) if name.endswith(_SUFFIX)]


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open a lease file for the block; -1 when its lease ended meanwhile."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield -1
        return
    try:
        yield fd
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


def _read_names(fd: int) -> list[str]:
    size = os.fstat(fd).st_size
    return os.pread(fd, size, 0).decode("utf-8", "replace").split()
