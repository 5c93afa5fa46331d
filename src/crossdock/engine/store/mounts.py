"""Cache mounts: directories that outlive steps and are never part of a layer.

Each has a lock file beside it, held (shared or exclusively) by whoever uses it, so that use, sharing and
pruning agree between processes and end with them.
"""

from __future__ import annotations

import os
import time
from base64 import b32encode
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from crossdock.engine.store import hooks
from crossdock.engine.store.leases import MOUNT
from crossdock.engine.store.locks import is_held, try_flock
from crossdock.engine.store.rim import rim
from crossdock.engine.store.unfinished import note_unfinished
from crossdock.errors import StoreFull
from crossdock.hashing import sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from crossdock.cancel import CancelToken
    from crossdock.engine.store.db import Database
    from crossdock.engine.store.layout import Layout
    from crossdock.engine.store.leases import Lease
    from crossdock.engine.store.records import RecordType
    from crossdock.engine.store.removal import Trash

__all__ = ["CacheMounts", "Sharing", "mount_id"]

#: ``shared``: all at once in one directory; ``private``: each user alone, with more directories when busy;
#: ``locked``: one after another
Sharing = Literal["shared", "private", "locked"]

_FIRST_WAIT_S = 0.002
_LONGEST_WAIT_S = 0.05
#: waits shorter than this are nobody's concern
_SHOWN_AFTER_S = 0.5
_ROOT_MODE = 0o755


class CacheMounts:
    """Cache mount directories of one store. Safe from any thread and process."""

    __slots__ = ("_db", "_mounts", "_trash")

    def __init__(self, layout: Layout, db: Database, trash: Trash) -> None:
        self._mounts = layout.mounts
        self._db = db
        self._trash = trash

    @contextmanager
    def use(
        self,
        lease: Lease,
        *,
        name: str,
        sharing: Sharing,
        cancel: CancelToken,
        namespace: str = "",
        base: str = "",
        fill: Callable[[Path], None] | None = None,
        record_type: RecordType = "exec.cachemount",
        waiting: Callable[[bool], None] | None = None,
    ) -> Iterator[Path]:
        """Yield the directory of the cache mount ``name`` and keep it in use for the block.

        ``namespace`` and ``base`` (names the file system it starts from) make it another mount. ``fill`` gets
        the new directory (mode 0755) once. ``record_type`` is what `du` and `prune` call it. A ``locked``
        mount in use is waited for; a ``private`` one in use gets a sibling. ``waiting`` is told True when that takes
        long enough to be shown, and then False when it is over.
        Raises: StoreFull, StoreError; what ``fill`` raises; the token's cause.
        """
        key = ""
        patience = _Patience(cancel, waiting)
        try:
            with self._locked(lease, mount_id(name, namespace, base), sharing, fill, patience) as key:
                self._note(key, name, record_type)
                note_unfinished(key)
                yield self.directory(key)
        except StoreFull:
            if key and key not in self.ids():
                self._remove_files(key)
            raise

    def ids(self) -> list[str]:
        """Return the ids of all cache mounts, private siblings included."""
        return [row[0] for row in self._db.all("SELECT id FROM mounts")]

    def in_use(self, mount: str) -> bool:
        """True when a living process uses the mount."""
        return is_held(self._lock_path(mount))

    def directory(self, mount: str) -> Path:
        """Return where a mount's files are."""
        return self._mounts / mount / "fs"

    def remove(self, mount: str) -> bool:
        """Remove a mount unless it is in use; False then. Raises: StoreError."""
        return self._remove_files(mount, lambda: self._db.execute("DELETE FROM mounts WHERE id=?", (mount,)))

    def _remove_files(self, mount: str, forget: Callable[[], object] = lambda: None) -> bool:
        with rim("remove a cache mount"):
            fd = os.open(self._lock_path(mount), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if not try_flock(fd):
                    return False
                forget()
                hooks.point("store.prune:after_delete")
                self._trash.take(self._mounts / mount)
                # Last, and while locked: a waiter finds its lock file unlinked and starts again.
                self._lock_path(mount).unlink(missing_ok=True)
            finally:
                os.close(fd)
        return True

    def _lock_path(self, mount: str) -> Path:
        return self._mounts / f"{mount}.lock"

    @contextmanager
    def _locked(
        self,
        lease: Lease,
        first: str,
        sharing: Sharing,
        fill: Callable[[Path], None] | None,
        patience: _Patience,
    ) -> Iterator[str]:
        """Lock a directory as ``sharing`` says, making it when absent; yields its id."""
        key, copies = first, 0
        while True:
            patience.cancel.check()
            lease.add((MOUNT + key,))  # so that recovery finds it, should we die before its row is written
            with rim("use a cache mount"):
                fd = os.open(self._lock_path(key), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                outcome = self._acquire(fd, key, sharing, fill, patience)
                if outcome == "held":
                    yield key
                    return
            finally:
                os.close(fd)
            if outcome == "busy":
                copies += 1
                key = f"{first}-{copies}"

    def _acquire(
        self, fd: int, key: str, sharing: Sharing, fill: Callable[[Path], None] | None, patience: _Patience
    ) -> Literal["held", "busy", "again"]:
        """Try once. ``busy``: a private mount is in use; ``again``: it was removed under our hands."""
        directory = self.directory(key)
        if sharing == "private":
            exclusive = True
            if not try_flock(fd):
                return "busy"
        else:
            # Asked again at each try: once its first user made it, a shared mount need not be had alone.
            exclusive = patience.lock(fd, lambda: sharing == "locked" or not directory.is_dir())
        if not os.fstat(fd).st_nlink:
            return "again"
        if not directory.is_dir():
            if not exclusive:
                return "again"
            self._create(key, fill)
        if exclusive and sharing == "shared":
            # Not atomic: whoever slips in and removes the mount unlinks the lock file.
            patience.lock(fd, lambda: False)
            if not os.fstat(fd).st_nlink:
                return "again"
        return "held"

    def _create(self, key: str, fill: Callable[[Path], None] | None) -> None:
        home = self._mounts / key
        partial = home / "partial"
        with rim("create a cache mount"):
            self._trash.delete(partial)
            home.mkdir(mode=0o700, exist_ok=True)
            hooks.point("store.mount:after_mkdir")
            try:
                partial.mkdir()
                partial.chmod(_ROOT_MODE)
                if fill is not None:
                    fill(partial)
                os.rename(partial, home / "fs")
            except BaseException:
                self._trash.delete(home)
                raise

    def _note(self, key: str, name: str, record_type: RecordType) -> None:
        now = time.time_ns()
        with self._db.transaction() as tx:
            tx.execute(
                "INSERT INTO mounts(id, name, description, size_bytes, measured_ns, created_ns, used_ns, uses, record_type)"
                " VALUES(?,?,?,0,0,?,?,1,?)"
                " ON CONFLICT(id) DO UPDATE SET measured_ns=0, used_ns=excluded.used_ns, uses=uses+1",
                (key, name, f"cached mount {name}", now, now, record_type),
            )


def mount_id(name: str, namespace: str, base: str) -> str:
    """Return the id of a cache mount: 16 characters, the same for the same three parts."""
    digest = sha256()
    for part in (name, namespace, base):
        data = part.encode("utf-8", "surrogateescape")
        digest.update(len(data).to_bytes(8, "big") + data)
    return b32encode(digest.digest()[:10]).decode("ascii").lower()


class _Patience:
    """Waits for locks, and tells when that takes long."""

    __slots__ = ("_told", "cancel")

    def __init__(self, cancel: CancelToken, told: Callable[[bool], None] | None) -> None:
        self.cancel = cancel
        self._told = told

    def lock(self, fd: int, exclusively: Callable[[], bool]) -> bool:
        """Wait for the lock, exclusively while that function says so; returns whether it was taken exclusively."""
        wait_s = _FIRST_WAIT_S
        show_s = time.monotonic() + _SHOWN_AFTER_S
        shown = False
        try:
            while True:
                exclusive = exclusively()
                if try_flock(fd, exclusive=exclusive):
                    return exclusive
                if self._told is not None and not shown and time.monotonic() > show_s:
                    shown = True
                    self._told(True)
                self.cancel.sleep(wait_s)
                wait_s = min(wait_s * 1.5, _LONGEST_WAIT_S)
        finally:
            if shown and self._told is not None:
                self._told(False)
