"""What a place that holds a cache must do, and what all places share: names, bounds of documents, verified reading."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING, Protocol

from crossdock.errors import CacheError, DigestMismatch
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager
    from typing import BinaryIO

    from crossdock.cancel import CancelToken
    from crossdock.engine.exporters.report import Report
    from crossdock.engine.remotecache.config import CacheConfig
    from crossdock.image.descriptor import Descriptor

__all__ = ["ANY", "MAX_DOCUMENT", "Backend", "LayerToWrite", "Readable", "Stored", "VerifiedReader"]

#: bytes of a manifest or config that is read; BuildKit reads no more than 1 MiB, and we write no more
MAX_DOCUMENT = 16 << 20
#: stands for every version in :meth:`Backend.replace`
ANY = "*"


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int, /) -> bytes:
        """Read up to ``size`` bytes; nothing at the end."""
        ...


class Stored(NamedTuple):
    """A cache as found."""

    config: CacheConfig
    #: changes whenever the cache does; for :meth:`Backend.replace`
    version: str


class LayerToWrite(NamedTuple):
    """A layer blob on its way into a cache."""

    descriptor: Descriptor
    #: content from an offset on; fetched first when only another place has it
    open_at: Callable[[int], BinaryIO]
    #: ``host/name`` of repositories known to have it
    repositories: tuple[str, ...] = ()


class Backend(Protocol):
    """One place that holds a cache. Methods raise CacheError or the errors of their transport, and the token's cause."""

    #: as progress shows it, without secrets: ``registry.example.com/app:cache``, ``local:DIR``
    name: str
    #: of the vertex that exports
    title: str
    #: repositories that its blobs can be fetched from as those of images
    repositories: tuple[str, ...]
    #: whether layers that the cache lists may be gone
    checks_layers: bool
    #: layers sent at once
    senders: int

    def load(self, cancel: CancelToken) -> Stored | None:
        """Return what is there, ``None`` when there is nothing."""
        ...

    def open_blob(self, blob: Descriptor, cancel: CancelToken, /) -> AbstractContextManager[Readable]:
        """Open a layer; the reader verifies size and digest by its end."""
        ...

    def write_blob(self, layer: LayerToWrite, report: Report, cancel: CancelToken) -> None:
        """Have a layer there; sends nothing that is there."""
        ...

    def is_there(self, blob: Descriptor, cancel: CancelToken) -> bool:
        """Whether a layer that the cache lists is (still) there."""
        ...

    def replace(
        self, config: CacheConfig, previous: str | None, report: Report, cancel: CancelToken
    ) -> Mapping[str, str] | None:
        """Make ``config`` the cache if ``previous`` is still its version; returns response entries, ``None`` otherwise."""
        ...

    def lock(self, cancel: CancelToken) -> AbstractContextManager[object]:
        """Hold off other writers of this machine, where that can be done."""
        ...


class VerifiedReader(io.RawIOBase):
    """Reads a blob and refuses it at the end when size or digest differ. Closes what it reads.

    Raises on reading: DigestMismatch; CacheError when the source breaks off.
    """

    def __init__(self, source: Readable, blob: Descriptor, where: str, close: Callable[[], object]) -> None:
        super().__init__()
        self._source = source
        self._blob = blob
        self._where = where
        self._close = close
        self._hash = hashlib.new(blob.digest.partition(":")[0])
        self._left = blob.size

    def readable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Read up to ``size`` bytes; the last of them only if all is well."""
        want = self._left if size < 0 else min(size, self._left)
        parts: list[bytes] = []
        while want:
            data = self._source.read(want)
            if not data:
                summary = f"{self._where}: blob {self._blob.digest} is {self._left} bytes too short"
                raise CacheError(summary, hint="the cache is damaged: export it anew")
            self._hash.update(data)
            self._left -= len(data)
            want -= len(data)
            parts.append(data)
        if not self._left:
            self._check()
        return b"".join(parts)

    def _check(self) -> None:
        algorithm = self._blob.digest.partition(":")[0]
        actual = f"{algorithm}:{self._hash.hexdigest()}"
        if actual != self._blob.digest:
            summary = f"{self._where}: a blob has other content than its digest says"
            detail = f"expected: {self._blob.digest}\nactual:   {actual}"
            raise DigestMismatch(summary, detail=detail, hint="the cache is damaged: export it anew")

    def close(self) -> None:
        """Close the source too; idempotent."""
        if not self.closed:
            super().close()
            self._close()
