"""The store's rim: what the operating system and SQLite say becomes ``StoreError`` or ``StoreFull``."""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING

from crossdock.errors import CrossdockError, StoreError, StoreFull

if TYPE_CHECKING:
    from collections.abc import Iterator
    from logging import Logger

__all__ = ["explain", "log", "rim"]

_FULL_HINT = "free some space, or run `crossdock prune`"
_CHECK_HINT = "run `crossdock store check --repair`"
_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def rim(what: str) -> Iterator[None]:
    """Translate foreign errors of a block; ``what`` completes "cannot ...".

    Raises: StoreFull for a full disk or quota, StoreError for everything else.
    """
    try:
        yield
    except CrossdockError:
        raise
    except (OSError, sqlite3.Error) as exc:
        raise explain(exc, what) from exc


def explain(exc: OSError | sqlite3.Error, what: str) -> StoreError:
    """Return the error to raise for ``exc``."""
    if isinstance(exc, OSError):
        return _explain_os(exc, what)
    return _explain_sqlite(exc, what)


def _explain_os(exc: OSError, what: str) -> StoreError:
    where = f": {os.fsdecode(exc.filename)}" if isinstance(exc.filename, (str, bytes)) else ""
    summary = f"cannot {what}: {exc.strerror or exc}{where}"
    if exc.errno in _FULL_ERRNOS:
        return StoreFull(f"cannot {what}: no space left on device{where}", hint=_FULL_HINT, retryable=True)
    hints = {
        errno.EROFS: "the store is on a read-only file system; set CROSSDOCK_ROOT to a writable folder",
        errno.EACCES: "the store belongs to somebody else; set CROSSDOCK_ROOT to a folder of your own",
        errno.EPERM: "the store belongs to somebody else; set CROSSDOCK_ROOT to a folder of your own",
        errno.ENOENT: _CHECK_HINT,
        errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
        errno.EIO: "the disk reports errors; check it, then " + _CHECK_HINT,
    }
    return StoreError(summary, hint=hints.get(exc.errno or 0))


def _explain_sqlite(exc: sqlite3.Error, what: str) -> StoreError:
    # Connection-level misuse has no code; it is our defect but the text still says what happened.
    code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return StoreFull(f"cannot {what}: no space left on device", hint=_FULL_HINT, retryable=True)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        hint = "another process holds the store's metadata for long; see `fuser` on metadata.sqlite"
        return StoreError(f"cannot {what}: the metadata is locked", hint=hint, retryable=True)
    hints = {
        sqlite3.SQLITE_READONLY: "the store is read-only; set CROSSDOCK_ROOT to a writable folder",
        sqlite3.SQLITE_CANTOPEN: "the store cannot be written; set CROSSDOCK_ROOT to a folder of your own",
        sqlite3.SQLITE_CORRUPT: _CHECK_HINT,
        sqlite3.SQLITE_NOTADB: _CHECK_HINT,
        sqlite3.SQLITE_IOERR: "the disk may be full or failing; free some space, then " + _CHECK_HINT,
    }
    return StoreError(f"cannot {what}: {exc}", hint=hints.get(code))


def log() -> Logger:
    """Return the store's logger; ``logging`` is imported only by those who have something to say."""
    import logging

    return logging.getLogger("crossdock.engine.store")
