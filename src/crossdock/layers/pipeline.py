"""One pass over a byte stream: cut into blocks, hash, compress in threads, hash again, write in order.

The producer fills a block while earlier ones are hashed and compressed; all of that happens outside
the GIL. A stream of one block uses no thread at all. Not for: what the bytes mean.
"""

from __future__ import annotations

import errno
import os
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Protocol

from crossdock.errors import StoreError, StoreFull
from crossdock.hashing import sha256_stream
from crossdock.image.digest import DiffId, Digest
from crossdock.layers.codec import make_codec
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from crossdock.cancel import CancelToken
    from crossdock.layers.codec import BlockCodec
    from crossdock.layers.compression import Compression

__all__ = ["ByteSink", "LayerSink", "OutputFailed", "SinkResult", "usable_cores"]

_PLAIN_BLOCK = 1 << 20
_CANCEL_INTERVAL_S = 0.2


class ByteSink(Protocol):
    """Where compressed bytes go."""

    def write(self, data: bytes, /) -> object:
        """Take all of ``data``."""
        ...


class SinkResult(NamedTuple):
    """What went through a sink; sizes in bytes."""

    diff_id: DiffId
    digest: Digest
    size: int
    uncompressed_size: int


class OutputFailed(Exception):
    """Writing to the output failed: never mistaken for a failure of what is read. Stays inside the package."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error

    def translated(self) -> StoreError:
        """Return the error that callers see when the output is a blob of the store."""
        if self.error.errno in (errno.ENOSPC, errno.EDQUOT):
            summary = "no space left on device while a layer was written"
            return StoreFull(summary, hint="free some space, or run `crossdock prune`")
        return StoreError(f"cannot write a layer: {self.error.strerror or self.error}")


class _Job:
    __slots__ = ("block", "error", "ready", "result")

    def __init__(self, block: memoryview) -> None:
        self.block = block
        self.result = b""
        self.error: BaseException | None = None
        self.ready = threading.Lock()
        self.ready.acquire()


def usable_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) or 1


class LayerSink:
    """Takes an uncompressed stream, writes it compressed to ``out``.

    Use as a context manager: leaving it ends the threads whatever happened; :meth:`finish` gives the
    result. One producer thread. Bytes written do not depend on ``threads``.
    """

    def __init__(
        self, out: ByteSink, compression: Compression, *, cancel: CancelToken, threads: int | None = None
    ) -> None:
        self._out = out
        self._cancel = cancel
        self._codec = make_codec(compression)
        self._block_size = self._codec.block_size if self._codec else _PLAIN_BLOCK
        self._buffer = memoryview(bytearray(self._block_size))
        self._fill = 0
        self._done = 0
        self._workers = threads or min(4, usable_cores())
        self._threads: list[threading.Thread] = []
        self._todo: SimpleQueue[_Job | None] = SimpleQueue()
        self._ordered: SimpleQueue[_Job | None] = SimpleQueue()
        self._slots = threading.Semaphore(2 * self._workers + 2)
        self._error: BaseException | None = None
        self._raw_hash = sha256_stream()
        self._out_hash = sha256_stream() if self._codec else self._raw_hash
        self._crc = 0
        self._size = 0
        if self._codec:
            self._put(self._codec.header())

    def __enter__(self) -> LayerSink:
        return self

    def __exit__(self, _kind: object, exc: BaseException | None, _trace: object) -> None:
        if exc is not None and self._error is None:
            self._error = exc  # queued blocks are dropped, not compressed
        self._stop()

    @property
    def position(self) -> int:
        """Bytes of the uncompressed stream so far."""
        return self._done + self._fill

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append ``data``; returns its length."""
        size = len(data)
        fill = self._fill
        if fill + size < self._block_size:
            self._buffer[fill : fill + size] = data
            self._fill = fill + size
            return size
        view = memoryview(data)
        at = 0
        while at < size:
            part = min(size - at, self._block_size - self._fill)
            self._buffer[self._fill : self._fill + part] = view[at : at + part]
            self._advance(part)
            at += part
        return size

    def read_from(self, fd: int, size: int) -> int:
        """Append up to ``size`` bytes read from ``fd``; returns how many there were."""
        left = size
        while left:
            end = min(self._block_size, self._fill + left)
            got = os.readv(fd, [self._buffer[self._fill : end]])
            if got == 0:
                break
            left -= got
            self._advance(got)
        return size - left

    def finish(self) -> SinkResult:
        """End the stream; returns the digests and sizes.

        Raises: OutputFailed; what else ``out.write`` raised; the cause of cancellation.
        """
        self._cancel.check()
        total = self.position
        if self._threads:
            if self._fill:
                self._submit(self._buffer[: self._fill])
            self._stop()
            if self._error is not None:
                raise self._error
        elif self._fill:
            self._finish_block(self._buffer[: self._fill], None)
        self._done, self._fill = total, 0
        if self._codec:
            self._put(self._codec.trailer(size=total, crc=self._crc))
        return SinkResult(
            DiffId("sha256:" + self._raw_hash.hexdigest()),
            Digest("sha256:" + self._out_hash.hexdigest()),
            self._size,
            total,
        )

    def _advance(self, count: int) -> None:
        self._fill += count
        if self._fill == self._block_size:
            if not self._threads:
                self._start()
            self._submit(self._buffer)
            self._done += self._block_size
            self._fill = 0
            self._buffer = memoryview(bytearray(self._block_size))

    def _start(self) -> None:
        codec = self._codec
        if codec is not None:
            for _ in range(self._workers):
                self._spawn(lambda: self._compress_loop(codec))
        self._spawn(self._order_loop)

    def _spawn(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, name="layer-write", daemon=True)
        thread.start()
        self._threads.append(thread)

    def _submit(self, block: memoryview) -> None:
        self._cancel.check()
        while not self._slots.acquire(timeout=_CANCEL_INTERVAL_S):
            self._cancel.check()
        if self._error is not None:
            raise self._error
        job = _Job(block)
        if self._codec:
            self._todo.put(job)
        self._ordered.put(job)

    def _stop(self) -> None:
        threads, self._threads = self._threads, []
        if not threads:
            return
        for _ in threads[:-1]:
            self._todo.put(None)
        self._ordered.put(None)
        for thread in threads:
            thread.join()

    def _compress_loop(self, codec: BlockCodec) -> None:
        while (job := self._todo.get()) is not None:
            try:
                if self._error is None:
                    job.result = codec.encode(job.block)
            except BaseException as exc:  # noqa: BLE001  top of a worker thread: handed to the producer
                job.error = exc
            job.ready.release()

    def _order_loop(self) -> None:
        while (job := self._ordered.get()) is not None:
            try:
                if self._error is None:
                    self._finish_block(job.block, job)
            except BaseException as exc:  # noqa: BLE001  top of a worker thread: handed to the producer
                self._error = exc
            self._slots.release()

    def _finish_block(self, block: memoryview, job: _Job | None) -> None:
        self._raw_hash.update(block)
        if self._codec is None:
            self._size += len(block)
            self._write_out(block)
            return
        if self._codec.wants_crc:
            from isal import isal_zlib

            self._crc = isal_zlib.crc32(block, self._crc)
        if job is None:
            self._put(self._codec.encode(block))
            return
        job.ready.acquire()
        if job.error is not None:
            raise job.error
        self._put(job.result)

    def _put(self, data: bytes) -> None:
        if data:
            self._size += len(data)
            self._out_hash.update(data)
            self._write_out(data)

    def _write_out(self, data: bytes | memoryview) -> None:
        try:
            self._out.write(data)  # type: ignore[arg-type]  # every file object takes buffers
        except OSError as exc:
            raise OutputFailed(exc) from exc
