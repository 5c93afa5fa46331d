"""Making the store survive a power cut: one ``syncfs`` for everything written since the last."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crossdock.engine.store.rim import rim

if TYPE_CHECKING:
    from crossdock.engine.store.store import Store

__all__ = ["sync"]


def sync(store: Store) -> None:
    """Write all to disk and mark what was stored before as durable. Raises: StoreFull, StoreError."""
    blobs = store.db.all("SELECT digest FROM blobs WHERE durable=0")
    layers = store.db.all("SELECT id FROM layers WHERE durable=0")
    if not blobs and not layers:
        return
    _syncfs(store)
    with store.db.transaction() as tx:
        tx.executemany("UPDATE blobs SET durable=1 WHERE digest=?", blobs)
        tx.executemany("UPDATE layers SET durable=1 WHERE id=?", layers)
    # The marks are in the write-ahead log, which SQLite brings back as it is: a checkpoint would cost three times as much.
    with rim("write the store's log to disk"):
        fd = os.open(f"{store.layout.database}-wal", os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)


def _syncfs(store: Store) -> None:
    # Python has os.sync (all file systems) but not syncfs.
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    with rim("write the store to disk"):
        fd = os.open(store.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if library.syncfs(fd) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), os.fspath(store.root))
        finally:
            os.close(fd)
