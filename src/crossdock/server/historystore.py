"""Records of builds on disk: a file ``REF.pb`` each, and blobs named by digest which records share.

``REF.blobs`` lists the blobs of a record, one digest a line. It is written before the record: a blob that no list names
belongs to nobody, and goes when the store is next opened.

Not for: what is in a record, and how many there may be (``history``).
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections import Counter
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from crossdock.buildkit.proto import control_pb2
from crossdock.errors import StoreError, translate
from crossdock.wholefile import write_whole

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager
    from pathlib import Path

__all__ = ["HistoryStore"]

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_REF = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_UNFINISHED = re.compile(r"\..*\.[0-9a-f]{8}")

Record = control_pb2.BuildHistoryRecord


class HistoryStore:
    """The files. Safe from any thread; one process at a time."""

    def __init__(self, root: Path) -> None:
        """Open the folder. Raises: StoreError."""
        self._root = root
        self._blobs = root / "blobs"
        # Guards _uses, how many records have a blob, and the files: held from the first blob of a record to its end.
        self._lock = threading.RLock()
        self._uses: Counter[str] = Counter()
        with translate({OSError: _unreadable}):
            self._blobs.mkdir(parents=True, exist_ok=True)
            for path in root.glob("*.blobs"):
                self._uses.update(path.read_text(encoding="ascii").split())

    def writing(self) -> AbstractContextManager[object]:
        """Return a block in which blobs are put and the record that has them is written."""
        return self._lock

    @staticmethod
    def accepts(ref: str) -> bool:
        """Whether a name can be one of a record."""
        return _REF.fullmatch(ref) is not None

    def records(self) -> Iterable[Record]:
        """Yield all records, removing those that a crash left half-written. Raises: StoreError."""
        for path in list(self._root.glob("*.pb")):
            record = self.read(path.stem)
            if record is not None and record.Ref == path.stem and path.with_suffix(".blobs").exists():
                yield record
            else:
                self.remove(path.stem)

    def tidy(self) -> None:
        """Remove what belongs to no record. Raises: StoreError."""
        with self._lock, translate({OSError: _unreadable}):
            known = {path.stem for path in self._root.glob("*.pb")}
            for path in self._root.glob("*.blobs"):
                if path.stem not in known:
                    self.remove(path.stem)
            for path in (*self._root.iterdir(), *self._blobs.iterdir()):
                if _UNFINISHED.fullmatch(path.name):
                    path.unlink(missing_ok=True)
            for path in self._blobs.iterdir():
                if not self._uses[f"sha256:{path.name}"]:
                    path.unlink(missing_ok=True)

    def read(self, ref: str) -> Record | None:
        """Return a record; ``None`` when there is none that can be read. Raises: StoreError."""
        with translate({OSError: _unreadable}):
            try:
                return Record.FromString((self._root / f"{ref}.pb").read_bytes())
            except (FileNotFoundError, DecodeError):
                return None

    def write(self, record: Record, blobs: Iterable[str]) -> None:
        """Write a record, which has these blobs. Raises: StoreError, StoreFull."""
        digests = sorted({digest for digest in blobs if digest})
        with self._lock:
            before = self.blobs_of(record.Ref)
            if digests != before:
                text = "".join(f"{digest}\n" for digest in digests)
                _replace(self._root / f"{record.Ref}.blobs", text.encode())
                self._uses.update(digests)
                self._uses.subtract(before)
            _replace(self._root / f"{record.Ref}.pb", record.SerializeToString())

    def remove(self, ref: str) -> None:
        """Remove a record, and its blobs unless others have them. Raises: StoreError."""
        with self._lock, translate({OSError: _unreadable}):
            digests = self.blobs_of(ref)
            (self._root / f"{ref}.pb").unlink(missing_ok=True)
            (self._root / f"{ref}.blobs").unlink(missing_ok=True)
            self._uses.subtract(digests)
            for digest in digests:
                path = self._path(digest)
                if self._uses[digest] <= 0 and path is not None:
                    del self._uses[digest]
                    path.unlink(missing_ok=True)

    def put(self, data: bytes, media_type: str) -> control_pb2.Descriptor:
        """Store a blob, within :meth:`writing`. Raises: StoreError, StoreFull."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        path = self._blobs / digest.removeprefix("sha256:")
        with self._lock:
            if not self._uses[digest] or not path.exists():
                _replace(path, data)
        return control_pb2.Descriptor(media_type=media_type, digest=digest, size=len(data))

    def blob(self, digest: str) -> bytes | None:
        """Return a blob; ``None`` when there is none. Raises: StoreError."""
        path = self._path(digest)
        if path is None:
            return None
        with translate({OSError: _unreadable}):
            try:
                return path.read_bytes()
            except FileNotFoundError:
                return None

    def blobs_of(self, ref: str) -> list[str]:
        """Return the digests of a record's blobs. Raises: StoreError."""
        with translate({OSError: _unreadable}):
            try:
                return (self._root / f"{ref}.blobs").read_text(encoding="ascii").split()
            except FileNotFoundError:
                return []

    def _path(self, digest: str) -> Path | None:
        match = _DIGEST.fullmatch(digest)
        return self._blobs / match[1] if match else None


def _replace(path: Path, data: bytes) -> None:
    """Write a file whole. Raises: StoreError, StoreFull."""
    with translate({OSError: _unreadable}):
        write_whole(os.fspath(path), data)


def _unreadable(exc: BaseException) -> StoreError:
    return StoreError(f"cannot use the build history: {exc}")
