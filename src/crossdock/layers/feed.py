"""Read ahead: decompress and hash a stream in a thread, while the caller uses what came before.

A stream of one block uses no thread. The digest covers every byte, also those after an archive's end.
"""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

from crossdock.hashing import sha256_stream
from crossdock.image.digest import DiffId

if TYPE_CHECKING:
    from crossdock.cancel import CancelToken
    from crossdock.layers.decompress import ByteSource

__all__ = ["BlockFeed"]

_BLOCK = 1 << 20
_AHEAD = 4


class BlockFeed:
    """Blocks of ``source``, in order; at most four wait. One consumer thread.

    Use as a context manager: leaving it ends the thread.
    """

    def __init__(self, source: ByteSource, *, cancel: CancelToken) -> None:
        self._source = source
        self._cancel = cancel
        self._hash = sha256_stream()
        self._queue: SimpleQueue[bytes | BaseException] = SimpleQueue()
        self._slots = threading.Semaphore(_AHEAD)
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._at_end = False
        #: uncompressed bytes handed out so far
        self.size = 0

    def __enter__(self) -> BlockFeed:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stopped = True
        self._slots.release()
        if self._thread is not None:
            self._thread.join()

    def next(self) -> bytes:
        """Return the next block; empty at the end.

        Raises: what reading raised; the token's cause.
        """
        self._cancel.check()
        if self._at_end:
            return b""
        if self._thread is None:
            return self._first()
        block = self._queue.get()
        self._slots.release()
        if isinstance(block, BaseException):
            self._at_end = True
            raise block
        self._at_end = not block
        self.size += len(block)
        return block

    def drain(self) -> DiffId:
        """Read to the end; returns the digest of all bytes."""
        while self.next():
            pass
        return DiffId("sha256:" + self._hash.hexdigest())

    def _first(self) -> bytes:
        parts: list[bytes] = []
        left = _BLOCK
        while left > 0:
            part = self._source.read(left)
            if not part:
                self._at_end = True
                break
            parts.append(part)
            left -= len(part)
        block = b"".join(parts)
        self._hash.update(block)
        self.size += len(block)
        if not self._at_end:
            self._thread = threading.Thread(target=self._run, name="layer-read", daemon=True)
            self._thread.start()
        return block

    def _run(self) -> None:
        try:
            while True:
                self._slots.acquire()
                if self._stopped:
                    return
                block = self._source.read(_BLOCK)
                self._hash.update(block)
                self._queue.put(block)
                if not block:
                    return
        except BaseException as exc:  # noqa: BLE001  top of a worker thread: handed to the consumer
            self._queue.put(exc)
