"""The metadata database: one SQLite file in WAL mode, one connection per open store, short transactions.

Writers of all processes queue on a lock file rather than on SQLite's busy handler, which sleeps and polls.
``synchronous=NORMAL``: a commit costs no fsync; after a power cut the newest commits may be missing but the
database is consistent. A process that dies loses nothing it committed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import struct
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from crossdock.engine.store.rim import explain, rim
from crossdock.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["SCHEMA_VERSION", "Database"]

#: ``PRAGMA user_version`` of a database this version reads and writes
SCHEMA_VERSION = 3

_BUSY_TIMEOUT_S = 60.0
#: to what the write-ahead log shrinks after a large transaction
_LOG_BYTES = 4 << 20
# Where SQLite's rollback and WAL modes put the shared lock of a database file (os.h: PENDING_BYTE + 2, 510
# bytes).
_SHARED_FIRST, _SHARED_SIZE = 0x40000000 + 2, 510

_SCHEMA = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE blobs(
  digest TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL, created_ns INTEGER NOT NULL, used_ns INTEGER NOT NULL,
  uses INTEGER NOT NULL DEFAULT 0, durable INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE layers(
  id TEXT PRIMARY KEY, kind TEXT NOT NULL, description TEXT NOT NULL, diff_id TEXT, size_bytes INTEGER NOT
  NULL, has_directory INTEGER NOT NULL, created_ns INTEGER NOT NULL, used_ns INTEGER NOT NULL, uses INTEGER
  NOT NULL DEFAULT 0, durable INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE INDEX layers_by_diff_id ON layers(diff_id, has_directory) WHERE diff_id IS NOT NULL;
CREATE TABLE layer_blobs(
  layer_id TEXT NOT NULL, digest TEXT NOT NULL, compression TEXT NOT NULL, descriptor TEXT NOT NULL,
  PRIMARY KEY(layer_id, digest)) WITHOUT ROWID;
CREATE INDEX layer_blobs_by_digest ON layer_blobs(digest);
CREATE TABLE repositories(
  digest TEXT NOT NULL, repository TEXT NOT NULL, PRIMARY KEY(digest, repository)) WITHOUT ROWID;
CREATE TABLE results(
  canonical TEXT PRIMARY KEY, outputs TEXT NOT NULL, vertex TEXT NOT NULL, description TEXT NOT NULL,
  record_type TEXT NOT NULL, created_ns INTEGER NOT NULL, used_ns INTEGER NOT NULL,
  uses INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE result_layers(
  layer_id TEXT NOT NULL, canonical TEXT NOT NULL, below TEXT NOT NULL,
  PRIMARY KEY(layer_id, canonical, below)) WITHOUT ROWID;
CREATE INDEX result_layers_by_canonical ON result_layers(canonical);
CREATE TABLE keys(key TEXT PRIMARY KEY, canonical TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX keys_by_canonical ON keys(canonical);
CREATE TABLE mounts(
  id TEXT PRIMARY KEY, name TEXT NOT NULL, description TEXT NOT NULL, size_bytes INTEGER NOT NULL,
  measured_ns INTEGER NOT NULL, created_ns INTEGER NOT NULL, used_ns INTEGER NOT NULL,
  uses INTEGER NOT NULL DEFAULT 0, record_type TEXT NOT NULL DEFAULT 'exec.cachemount') WITHOUT ROWID;
CREATE TABLE images(
  name TEXT PRIMARY KEY, digest TEXT NOT NULL, descriptor TEXT NOT NULL, created_ns INTEGER NOT NULL,
  updated_ns INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE image_blobs(
  name TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY(name, digest)) WITHOUT ROWID;
CREATE INDEX image_blobs_by_digest ON image_blobs(digest);
"""

# What every build asks of the whole store is kept, so that the answer does not take longer the more there is.
_NOT_DURABLE = """
CREATE INDEX blobs_not_durable ON blobs(digest) WHERE durable=0;
CREATE INDEX layers_not_durable ON layers(id) WHERE durable=0;
CREATE TABLE totals(name TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL) WITHOUT ROWID;
"""
_TOTAL_OF = """
INSERT INTO totals SELECT '{table}', coalesce(sum(size_bytes), 0) FROM {table};
CREATE TRIGGER {table}_added AFTER INSERT ON {table} BEGIN
  UPDATE totals SET size_bytes = size_bytes + NEW.size_bytes WHERE name='{table}'; END;
CREATE TRIGGER {table}_removed AFTER DELETE ON {table} BEGIN
  UPDATE totals SET size_bytes = size_bytes - OLD.size_bytes WHERE name='{table}'; END;
CREATE TRIGGER {table}_resized AFTER UPDATE OF size_bytes ON {table} BEGIN
  UPDATE totals SET size_bytes = size_bytes + NEW.size_bytes - OLD.size_bytes WHERE name='{table}'; END;
"""
_KEPT = _NOT_DURABLE + "".join(_TOTAL_OF.replace("{table}", name) for name in ("layers", "blobs", "mounts"))

# Schema steps: version they start from -> statements.
_MIGRATIONS: dict[int, str] = {
    1: "ALTER TABLE mounts ADD COLUMN record_type TEXT NOT NULL DEFAULT 'exec.cachemount';",
    2: _KEPT,
}


class Database:
    """One connection, usable from any thread; a lock makes each call or transaction atomic."""

    __slots__ = ("_connection", "_depth", "_lock", "_path", "_write_fd")

    def __init__(self, path: Path, write_lock: Path) -> None:
        """Open or create the database. Raises: StoreError when it is newer than this version, or damaged; StoreFull."""
        self._path = os.path.realpath(path)
        # Guards _connection and _depth. Held over SQLite calls and the wait for the write lock: both are
        # short.
        self._lock = threading.RLock()
        self._depth = 0
        self._write_fd = -1
        with rim("open the store's metadata"):
            self._write_fd = os.open(write_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                _check_room(self._path)
                self._connection = _connect(self._path)
            except (sqlite3.Error, OSError):
                os.close(self._write_fd)
                raise
            try:
                self._prepare()
                _reserve_index(self._path)
            except BaseException:
                self.close()
                raise

    def one(self, sql: str, arguments: Sequence[object] = ()) -> Any:
        """Return the first row as a tuple, or None."""
        try:
            with self._lock:
                return self._connection.execute(sql, arguments).fetchone()
        except sqlite3.Error as exc:
            raise explain(exc, "read the store's metadata") from exc

    def all(self, sql: str, arguments: Sequence[object] = ()) -> list[Any]:
        """Return all rows."""
        try:
            with self._lock:
                return self._connection.execute(sql, arguments).fetchall()
        except sqlite3.Error as exc:
            raise explain(exc, "read the store's metadata") from exc

    def execute(self, sql: str, arguments: Sequence[object] = ()) -> int:
        """Write with one statement; returns the number of rows changed. Raises: StoreFull, StoreError."""
        with self.transaction() as tx:
            return tx.execute(sql, arguments).rowcount

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Write atomically; a nested one joins the outer. Nothing slow may happen inside.

        Raises: StoreFull, StoreError; then nothing was written.
        """
        with self._lock:
            if self._depth:
                yield self._connection
                return
            self._depth = 1
            try:
                fcntl.flock(self._write_fd, fcntl.LOCK_EX)
                try:
                    yield from self._transact()
                finally:
                    fcntl.flock(self._write_fd, fcntl.LOCK_UN)
            finally:
                self._depth = 0

    def _transact(self) -> Iterator[sqlite3.Connection]:
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        except BaseException as exc:
            # A failed COMMIT may have rolled back already; a rollback that fails has nothing left to undo.
            if connection.in_transaction:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
            if isinstance(exc, sqlite3.Error):
                raise explain(exc, "write the store's metadata") from exc
            raise

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let all reads of the block see one state; writers go on. Other threads of this process wait."""
        with self._lock:
            if self._depth:
                yield
                return
            try:
                self._connection.execute("BEGIN")
            except sqlite3.Error as exc:
                raise explain(exc, "read the store's metadata") from exc
            try:
                yield
            finally:
                self._connection.execute("COMMIT")

    def checkpoint(self) -> None:
        """Move the write-ahead log into the database, fsynced, as far as readers allow."""
        with self._lock, rim("write the store's metadata"):
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def integrity(self) -> list[str]:
        """Return what SQLite finds wrong with the file, empty when nothing."""
        with self._lock, rim("check the store's metadata"):
            rows = self._connection.execute("PRAGMA quick_check").fetchall()
        return [row[0] for row in rows if row[0] != "ok"]

    def close(self) -> None:
        """Close; idempotent. The log is left for the next opener rather than checkpointed (8-15 ms of fsync)."""
        with self._lock:
            if self._write_fd < 0:
                return
            _disconnect(self._connection, self._path)
            os.close(self._write_fd)
            self._write_fd = -1

    def _prepare(self) -> None:
        connection = self._connection
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(f"PRAGMA journal_size_limit={_LOG_BYTES}")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == SCHEMA_VERSION:
            return
        if version > SCHEMA_VERSION:
            summary = f"the store's metadata has version {version}, this Crossdock knows {SCHEMA_VERSION}"
            raise StoreError(summary, hint="use the newer Crossdock, or set CROSSDOCK_ROOT to another folder")
        _switch_to_wal(connection)
        with self.transaction():
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                _run_script(connection, _SCHEMA + _KEPT)
                version = SCHEMA_VERSION
            while version < SCHEMA_VERSION:
                _run_script(connection, _MIGRATIONS[version])
                version += 1
            connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """Turn write-ahead logging on; two processes may make a store at once.

    SQLite does not wait for this one, whatever its timeout: it needs the file alone and fails at once.
    """
    deadline = time.monotonic() + _BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").fetchone()
        except sqlite3.OperationalError as exc:
            if "locked" not in str(exc) or time.monotonic() > deadline:
                raise
            time.sleep(0.005)
        else:
            return


def _run_script(connection: sqlite3.Connection, script: str) -> None:
    # Not executescript(): that commits the open transaction first.
    statement = ""
    for part in script.split(";")[:-1]:
        statement += part + ";"
        if sqlite3.complete_statement(statement):  # the body of a trigger has semicolons of its own
            connection.execute(statement)
            statement = ""


# Open connections by database path. A close(2) of any descriptor of the file drops SQLite's POSIX locks of
# the whole process (https://www.sqlite.org/howtocorrupt.html section 2.2), so only the last close may use
# one.
_open_lock = threading.Lock()
_open_count: dict[str, int] = {}
# Descriptors of the logs' indices, for the same reason kept as long.
_indices: dict[str, int] = {}
#: SQLite makes an index in pieces of this size; one piece is enough for four times the log of _LOG_BYTES
_INDEX_BYTES = 32 << 10


def _has_small_blocks(path: str) -> bool:
    """Whether a page of memory is several blocks of the file system: SQLite then leaves holes in the index that it maps.

    A page of a hole is allocated when it is first written to; on a full disk that is a SIGBUS.
    """
    return os.statvfs(os.path.dirname(path)).f_frsize < os.sysconf("SC_PAGE_SIZE")


def _check_room(path: str) -> None:
    """Refuse to open where SQLite would be killed. Raises: OSError."""
    if _has_small_blocks(path):
        disk = os.statvfs(os.path.dirname(path))
        if disk.f_bavail * disk.f_frsize < 2 * _INDEX_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def _reserve_index(path: str) -> None:
    """Fill the holes of the index of an open database. Raises: OSError."""
    if not _has_small_blocks(path):
        return
    with _open_lock:
        if path not in _indices:
            _indices[path] = os.open(f"{path}-shm", os.O_RDWR | os.O_CLOEXEC)
        os.posix_fallocate(_indices[path], 0, _INDEX_BYTES)


def _connect(path: str) -> sqlite3.Connection:
    with _open_lock:
        connection = sqlite3.connect(
            path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        _open_count[path] = _open_count.get(path, 0) + 1
    return connection


def _disconnect(connection: sqlite3.Connection, path: str) -> None:
    """Close without a checkpoint, which SQLite makes only if it can lock the database file exclusively.

    An open-file-description lock conflicts even with locks of the same process. (Python 3.12 has a setting
    for it.)
    """
    with _open_lock:
        _open_count[path] -= 1
        if _open_count[path]:
            connection.close()
            return
        del _open_count[path]
        guard = -1
        with suppress(OSError):  # without the lock, closing is slower, nothing else
            guard = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            lock = struct.pack("hhqqi", fcntl.F_RDLCK, os.SEEK_SET, _SHARED_FIRST, _SHARED_SIZE, 0)
            fcntl.fcntl(guard, fcntl.F_OFD_SETLK, lock)
        connection.close()
        index = _indices.pop(path, -1)
        for fd in (guard, index):
            if fd >= 0:
                os.close(fd)
