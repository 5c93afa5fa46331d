"""Image store: names of images kept locally, as the `image` exporter makes them.

A name protects everything its descriptor leads to: manifests, configs, and layer blobs as far as they are
stored.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from crossdock.engine.store.leases import BLOB
from crossdock.errors import StoreError
from crossdock.image.descriptor import Descriptor
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from crossdock.engine.store.content import ContentStore
    from crossdock.engine.store.db import Database
    from crossdock.engine.store.leases import Lease
    from crossdock.engine.store.locks import RemovalLock

__all__ = ["ImageStore", "StoredImage"]

_MAX_DEPTH = 8


class StoredImage(NamedTuple):
    """A name and what it means; times in nanoseconds since the epoch."""

    name: str
    descriptor: Descriptor
    created_ns: int
    updated_ns: int


class ImageStore:
    """Names of images. Safe from any thread and process."""

    __slots__ = ("_content", "_db", "_removal")

    def __init__(self, db: Database, content: ContentStore, removal: RemovalLock) -> None:
        self._db = db
        self._content = content
        self._removal = removal

    def put(self, name: str, descriptor: Descriptor, lease: Lease) -> None:
        """Give an image a name, replacing an earlier meaning; its manifest or index must be stored.

        Raises: StoreError when it is not; StoreFull.
        """
        if not self._content.has(descriptor.digest, lease):
            summary = f"cannot name {name}: its manifest {descriptor.digest} is not in the store"
            raise StoreError(summary)
        digests = self._closure(descriptor.digest)
        now = time.time_ns()
        text = json.dumps(descriptor.to_json(), separators=(",", ":"))
        with self._removal.adding():
            lease.append([BLOB + digest for digest in digests])
            with self._db.transaction() as tx:
                tx.execute(
                    "INSERT INTO images(name, digest, descriptor, created_ns, updated_ns) VALUES(?,?,?,?,?)"
                    " ON CONFLICT(name) DO UPDATE SET digest=excluded.digest, descriptor=excluded.descriptor,"
                    " updated_ns=excluded.updated_ns",
                    (name, descriptor.digest, text, now, now),
                )
                tx.execute("DELETE FROM image_blobs WHERE name=?", (name,))
                rows = [(name, digest) for digest in digests]
                tx.executemany("INSERT INTO image_blobs(name, digest) VALUES(?,?)", rows)

    def get(self, name: str) -> StoredImage | None:
        """Return an image by name."""
        row = self._db.one(
            "SELECT name, descriptor, created_ns, updated_ns FROM images WHERE name=?", (name,)
        )
        return None if row is None else _image(row)

    def all(self) -> list[StoredImage]:
        """Return all images in order of name."""
        rows = self._db.all("SELECT name, descriptor, created_ns, updated_ns FROM images ORDER BY name")
        return [_image(row) for row in rows]

    def remove(self, name: str) -> bool:
        """Forget a name; False when there is no such. The content stays until collected."""
        with self._db.transaction() as tx:
            tx.execute("DELETE FROM image_blobs WHERE name=?", (name,))
            return tx.execute("DELETE FROM images WHERE name=?", (name,)).rowcount > 0

    def _closure(self, digest: str) -> list[str]:
        """Return the digest and all it leads to. A layer that is not stored counts: it may come."""
        seen: dict[str, None] = {}
        level = [digest]
        for _ in range(_MAX_DEPTH):
            below: list[str] = []
            for one in level:
                if one not in seen:
                    seen[one] = None
                    below += self._children(one)
            level = below
        return list(seen)

    def _children(self, digest: str) -> list[str]:
        size = self._content.size(digest)
        if size is None or size > _MAX_MANIFEST_BYTES:
            return []
        data = self._content.read(digest)
        if not data.startswith(b"{"):
            return []
        try:
            document = json.loads(data)
        except ValueError:
            return []
        items: list[object] = []
        for field in ("manifests", "layers", "config"):
            value = document.get(field)
            items += value if isinstance(value, list) else [value]
        return [x["digest"] for x in items if isinstance(x, dict) and isinstance(x.get("digest"), str)]


_MAX_MANIFEST_BYTES = 8 << 20


def _image(row: tuple[str, str, int, int]) -> StoredImage:
    return StoredImage(row[0], Descriptor.from_json(json.loads(row[1]), row[0]), row[2], row[3])
