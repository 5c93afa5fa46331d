"""Where blobs come from besides registries that images named: imported build caches, for the length of a process."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager

    from crossdock.cancel import CancelToken
    from crossdock.image.descriptor import Descriptor

__all__ = ["BlobSource", "BlobSources", "BlobStream"]


class BlobStream(Protocol):
    """A blob being read; verified by its end."""

    def read(self, size: int, /) -> bytes:
        """Read up to ``size`` bytes; nothing at the end."""
        ...


class BlobSource(Protocol):
    """A place that has blobs."""

    name: str

    def open_blob(self, blob: Descriptor, cancel: CancelToken, /) -> AbstractContextManager[BlobStream]:
        """Open a blob. Raises: CacheError, RegistryError; the token's cause."""
        ...


class BlobSources:
    """Which sources have which blobs. Safe from any thread."""

    __slots__ = ("_by_digest", "_lock", "failed")

    def __init__(self) -> None:
        # Guards _by_digest.
        self._lock = threading.Lock()
        self._by_digest: dict[str, tuple[BlobSource, ...]] = {}
        #: sources that did not give what they promised, and why; single dict operations only
        self.failed: dict[str, str] = {}

    def add(self, source: BlobSource, digests: Iterable[str]) -> None:
        """Note that a source has blobs."""
        with self._lock:
            for digest in digests:
                known = self._by_digest.get(digest, ())
                if source not in known:
                    self._by_digest[digest] = (*known, source)

    def of(self, digest: str) -> tuple[BlobSource, ...]:
        """Return the sources that have a blob."""
        with self._lock:
            return self._by_digest.get(digest, ())

    def drop(self, source: BlobSource) -> None:
        """Forget a source."""
        with self._lock:
            for digest, sources in list(self._by_digest.items()):
                left = tuple(one for one in sources if one is not source)
                if left:
                    self._by_digest[digest] = left
                else:
                    del self._by_digest[digest]
