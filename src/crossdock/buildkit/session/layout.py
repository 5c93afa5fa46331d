"""OCI layouts that a session offers, by where their blobs lie."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["DIGEST", "LayoutStore"]

DIGEST = re.compile(r"(sha256|sha384|sha512):[0-9a-f]{64,128}\Z")


class LayoutStore:
    """The blobs of one OCI layout directory."""

    def __init__(self, root: Path, *, writable: bool = False) -> None:
        self.root = root
        self.writable = writable

    def path(self, digest: str) -> Path | None:
        """Return where a blob lies or would lie; ``None`` for a malformed digest."""
        if not DIGEST.match(digest):
            return None
        algorithm, _, value = digest.partition(":")
        return self.root / "blobs" / algorithm / value
