"""Length-prefixed messages: several of them may be sent at once, and come cut anywhere.

Spec: grpc/grpc ``doc/PROTOCOL-HTTP2.md``, Length-Prefixed-Message.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from crossdock.buildkit.rpc.status import INTERNAL, RESOURCE_EXHAUSTED, RpcError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["MAX_MESSAGE", "Budget", "prefixed", "split", "split_batches", "varint"]

#: BuildKit sends and takes messages up to 16 MiB
MAX_MESSAGE = 16 << 20
#: a message of which so much is missing counts as large
_LARGE = 1 << 20


def varint(value: int) -> bytes:
    """Encode an integer that is not negative, as protobuf does."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def prefixed(message: bytes) -> bytes:
    """Return a message as it is sent."""
    return b"\0" + len(message).to_bytes(4, "big") + message


class Budget:
    """What all calls of a server may take at once: bytes of large messages, or handlers. Safe from any thread."""

    def __init__(self, size: int) -> None:
        # Guards _left.
        self._lock = threading.Lock()
        self._left = size

    def take(self, count: int) -> bool:
        """Take a part, if so much is left; :meth:`give` it back."""
        with self._lock:
            fits = count <= self._left
            self._left -= count if fits else 0
            return fits

    def give(self, count: int) -> None:
        """Give a part back."""
        with self._lock:
            self._left += count

    @contextlib.contextmanager
    def holding(self, count: int) -> Iterator[None]:
        """Hold a part during the block. Raises: RpcError when so much is not left."""
        if not self.take(count):
            text = "too many large messages at once: send them one after the other"
            raise RpcError(RESOURCE_EXHAUSTED, text)
        try:
            yield
        finally:
            self.give(count)


def split(read: Callable[[], bytes], budget: Budget | None = None) -> Iterator[bytes]:
    """Yield the messages in what ``read`` gives until it gives nothing.

    Raises: RpcError when a message is compressed, too large, or cut off; what ``read`` raises.
    """
    for batch in split_batches(read, budget):
        yield from batch


def split_batches(read: Callable[[], bytes], budget: Budget | None = None) -> Iterator[list[bytes]]:
    """Yield the messages as they come, all that are there at once. Raises: as :func:`split`."""
    rest = b""
    while True:
        missing = _missing(rest)
        with contextlib.nullcontext() if budget is None or missing < _LARGE else budget.holding(missing):
            data = _more(read, rest, missing)
        if data is None:
            return
        batch, at = _complete(data)
        rest = data[at:]
        if batch:
            yield batch


def _more(read: Callable[[], bytes], rest: bytes, missing: int) -> bytes | None:
    """Read until nothing is missing; ``None`` when the stream ends between messages."""
    parts = [rest]
    while missing > 0:
        block = read()
        if not block:
            if rest or len(parts) > 1:
                raise RpcError(INTERNAL, "a message was cut off")
            return None
        parts.append(block)
        missing -= len(block)
    return b"".join(parts)


def _complete(data: bytes) -> tuple[list[bytes], int]:
    """Return the complete messages at the start of ``data``, and where they end."""
    batch: list[bytes] = []
    at, end = 0, len(data)
    while end - at >= 5:
        size = int.from_bytes(data[at + 1 : at + 5], "big")
        if data[at] or size > MAX_MESSAGE:
            text = "a compressed message" if data[at] else f"a message of {size} bytes"
            raise RpcError(RESOURCE_EXHAUSTED, f"{text} was not asked for")
        if end - at - 5 < size:
            break
        batch.append(data[at + 5 : at + 5 + size])
        at += 5 + size
    return batch, at


def _missing(data: bytes) -> int:
    """Bytes without which nothing can be said: of the prefix, or of the message."""
    if len(data) < 5:
        return 1
    return 5 + int.from_bytes(data[1:5], "big") - len(data)
