"""Removing a whole store: only what is a store, only its own files, and only while nobody uses it."""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

from crossdock.engine.store.gc import GCPolicy
from crossdock.engine.store.rim import rim
from crossdock.engine.store.store import Store
from crossdock.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path

    from crossdock.cancel import CancelToken

__all__ = ["remove_store"]

#: what may be large or deep; the rest are files and flat folders
_TREES = ("content", "layers", "mounts", "stat", "sandbox", "history")
_REST = (
    *("builders", "leases", "locks", "trash"),
    *("metadata.sqlite", "metadata.sqlite-wal", "metadata.sqlite-shm"),
    *("ballast", "unmountable", "workerid", "version.new", "creation.lock"),
)


def remove_store(root: Path, cancel: CancelToken) -> bool:
    """Remove the store in ``root``, and the folder if nothing else is in it; False when there is none.

    It is pruned first, so that a store is left, only emptier, when this is killed then.
    Raises: StoreError when a running build uses it, or it is not a store; the token's cause.
    """
    root = root.resolve()
    if not (root / "version").exists():
        return False
    with Store.open(root) as store:
        _check_idle(store)
        for image in store.images.all():
            store.images.remove(image.name)
        store.prune(GCPolicy(all=True), cancel=cancel)
        with store.removal.removing():
            _check_idle(store)
            store.layout.version.unlink()
        with rim("remove the store"):
            lock = os.open(root / "creation.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for name in _TREES:
                store.trash.delete(root / name)
            store.trash.empty()
            with rim("remove the store"):
                for name in _REST:
                    _remove(root / name)
        finally:
            os.close(lock)
    with suppress(OSError):  # other files are in it, or it is a mount point
        root.rmdir()
    return True


def _check_idle(store: Store) -> None:
    if store.leases.live_count():
        summary = f"the store {store.root} is used by a running build"
        raise StoreError(summary, hint="try again when it is done, or keep the store with --keep-state")


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        shutil.rmtree(path)
