"""HTTP/1.1 on one connection: a request out, a response in.

Small on purpose: a cached build talks to a registry once or twice, and importing a general HTTP library would
cost more than the exchange. Not for: dialling, TLS, pooling (``transport``), retries and redirects
(``exchange``). Bodies are never decoded: what arrives is what the digest is taken of.

Spec: RFC 9110, RFC 9112.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from crossdock.errors import InternalError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

__all__ = ["BodyCut", "BodyTooLarge", "Connection", "NotHttp", "ProtocolError", "Response", "StreamBody"]

_MAX_LINE = 64 * 1024
_MAX_HEADERS = 200
_RECV = 64 * 1024
_STATUS = re.compile(rb"HTTP/1\.([01]) ([0-9]{3})(?: (.*))?\Z")


class ProtocolError(ConnectionError):
    """The peer broke HTTP/1.1."""


class NotHttp(ProtocolError):
    """The first bytes of the answer are not HTTP; ``received`` holds them (a TLS alert, perhaps)."""

    def __init__(self, received: bytes) -> None:
        super().__init__("the answer is not HTTP")
        self.received = received[:64]


class BodyCut(ConnectionError):
    """The connection ended before the body did."""


class BodyTooLarge(ProtocolError):
    """The body is longer than the caller allows."""


class StreamBody:
    """A request body of known size, produced block by block."""

    __slots__ = ("blocks", "size")

    def __init__(self, size: int, blocks: Iterable[bytes | memoryview]) -> None:
        self.size = size
        self.blocks = blocks

    def close(self) -> None:
        """End the producer, wherever it stands: a generator closes what it has open."""
        close = getattr(self.blocks, "close", None)
        if close is not None:
            close()


class Connection:
    """One connection; a single exchange at a time. Owned by whoever took it from the pool."""

    __slots__ = ("_buffer", "answered", "exchanges", "idle_since", "sock", "unregister")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._buffer = bytearray()
        #: exchanges begun; above 1 the connection is a reused one
        self.exchanges = 0
        #: whether a byte of the current answer has arrived
        self.answered = False
        #: ``time.monotonic()`` of the return to the pool
        self.idle_since = 0.0
        #: detaches the connection from the cancellation of its current exchange
        self.unregister: Callable[[], None] | None = None

    def send(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | StreamBody | None,
        *,
        check: Callable[[], None],
    ) -> None:
        """Send a request; ``check`` runs between the blocks of a streamed body and may raise.

        Raises: OSError when the connection breaks. The answer may still be there to read: servers refuse
        a body by answering and closing.
        """
        self.exchanges += 1
        self.answered = False
        head = bytearray(f"{method} {_checked_target(target)} HTTP/1.1\r\n".encode("ascii"))
        for name, value in headers.items():
            head += _header_line(name, value)
        size = None if body is None else (len(body) if isinstance(body, bytes) else body.size)
        if size is not None:
            head += b"Content-Length: %d\r\n" % size
        head += b"\r\n"
        if not isinstance(body, StreamBody):
            self.sock.sendall(head + (body or b""))
            return
        try:
            self.sock.sendall(head)
            sent = self._send_blocks(body, check)
        finally:
            body.close()
        if sent != body.size:
            summary = f"a request body of {body.size} bytes turned out to have {sent} or more"
            raise InternalError(summary)

    def _send_blocks(self, body: StreamBody, check: Callable[[], None]) -> int:
        sent = 0
        for block in body.blocks:
            check()
            sent += len(block)
            if sent > body.size:
                break
            self.sock.sendall(block)
        return sent

    def receive(self, method: str, release: Callable[[Connection, bool], None]) -> Response:
        """Read the head of the final answer; ``release(connection, reusable)`` is called when its body ends.

        Raises: NotHttp; ProtocolError; BodyCut when the peer closes without answering; OSError.
        """
        while True:
            version, status, reason = self._status_line()
            headers = self._header_block()
            if status >= 200 or status == 101:
                break
        return Response(self, method, version, status, reason, headers, release)

    def read_line(self) -> bytes:
        """Read up to a line feed, which is dropped with the carriage return before it."""
        start = 0
        while True:
            end = self._buffer.find(b"\n", start)
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                return line.removesuffix(b"\r")
            start = len(self._buffer)
            if start > _MAX_LINE:
                msg = "a header line is too long"
                raise ProtocolError(msg)
            data = self.sock.recv(_RECV)
            if not data:
                msg = "the connection ended inside the head of an answer"
                raise BodyCut(msg)
            self.answered = True
            self._buffer += data

    def read_into(self, view: memoryview) -> int:
        """Read some bytes; 0 at the end of the connection."""
        if self._buffer:
            n = min(len(view), len(self._buffer))
            view[:n] = self._buffer[:n]
            del self._buffer[:n]
            return n
        return self.sock.recv_into(view)

    def close(self) -> None:
        """Close the socket; the exchange under way is lost."""
        if self.unregister is not None:
            self.unregister()
            self.unregister = None
        self.sock.close()

    def _status_line(self) -> tuple[int, int, str]:
        try:
            line = self.read_line()
        except ProtocolError as exc:
            raise NotHttp(bytes(self._buffer)) from exc
        except BodyCut as exc:
            if self._buffer and not self._buffer.startswith(b"HTTP/1."):
                raise NotHttp(bytes(self._buffer)) from exc
            raise
        match = _STATUS.match(line)
        if match is None:
            raise NotHttp(line)
        return int(match[1]), int(match[2]), (match[3] or b"").decode("latin-1").strip()

    def _header_block(self) -> dict[str, list[str]]:
        headers: dict[str, list[str]] = {}
        last: list[str] | None = None
        for _ in range(_MAX_HEADERS):
            line = self.read_line()
            if not line:
                return headers
            if line[:1] in b" \t" and last is not None:
                last[-1] += " " + line.strip().decode("latin-1")
                continue
            name, colon, value = line.partition(b":")
            if not colon:
                msg = "a header line has no colon"
                raise ProtocolError(msg)
            last = headers.setdefault(name.strip().decode("latin-1").lower(), [])
            last.append(value.strip().decode("latin-1"))
        msg = "the answer has too many headers"
        raise ProtocolError(msg)


class Response:
    """An answer whose body is read from the connection; the connection is given back at its end.

    Not thread-safe. Close it, or read it to the end.
    """

    __slots__ = (
        "_chunked",
        "_connection",
        "_keep",
        "_left",
        "_preread",
        "_release",
        "attempts",
        "headers",
        "reason",
        "status",
        "url",
    )

    def __init__(
        self,
        connection: Connection,
        method: str,
        version: int,
        status: int,
        reason: str,
        headers: dict[str, list[str]],
        release: Callable[[Connection, bool], None],
    ) -> None:
        self.status = status
        self.reason = reason
        #: lower-case name -> values in order
        self.headers = headers
        #: absolute URL that answered, set by the exchange
        self.url = ""
        #: how many times the request was sent
        self.attempts = 1
        self._connection: Connection | None = connection
        self._release = release
        self._preread = b""
        connection_words = self.header("connection").lower()
        self._keep = "close" not in connection_words and (version == 1 or "keep-alive" in connection_words)
        self._chunked = False
        #: bytes left of the body or of the current chunk; None = until the connection ends
        self._left: int | None = self._framing(method)
        if self._left == 0 and not self._chunked:
            self._finish(reusable=True)

    def header(self, name: str, default: str = "") -> str:
        """Return the last value of a header, by its lower-case name."""
        values = self.headers.get(name)
        return values[-1] if values else default

    @property
    def content_length(self) -> int | None:
        """The announced length; for a HEAD, of the body that a GET would have."""
        text = self.header("content-length")
        return int(text) if text.isascii() and text.isdigit() else None

    def readinto(self, view: memoryview) -> int:
        """Read some of the body; 0 at its end.

        Raises: BodyCut when the connection ends early; OSError.
        """
        if self._preread:
            n = min(len(view), len(self._preread))
            view[:n] = self._preread[:n]
            self._preread = self._preread[n:]
            return n
        connection = self._connection
        if connection is None:
            return 0
        if self._chunked and self._left == 0 and not self._next_chunk(connection):
            self._finish(reusable=True)
            return 0
        want = len(view) if self._left is None else min(len(view), self._left)
        n = connection.read_into(view[:want])
        if n == 0 and self._left is None:
            self._finish(reusable=False)
        elif n == 0:
            self.close()
            msg = "the connection ended before the body did"
            raise BodyCut(msg)
        if self._left is not None:
            self._left -= n
            if self._left == 0:
                self._end_of_part(connection)
        return n

    def read_all(self, limit: int) -> bytes:
        """Read the rest of the body.

        Raises: BodyTooLarge beyond ``limit`` bytes; BodyCut; OSError. The connection is closed then.
        """
        try:
            return b"".join(self._blocks(limit))
        except OSError:
            self.close()
            raise

    def _blocks(self, limit: int) -> Iterator[bytes]:
        block = memoryview(bytearray(min(limit + 1, _RECV)))
        total = 0
        while n := self.readinto(block):
            total += n
            if total > limit:
                msg = f"the body is longer than {limit} bytes"
                raise BodyTooLarge(msg)
            yield bytes(block[:n])

    def peek(self, limit: int) -> bytes:
        """Return the start of a short body without consuming it."""
        if not self._preread:
            block = memoryview(bytearray(limit))
            self._preread = bytes(block[: self.readinto(block)])
        return self._preread

    def discard(self) -> None:
        """Be done with the answer: a short rest is read so that the connection can be used again."""
        try:
            self.read_all(_RECV)
        except OSError:
            self.close()

    def close(self) -> None:
        """Give up the rest of the body; idempotent."""
        self._finish(reusable=False)

    def _framing(self, method: str) -> int | None:
        if method == "HEAD" or self.status in (204, 304) or self.status < 200:
            return 0
        coding = self.header("transfer-encoding").lower()
        if coding:
            self._chunked = coding.endswith("chunked")
            return 0 if self._chunked else None
        lengths: Sequence[str] = self.headers.get("content-length", ())
        if not lengths:
            return None
        if len(set(lengths)) > 1 or self.content_length is None:
            self.close()
            msg = "the answer has no valid Content-Length"
            raise ProtocolError(msg)
        return self.content_length

    def _next_chunk(self, connection: Connection) -> bool:
        text = connection.read_line().partition(b";")[0].strip()
        try:
            self._left = int(text, 16) if text and text.isalnum() else -1
        except ValueError:
            self._left = -1
        if self._left < 0:
            self.close()
            msg = "a chunk has no valid size"
            raise ProtocolError(msg)
        if self._left == 0:
            while connection.read_line():
                pass
            return False
        return True

    def _end_of_part(self, connection: Connection) -> None:
        if not self._chunked:
            self._finish(reusable=True)
        elif connection.read_line():
            self.close()
            msg = "a chunk is longer than its size"
            raise ProtocolError(msg)

    def _finish(self, *, reusable: bool) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._release(connection, reusable and self._keep)


def _header_line(name: str, value: str) -> bytes:
    if not (value.isascii() and value.isprintable()):
        summary = f"header {name!r} holds a character that HTTP does not allow"
        raise InternalError(summary)
    return f"{name}: {value}\r\n".encode("ascii")


def _checked_target(target: str) -> str:
    if " " in target or not (target.isascii() and target.isprintable()):
        summary = "a request target holds a character that HTTP does not allow"
        raise InternalError(summary)
    return target
