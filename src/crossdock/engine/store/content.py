"""Content store: blobs by digest.

A blob is written to ``content/ingest``, hashed on the way, and renamed into place; its row in the database
makes it visible. Nothing is fsynced one by one: ``Store.sync`` makes all blobs and layers durable with one
``syncfs`` and marks them; what is not marked when the machine comes back from a power cut is verified before
it is trusted.

Spec: image-spec 1.1, image-layout.md "Blobs"; descriptor.md "Verification".
"""

from __future__ import annotations

import io
import os
import time
from typing import TYPE_CHECKING, BinaryIO, cast

from crossdock.engine.store import hooks
from crossdock.engine.store.leases import BLOB
from crossdock.engine.store.rim import rim
from crossdock.engine.store.unfinished import note_unfinished
from crossdock.errors import DigestMismatch, StoreError
from crossdock.hashing import new, sha256, sha256_stream
from crossdock.image.digest import Digest, digest_hex, parse_digest

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from crossdock.engine.store.db import Database
    from crossdock.engine.store.layout import Layout
    from crossdock.engine.store.leases import Lease
    from crossdock.engine.store.locks import RemovalLock
    from crossdock.image.descriptor import Descriptor

__all__ = ["BlobWriter", "ContentStore"]

#: small writes are gathered into blocks of this size before hashing and writing
_BLOCK_BYTES = 256 << 10


_INSERT = (
    "INSERT INTO blobs(digest, size_bytes, created_ns, used_ns) VALUES(?,?,?,?) ON CONFLICT(digest) DO UPDATE SET"
    " size_bytes=excluded.size_bytes, used_ns=excluded.used_ns, durable=0"
)


class ContentStore:
    """Blobs of one store. Safe from any thread and process."""

    __slots__ = ("_db", "_layout", "_removal")

    def __init__(self, layout: Layout, db: Database, removal: RemovalLock) -> None:
        self._layout = layout
        self._db = db
        self._removal = removal

    def has(self, digest: str, lease: Lease | None = None) -> bool:
        """True when the blob is stored; with ``lease`` it then also stays."""
        return self.size(digest, lease) is not None

    def size(self, digest: str, lease: Lease | None = None) -> int | None:
        """Return the size in bytes, None when the blob is not stored; with ``lease`` it then also stays."""
        if lease is not None:
            lease.add((BLOB + digest,))
        row = self._db.one("SELECT size_bytes FROM blobs WHERE digest=?", (digest,))
        return None if row is None else cast("int", row[0])

    def path(self, digest: str) -> Path:
        """Return where the blob is, or would be."""
        algorithm, _, value = digest.partition(":")
        return self._layout.blobs / algorithm / value

    def open(self, digest: str) -> BinaryIO:
        """Open a blob for reading from the start; size and digest are checked when the end is read.

        The caller closes it. Raises: StoreError when it is not stored; DigestMismatch from the read that
        meets the end.
        """
        size = self._stored_size(digest)
        reader = _VerifiedReader(self._open_file(digest), parse_digest(digest), size)
        return cast("BinaryIO", io.BufferedReader(reader, _BLOCK_BYTES))

    def open_at(self, digest: str, offset: int = 0) -> BinaryIO:
        """Open a blob at an offset, unverified and unbuffered: for uploads, whose receiver verifies.

        Raises: StoreError when it is not stored.
        """
        self._stored_size(digest)
        file = self._open_file(digest)
        file.seek(offset)
        return cast("BinaryIO", file)

    def read(self, digest: str) -> bytes:
        """Return a whole blob, verified: for manifests and configs.

        Raises: StoreError when it is not stored; DigestMismatch.
        """
        size = self._stored_size(digest)
        with self._open_file(digest) as file, rim("read a blob"):
            data = file.read()
        hasher = new(digest.partition(":")[0])
        hasher.update(data)
        _verify(parse_digest(digest), size, hasher.hexdigest(), len(data))
        return data

    def put_bytes(self, data: bytes, lease: Lease) -> Digest:
        """Store bytes; idempotent. Raises: StoreFull, StoreError."""
        digest = Digest("sha256:" + sha256(data).hexdigest())
        if self.size(digest, lease) != len(data):
            with self.writer(lease) as writer:
                writer.write(data)
                writer.commit()
        return digest

    def writer(self, lease: Lease, *, hashing: bool = True) -> BlobWriter:
        """Start writing a blob; use it as a context manager, which discards it unless committed.

        Without ``hashing`` the digest given to ``commit`` is believed: for producers who hash what they
        write.
        Raises: StoreFull, StoreError.
        """
        path = self._layout.ingest / f"{lease.id}.{lease.number()}"
        note_unfinished(path.name)
        with rim("write a blob"):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        return BlobWriter(self, path, fd, lease, hashing=hashing)

    def add_file(self, path: Path, lease: Lease) -> tuple[Digest, int]:
        """Store a copy of a file; returns digest and size. Raises: StoreFull, StoreError, OSError for the source."""
        with path.open("rb", buffering=0) as source, self.writer(lease) as writer:
            while block := source.read(_BLOCK_BYTES):
                writer.write(block)
            return writer.commit()

    def forget(self, digest: str) -> None:
        """Drop what is known of a blob that turned out missing or damaged, so that it is fetched or made again."""
        self._db.execute("DELETE FROM blobs WHERE digest=?", (digest,))

    def adopt(self, source: Path, digest: Digest, size: int, lease: Lease) -> None:
        """Make a written file the blob (BlobWriter's last step). Idempotent."""
        now = time.time_ns()
        with rim("store a blob"):
            target = self.path(digest)
            if not digest.startswith("sha256:"):
                target.parent.mkdir(mode=0o700, exist_ok=True)
            try:
                with self._removal.adding():
                    lease.append((BLOB + digest,))
                    hooks.point("store.blob:before_rename")
                    os.rename(source, target)
                    hooks.point("store.blob:after_rename")
                    self._db.execute(_INSERT, (digest, size, now, now))
            except BaseException:
                self._drop_unrecorded(digest)
                raise

    def digests(self) -> Iterable[str]:
        """Return the digests of all stored blobs."""
        return [row[0] for row in self._db.all("SELECT digest FROM blobs")]

    def _drop_unrecorded(self, digest: str) -> None:
        """Remove a file whose row could not be written; nobody is just adding it while we hold the lock."""
        with self._removal.removing():
            if self.size(digest) is None:
                self.path(digest).unlink(missing_ok=True)

    def _stored_size(self, digest: str) -> int:
        size = self.size(digest)
        if size is None:
            summary = f"the store has no blob {digest}"
            raise StoreError(summary)
        return size

    def _open_file(self, digest: str) -> io.FileIO:
        try:
            return io.FileIO(self.path(digest), "rb")
        except FileNotFoundError as exc:
            self.forget(digest)
            summary = f"the blob {digest} is missing from the store"
            hint = "build again: it will be fetched or made anew; `crossdock store check` looks for more"
            raise StoreError(summary, hint=hint, retryable=True) from exc


class BlobWriter(io.RawIOBase):
    """A blob being written. ``write`` takes bytes-like objects; closing without ``commit`` discards it."""

    def __init__(self, store: ContentStore, path: Path, fd: int, lease: Lease, *, hashing: bool) -> None:
        self._store = store
        self._path = path
        self._fd = fd
        self._lease = lease
        self._hash = sha256_stream() if hashing else None
        self._pending = bytearray()
        self._size = 0

    def writable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the number of bytes written so far."""
        return self._size

    def write(self, data: bytes | bytearray | memoryview, /) -> int:  # type: ignore[override]
        """Append ``data``, all of it. Raises: StoreFull, StoreError."""
        length = len(data) if isinstance(data, (bytes, bytearray)) else memoryview(data).nbytes
        self._size += length
        if length < _BLOCK_BYTES:
            self._pending += data
            if len(self._pending) < _BLOCK_BYTES:
                return length
            block = self._pending
            self._pending = bytearray()
            self._put(block)
        else:
            self._drain()
            self._put(data)
        return length

    def commit(self, expect: Descriptor | None = None) -> tuple[Digest, int]:
        """Make the blob visible; idempotent: success means "it is stored". Returns digest and size.

        Raises: DigestMismatch when size or digest are not those of ``expect`` (nothing is stored); StoreFull;
        StoreError.
        """
        self._drain()
        digest = self._digest(expect)
        try:
            os.close(self._fd)
            self._fd = -1
            self._store.adopt(self._path, digest, self._size, self._lease)
        finally:
            self.close()
        return digest, self._size

    def close(self) -> None:
        """Discard what was not committed; idempotent."""
        if self.closed:
            return
        super().close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._path.unlink(missing_ok=True)

    def _drain(self) -> None:
        if self._pending:
            block, self._pending = self._pending, bytearray()
            self._put(block)

    def _put(self, data: bytes | bytearray | memoryview) -> None:
        if self._hash is not None:
            self._hash.update(data)
        view = memoryview(data).cast("B")
        with rim("write a blob"):
            while view:
                view = view[os.write(self._fd, view) :]

    def _digest(self, expect: Descriptor | None) -> Digest:
        if expect is None:
            if self._hash is None:
                summary = "a blob written without hashing needs its descriptor"
                raise StoreError(summary)
            return Digest("sha256:" + self._hash.hexdigest())
        if not expect.digest.startswith("sha256:") and self._hash is not None:
            actual = self._rehash(expect.digest.partition(":")[0])
        else:
            actual = digest_hex(expect.digest) if self._hash is None else self._hash.hexdigest()
        _verify(expect.digest, expect.size, actual, self._size)
        return expect.digest

    def _rehash(self, algorithm: str) -> str:
        """Hash the written file again: digests other than sha256 are too rare to carry a second hash along."""
        import hashlib

        with rim("read a blob"), self._path.open("rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest()


class _VerifiedReader(io.RawIOBase):
    """Raw reader that refuses to report the end of a blob whose size or digest is wrong."""

    def __init__(self, file: io.FileIO, digest: Digest, size: int) -> None:
        self._file = file
        self._expected = digest
        self._size = size
        self._hash = new(digest.partition(":")[0])
        self._seen = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        with rim("read a blob"):
            count = self._file.readinto(buffer)
        if count:
            self._hash.update(memoryview(buffer)[:count])
            self._seen += count
        elif len(buffer):
            _verify(self._expected, self._size, self._hash.hexdigest(), self._seen)
        return count or 0

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _verify(digest: Digest, size: int, actual_hex: str, actual_size: int) -> None:
    if actual_size != size:
        summary = f"blob {digest} has {actual_size} bytes, {size} were announced"
        raise DigestMismatch(summary, hint="what was read is truncated or damaged", retryable=True)
    if actual_hex != digest_hex(digest):
        summary = f"blob {digest} has other content (digest {actual_hex})"
        raise DigestMismatch(summary, hint="what was read is damaged or tampered with", retryable=True)
