"""Builds that ignore the cache and run at once share what they make anew, as those of one BuildKit do.

Results of such a build have keys with a nonce in them. Builds that begin within a second of each other, while the one
that made the nonce or one that joined it still runs, use the same: each step is then run by whoever comes first, and
the others wait for it. What was made before that second is never used.
"""

from __future__ import annotations

import fcntl
import os
import time
from typing import TYPE_CHECKING

from crossdock.engine.store.locks import try_flock

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FreshRun"]

_JOIN_NS = 1_000_000_000
_SIZE = 64


class FreshRun:
    """One solve's part in a run; close it when the solve is over."""

    def __init__(self, locks: Path) -> None:
        self._path = locks / "fresh"
        self._fd = -1
        self._nonce = ""

    def __enter__(self) -> FreshRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the run; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def nonce(self) -> str:
        """Return the nonce of this run, shared with builds that begin at the same time. Raises: OSError."""
        if not self._nonce:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            alone = try_flock(self._fd)
            # The lock says that the nonce is alive; it is held shared until the solve ends.
            fcntl.flock(self._fd, fcntl.LOCK_SH)
            self._nonce = ("" if alone else self._join()) or self._begin()
        return self._nonce

    def _join(self) -> str:
        nonce, _, began = os.pread(self._fd, _SIZE, 0).decode("ascii", "replace").strip().partition(" ")
        if not began.isdecimal() or not 0 <= time.time_ns() - int(began) <= _JOIN_NS:
            return ""
        return nonce

    def _begin(self) -> str:
        nonce = os.urandom(8).hex()
        os.pwrite(self._fd, f"{nonce} {time.time_ns()}".ljust(_SIZE).encode(), 0)
        return nonce
