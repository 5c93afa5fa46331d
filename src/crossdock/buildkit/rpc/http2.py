"""One HTTP/2 connection over a byte stream: frames, flow control, streams that block.

Both roles: the side that opens streams (``server=False``) and the side that serves them. What gRPC does not use is left
out: push, priorities, upgrades from HTTP/1.

Frames are parsed by one thread per connection; everything else may be called from any thread, but each stream has one
reader and one writer at a time. A writer blocks while the peer's window is full; received data is held until it is
read, at most a window of each stream.

Spec: RFC 9113.
"""

from __future__ import annotations

import contextlib
import struct
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from crossdock.buildkit.rpc.hpack import Decoder, HeaderError, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from crossdock.buildkit.transport import ByteStream

__all__ = [
    "CANCEL",
    "MAX_STREAMS",
    "REFUSED_STREAM",
    "Connection",
    "ConnectionLost",
    "Headers",
    "Stream",
    "StreamReset",
]

Headers = list[tuple[str, str]]

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_END_STREAM = _ACK = 0x1
_END_HEADERS, _PADDED, _PRIORITY = 0x4, 0x8, 0x20
_S_TABLE, _S_STREAMS, _S_WINDOW, _S_FRAME, _S_HEADERS = 1, 3, 4, 5, 6

#: error codes
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED, FRAME_SIZE_ERROR = (
    0,
    1,
    2,
    3,
    5,
    6,
)
REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 7, 8, 9, 11

_DEFAULT_WINDOW = 65_535
_MAX_WINDOW = (1 << 31) - 1
#: bytes a peer may have under way to us on one stream, and on all together
_STREAM_WINDOW, _CONNECTION_WINDOW = 8 << 20, 32 << 20
#: the largest frame we take; larger ones are fewer
_MAX_FRAME = 256 * 1024
#: bytes read or written at once
_BLOCK = 256 * 1024
#: streams that a peer may have open at once: a client that builds a hundred targets has three long ones for each
MAX_STREAMS = 2048
#: streams that a peer may give up at once, and how many more a second later; each cost a handler
_RESETS, _RESETS_PER_S = 1000, 200
#: pieces of data smaller than this are put together, since each costs some fifty bytes of its own
_SMALL = 4096
#: seconds to wait for what a peer said before it closed the connection
_LAST_WORDS_S = 0.5
#: bytes of one header block, where the peer is trusted: directories to be sent are described by headers
_MAX_HEADERS = 16 << 20
#: header lists of a stream that wait to be taken: the headers and the trailers
_MAX_BLOCKS = 2
#: kinds of frames whose payload has one size
_SIZES = {_RST: 4, _WINDOW: 4, _PING: 8}


class ConnectionLost(Exception):
    """The connection is gone; the text says why, as far as it is known."""


class StreamReset(Exception):
    """The peer ended one stream abruptly."""

    def __init__(self, code: int) -> None:
        super().__init__(f"stream reset with code {code}")
        self.code = code


class _ProtocolError(Exception):
    def __init__(self, text: str, code: int = PROTOCOL_ERROR) -> None:
        super().__init__(text)
        self.code = code


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">HBBBI", len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


class Stream:
    """One request and its response; made by :class:`Connection`."""

    def __init__(self, connection: Connection, number: int, send_window: int) -> None:
        self._connection = connection
        self.number = number
        #: guarded by the connection's lock, as everything below
        self.send_window = send_window
        self.readable = threading.Condition(connection.lock)
        #: header lists received and not yet taken: headers, then trailers
        self.blocks: deque[Headers] = deque()
        self.chunks: deque[bytes] = deque()
        #: bytes read and not yet given back to the peer's window, and what is left of that window
        self.owed = 0
        self.receive_window = _STREAM_WINDOW
        self.remote_ended = False
        self.local_ended = False
        #: the peer has answered, and wants no more of what is sent
        self.unwanted = False
        self._error: Exception | None = None
        self._watcher: Callable[[], object] | None = None

    @property
    def error(self) -> Exception | None:
        """Why the stream ended before its time."""
        return self._error

    @error.setter
    def error(self, error: Exception | None) -> None:
        self._error = error
        watcher, self._watcher = self._watcher, None
        if error is not None and watcher is not None:
            # The lock is held here, and what a watcher does is not known.
            threading.Thread(target=watcher, daemon=True, name="rpc-gone").start()

    def watch(self, watcher: Callable[[], object] | None) -> None:
        """Have a function called, in a thread of its own, should the stream end before its time; ``None`` takes it back."""
        with self._connection.lock:
            self._watcher = watcher
            if self._error is not None:
                self.error = self._error

    def take_headers(self, timeout_s: float | None = None) -> Headers | None:
        """Return the next header list: headers first, trailers after the data; ``None`` when none will come.

        Raises: TimeoutError; StreamReset; ConnectionLost.
        """
        with self._connection.lock:
            if not self.readable.wait_for(
                lambda: self.blocks or self.remote_ended or self.error is not None, timeout_s
            ):
                raise TimeoutError
            if self.blocks:
                return self.blocks.popleft()
            if self.error is not None and not self.remote_ended:
                raise self.error
            return None

    def read(self, timeout_s: float | None = None) -> bytes:
        """Return all data that has come, waiting for some; empty at the end (or when trailers come).

        Raises: TimeoutError; StreamReset; ConnectionLost.
        """
        with self._connection.lock:
            if not self.readable.wait_for(
                lambda: self.chunks or self.remote_ended or self.error is not None, timeout_s
            ):
                raise TimeoutError
            if not self.chunks:
                if self.error is not None and not self.remote_ended:
                    raise self.error
                return b""
            data = self.chunks.popleft() if len(self.chunks) == 1 else b"".join(self.chunks)
            self.chunks.clear()
        self._connection.consumed(self, len(data))
        return data

    def send_headers(self, headers: Iterable[tuple[str, str]], *, end: bool = False) -> None:
        """Send a header list; with ``end`` nothing follows. Raises: StreamReset; ConnectionLost."""
        self._connection.send_headers(self, headers, end=end)

    def send(self, data: bytes | bytearray | memoryview, *, end: bool = False) -> None:
        """Send data, waiting while the peer's window is full. Raises: StreamReset; ConnectionLost."""
        self._connection.send_data(self, data, end=end)

    def reset(self, code: int = CANCEL) -> None:
        """End the stream abruptly, waking whoever waits on it; idempotent, also after the end."""
        self._connection.reset(self, code)


class Connection:
    """A connection; :meth:`close` ends it. ``on_stream`` (server) is called by the reading thread: it must not block."""

    def __init__(
        self,
        stream: ByteStream,
        *,
        server: bool,
        on_stream: Callable[[Stream], None] | None = None,
        max_headers: int = _MAX_HEADERS,
    ) -> None:
        """``max_headers``: bytes that the peer's header lists may have."""
        self._max_headers = max_headers
        self._bytes = stream
        self._server = server
        self._on_stream = on_stream
        #: guards every field here and in the streams; never held over I/O
        self.lock = threading.Lock()
        self._writable = threading.Condition(self.lock)
        self._streams: dict[int, Stream] = {}
        self._next = 1
        self._last_peer = 0
        self._send_window = _DEFAULT_WINDOW
        self._initial_window = _DEFAULT_WINDOW
        self._peer_frame = 16_384
        self._owed = 0
        #: what is left of the peer's window for the whole connection
        self._receive_window = _CONNECTION_WINDOW
        #: streams that the peer may still give up, and when that was reckoned; the reading thread's own
        self._resets, self._resets_at = float(_RESETS), time.monotonic()
        #: why the connection ended; ``None`` while it lives
        self._lost: ConnectionLost | None = None
        self._going_away = False
        self._greeted = False
        self._decoder = Decoder(max_list=max_headers)
        # Guards writes to the byte stream; header blocks must not be torn apart.
        self._send_lock = threading.Lock()
        self._open_block: tuple[int, int, bytearray] | None = None
        self._reader = threading.Thread(target=self._run, daemon=True, name="http2")

    def start(self) -> None:
        """Send the greeting and begin to read. Raises: ConnectionLost."""
        settings = {
            _S_STREAMS: MAX_STREAMS,
            _S_WINDOW: _STREAM_WINDOW,
            _S_FRAME: _MAX_FRAME,
            _S_HEADERS: self._max_headers,
        }
        payload = b"".join(struct.pack(">HI", k, v) for k, v in settings.items())
        greeting = _frame(_SETTINGS, 0, 0, payload)
        greeting += _frame(_WINDOW, 0, 0, struct.pack(">I", _CONNECTION_WINDOW - _DEFAULT_WINDOW))
        self._write(greeting if self._server else _PREFACE + greeting)
        self._reader.start()

    @property
    def greeted(self) -> bool:
        """Whether the peer has shown that it speaks HTTP/2."""
        return self._greeted

    @property
    def usable(self) -> bool:
        """Whether new streams can be opened."""
        with self.lock:
            return self._lost is None and not self._going_away

    def open(self, headers: Iterable[tuple[str, str]], *, end: bool = False) -> Stream:
        """Open a stream (client). Raises: ConnectionLost."""
        block = encode(headers)
        # The order of numbers on the wire must be that of their making.
        with self._send_lock:
            with self.lock:
                if self._lost is not None:
                    raise self._lost
                if self._going_away:
                    msg = "the peer is shutting down"
                    raise ConnectionLost(msg)
                stream = Stream(self, self._next, self._initial_window)
                stream.local_ended = end
                self._streams[self._next] = stream
                self._next += 2
            self._write_locked(self._header_frames(stream, block, end=end))
        return stream

    def close(self, reason: str = "closed") -> None:
        """End the connection; streams under way fail. Idempotent."""
        self._fail(ConnectionLost(reason))
        self._bytes.close()
        if self._reader.is_alive() and threading.current_thread() is not self._reader:
            self._reader.join(5)

    # sending

    def send_headers(self, stream: Stream, headers: Iterable[tuple[str, str]], *, end: bool) -> None:
        """See :meth:`Stream.send_headers`."""
        block = encode(headers)
        with self._send_lock:
            with self.lock:
                self._check(stream)
                stream.local_ended = stream.local_ended or end
            self._write_locked(self._header_frames(stream, block, end=end))
        self._forget_ended(stream)

    def _header_frames(self, stream: Stream, block: bytes, *, end: bool) -> bytes:
        size = self._peer_frame
        parts = [block[at : at + size] for at in range(0, len(block), size)] or [b""]
        out = bytearray()
        for number, part in enumerate(parts):
            kind = _CONTINUATION if number else _HEADERS
            flags = (_END_STREAM if end and not number else 0) | (_END_HEADERS if part is parts[-1] else 0)
            out += _frame(kind, flags, stream.number, part)
        return bytes(out)

    def send_data(self, stream: Stream, data: bytes | bytearray | memoryview, *, end: bool) -> None:
        """See :meth:`Stream.send`."""
        view, at = memoryview(data), 0
        while at < len(view) or end:
            with self.lock:
                self._check(stream)
                wanted = min(len(view) - at, _BLOCK)
                while wanted and not stream.unwanted and min(self._send_window, stream.send_window) <= 0:
                    self._writable.wait()
                    self._check(stream)
            with self._send_lock:
                with self.lock:
                    self._check(stream)
                    if stream.unwanted:
                        return
                    count = min(wanted, max(0, min(self._send_window, stream.send_window)))
                    if wanted and not count:
                        continue  # another stream has taken it meanwhile, or the peer has made it smaller
                    self._send_window -= count
                    stream.send_window -= count
                    size = self._peer_frame
                    last = end and at + count == len(view)
                    stream.local_ended = stream.local_ended or last
                self._write_locked(_data_frames(stream.number, view[at : at + count], size, last=last))
            at += count
            if last:
                self._forget_ended(stream)
                return

    def consumed(self, stream: Stream | None, count: int) -> None:
        """Give bytes that were read back to the peer's windows, in large steps."""
        out = b""
        with self.lock:
            self._owed += count
            if self._owed >= _CONNECTION_WINDOW // 4:
                out += _frame(_WINDOW, 0, 0, struct.pack(">I", self._owed))
                self._receive_window += self._owed
                self._owed = 0
            if stream is not None and not stream.remote_ended:
                stream.owed += count
                if stream.owed >= _STREAM_WINDOW // 4:
                    out += _frame(_WINDOW, 0, stream.number, struct.pack(">I", stream.owed))
                    stream.receive_window += stream.owed
                    stream.owed = 0
        if out:
            with contextlib.suppress(ConnectionLost):
                self._write(out)

    def reset(self, stream: Stream, code: int) -> None:
        """See :meth:`Stream.reset`."""
        with self.lock:
            done = stream.remote_ended and stream.local_ended
            known = self._streams.pop(stream.number, None) is not None
            discarded = sum(map(len, stream.chunks))
            if stream.error is None and not done:
                stream.error = StreamReset(code)
                stream.remote_ended = False
            stream.chunks.clear()
            stream.readable.notify_all()
            self._writable.notify_all()
        if discarded:
            self.consumed(None, discarded)
        if known and not done:
            with contextlib.suppress(ConnectionLost):
                self._write(_frame(_RST, 0, stream.number, struct.pack(">I", code)))

    def _check(self, stream: Stream) -> None:
        if stream.error is not None:
            raise stream.error
        if self._lost is not None:
            raise self._lost

    def _forget_ended(self, stream: Stream) -> None:
        with self.lock:
            if stream.remote_ended and stream.local_ended:
                self._streams.pop(stream.number, None)

    def _write(self, data: bytes | bytearray) -> None:
        with self._send_lock:
            self._write_locked(data)

    def _write_locked(self, data: bytes | bytearray) -> None:
        try:
            self._bytes.sendall(data)
        except (OSError, ValueError) as exc:
            # Why the peer ended the connection is in what it sent last, which the reader finds.
            if self._reader.is_alive() and threading.current_thread() is not self._reader:
                self._reader.join(_LAST_WORDS_S)
            gone = isinstance(exc, BrokenPipeError | ConnectionResetError)
            self._fail(ConnectionLost(self._why("the peer closed it" if gone else str(exc))))
            self._bytes.close()
            with self.lock:
                lost = self._lost
            raise lost or ConnectionLost(str(exc)) from exc

    # receiving

    def _run(self) -> None:
        try:
            self._read_frames()
        except (_ProtocolError, HeaderError) as exc:
            code = exc.code if isinstance(exc, _ProtocolError) else COMPRESSION_ERROR
            with contextlib.suppress(ConnectionLost):
                self._write(_frame(_GOAWAY, 0, 0, struct.pack(">II", self._last_peer, code)))
            self._fail(ConnectionLost(str(exc)))
        except ConnectionLost as exc:
            self._fail(exc)  # an acknowledgement could not be sent
        except Exception as exc:  # noqa: BLE001 - the top of a thread: whoever waits must hear of it
            self._fail(ConnectionLost(f"{type(exc).__name__}: {exc}"))
        else:
            self._fail(ConnectionLost(self._why("the peer closed it")))
        self._bytes.close()

    def _why(self, text: str) -> str:
        # What ends a connection that is a program's pipes is best said by the program itself.
        return str(getattr(self._bytes, "failure", "") or text)

    def _read_frames(self) -> None:
        data = self._read_preface() if self._server else b""
        while True:
            at, end = 0, len(data)
            touched: set[Stream] = set()
            while end - at >= 9:
                length = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
                if not self._greeted and data[at + 3] != _SETTINGS:
                    msg = "the peer does not speak gRPC (is TLS wanted, or is it another service?)"
                    raise _ProtocolError(msg)
                if length > _MAX_FRAME:
                    msg = "frame larger than allowed"
                    raise _ProtocolError(msg)
                if end - at - 9 < length:
                    break
                number = int.from_bytes(data[at + 5 : at + 9], "big") & _MAX_WINDOW
                payload, kind, flags = data[at + 9 : at + 9 + length], data[at + 3], data[at + 4]
                at += 9 + length
                if (
                    kind == _DATA
                    and not flags
                    and data.startswith(data[at - length - 6 : at - length], at + 3)
                ):
                    payload, at = _joined(payload, data, at)
                self._handle(kind, flags, number, payload, touched)
            if touched:
                with self.lock:
                    for stream in touched:
                        stream.readable.notify_all()
            block = self._bytes.recv(_BLOCK)
            if not block:
                return
            data = data[at:] + block if at < end else block

    def _read_preface(self) -> bytes:
        data = b""
        while len(data) < len(_PREFACE):
            block = self._bytes.recv(_BLOCK)
            if not block:
                break
            data += block
        if data[: len(_PREFACE)] != _PREFACE:
            if not data:
                return b""
            msg = "the peer does not speak HTTP/2"
            raise _ProtocolError(msg)
        return data[len(_PREFACE) :]

    def _handle(self, kind: int, flags: int, number: int, payload: bytes, touched: set[Stream]) -> None:
        self._check_frame(kind, number, payload)
        if kind == _DATA:
            self._on_data(flags, number, payload, touched)
        elif kind == _HEADERS:
            self._on_headers(flags, number, payload)
        elif kind == _CONTINUATION:
            self._on_continuation(flags, payload)
        elif kind == _WINDOW:
            self._on_window(number, payload)
        elif kind == _RST:
            self._on_reset(number, payload)
        elif kind == _SETTINGS:
            self._on_settings(flags, payload)
        elif kind == _PING:
            if not flags & _ACK:
                self._write(_frame(_PING, _ACK, 0, payload))
        elif kind == _GOAWAY:
            self._on_goaway(payload)
        # Unknown kinds, priorities among them, are to be ignored.

    def _check_frame(self, kind: int, number: int, payload: bytes) -> None:
        if self._open_block is not None and (kind != _CONTINUATION or number != self._open_block[0]):
            msg = "a header block was interrupted"
            raise _ProtocolError(msg)
        if len(payload) != _SIZES.get(kind, len(payload)) or (kind == _GOAWAY and len(payload) < 8):
            msg = f"a frame of kind {kind} with {len(payload)} bytes"
            raise _ProtocolError(msg, FRAME_SIZE_ERROR)
        if not number and kind in (_DATA, _HEADERS, _RST):
            msg = f"a frame of kind {kind} without a stream"
            raise _ProtocolError(msg)

    def _on_data(self, flags: int, number: int, payload: bytes, touched: set[Stream]) -> None:
        count = len(payload)
        if flags & _PADDED:
            payload = _unpadded(payload)
        ended = bool(flags & _END_STREAM)
        with self.lock:
            self._receive_window -= count
            stream = self._streams.get(number)
            if stream is not None:
                stream.receive_window -= count
            if self._receive_window < 0 or (stream is not None and stream.receive_window < 0):
                msg = "more data than the window allows"
                raise _ProtocolError(msg, FLOW_CONTROL_ERROR)
            if stream is not None:
                if stream.remote_ended:
                    msg = "data after the end of a stream"
                    raise _ProtocolError(msg, STREAM_CLOSED)
                if stream.chunks and len(payload) < _SMALL and len(stream.chunks[-1]) < _SMALL:
                    stream.chunks[-1] += payload
                elif payload:
                    stream.chunks.append(payload)
                if ended:
                    stream.remote_ended = True
                    if stream.local_ended:
                        del self._streams[number]
                touched.add(stream)
        spare = count - len(payload) if stream is not None else count
        if spare:
            self.consumed(stream, spare)

    def _on_headers(self, flags: int, number: int, payload: bytes) -> None:
        if flags & _PADDED:
            payload = _unpadded(payload)
        if flags & _PRIORITY:
            payload = payload[5:]
        if flags & _END_HEADERS:
            self._on_block(number, flags, payload)
        else:
            self._open_block = (number, flags, bytearray(payload))

    def _on_continuation(self, flags: int, payload: bytes) -> None:
        if self._open_block is None:
            msg = "continuation of no header block"
            raise _ProtocolError(msg)
        number, first_flags, block = self._open_block
        block += payload
        if len(block) > self._max_headers:
            msg = "header block too large"
            raise _ProtocolError(msg)
        if flags & _END_HEADERS:
            self._open_block = None
            self._on_block(number, first_flags, bytes(block))

    def _on_block(self, number: int, flags: int, block: bytes) -> None:
        headers = self._decoder.decode(block)
        opened: Stream | None = None
        refused = False
        with self.lock:
            stream = self._streams.get(number)
            if stream is None and self._server and number > self._last_peer:
                if not number & 1:
                    msg = "a client's streams have odd numbers"
                    raise _ProtocolError(msg)
                self._last_peer = number
                if len(self._streams) < MAX_STREAMS:
                    stream = opened = Stream(self, number, self._initial_window)
                    self._streams[number] = stream
                else:
                    refused = True
            if stream is not None:  # else an answer to what we reset
                if stream.remote_ended or len(stream.blocks) >= _MAX_BLOCKS:
                    msg = "headers that nobody waits for"
                    raise _ProtocolError(msg)
                if stream is not opened and self._server and not flags & _END_STREAM:
                    msg = "headers in the middle of a stream"
                    raise _ProtocolError(msg)
                stream.blocks.append(headers)
                if flags & _END_STREAM:
                    stream.remote_ended = True
                    if stream.local_ended:
                        del self._streams[number]
                stream.readable.notify_all()
        if refused:
            self._write(_frame(_RST, 0, number, struct.pack(">I", REFUSED_STREAM)))
        if opened is not None and self._on_stream is not None:
            self._on_stream(opened)

    def _on_window(self, number: int, payload: bytes) -> None:
        (count,) = struct.unpack(">I", payload)
        if not count & _MAX_WINDOW:
            msg = "a window was opened by nothing"
            raise _ProtocolError(msg)
        with self.lock:
            if not number:
                self._send_window += count & _MAX_WINDOW
                if self._send_window > _MAX_WINDOW:
                    msg = "window too large"
                    raise _ProtocolError(msg, FLOW_CONTROL_ERROR)
            elif (stream := self._streams.get(number)) is not None:
                stream.send_window += count & _MAX_WINDOW
                if stream.send_window > _MAX_WINDOW:
                    msg = "window too large"
                    raise _ProtocolError(msg, FLOW_CONTROL_ERROR)
            self._writable.notify_all()

    def _on_reset(self, number: int, payload: bytes) -> None:
        (code,) = struct.unpack(">I", payload)
        with self.lock:
            stream = self._streams.pop(number, None)
            if stream is not None:
                # A server that answered early may say NO_ERROR: send no more, but the answer holds.
                if code == NO_ERROR and stream.remote_ended:
                    stream.unwanted = stream.local_ended = True
                else:
                    stream.error = StreamReset(code)
                stream.readable.notify_all()
                self._writable.notify_all()
        self._count_reset()

    def _count_reset(self) -> None:
        """Note that the peer gave a stream up; who does nothing else is told to stop."""
        if not self._server:
            return
        now = time.monotonic()
        self._resets = min(_RESETS, self._resets + (now - self._resets_at) * _RESETS_PER_S) - 1
        self._resets_at = now
        if self._resets < 0:
            msg = "too many streams were given up"
            raise _ProtocolError(msg, ENHANCE_YOUR_CALM)

    def _on_settings(self, flags: int, payload: bytes) -> None:
        if flags & _ACK:
            return
        if len(payload) % 6:
            msg = "malformed settings"
            raise _ProtocolError(msg)
        self._greeted = True
        # Of a setting that is said several times the last counts.
        said = dict(struct.iter_unpack(">HI", payload))
        window = said.get(_S_WINDOW, self._initial_window)
        if window > _MAX_WINDOW:
            msg = "window too large"
            raise _ProtocolError(msg, FLOW_CONTROL_ERROR)
        # The peer goes by its old settings until it is told, so that nothing that needs the new ones may come before.
        with self._send_lock:
            with self.lock:
                for stream in self._streams.values() if window != self._initial_window else ():
                    stream.send_window += window - self._initial_window
                self._initial_window = window
                if _S_FRAME in said:
                    self._peer_frame = min(max(said[_S_FRAME], 16_384), _BLOCK)
                self._writable.notify_all()
            self._write_locked(_frame(_SETTINGS, _ACK, 0))

    def _on_goaway(self, payload: bytes) -> None:
        last, _code = struct.unpack_from(">II", payload)
        text = payload[8:].decode(errors="replace")
        with self.lock:
            self._going_away = True
            for number in [n for n in self._streams if n > last and not self._server]:
                stream = self._streams.pop(number)
                stream.error = ConnectionLost(f"the peer is shutting down {text}".strip())
                stream.readable.notify_all()
            self._writable.notify_all()

    def _fail(self, lost: ConnectionLost) -> None:
        with self.lock:
            if self._lost is None:
                self._lost = lost
            for stream in self._streams.values():
                if stream.error is None:
                    stream.error = self._lost
                stream.readable.notify_all()
            self._streams.clear()
            self._writable.notify_all()


def _data_frames(number: int, data: memoryview, size: int, *, last: bool) -> bytearray:
    out = bytearray()
    end = len(data)
    for at in range(0, end, size) or (0,):
        part = data[at : at + size]
        flags = _END_STREAM if last and at + size >= end else 0
        count = len(part)
        out += struct.pack(">HBBBI", count >> 8, count & 0xFF, _DATA, flags, number)
        out += part
    return out


def _joined(payload: bytes, data: bytes, at: int) -> tuple[bytes, int]:
    """Return a frame's data with those of the whole frames at ``at`` that are of its kind, flags and stream; and where they end.

    Go's gRPC makes a frame of each message, however short.
    """
    parts = [payload]
    head, end = data[at + 3 : at + 9], len(data)
    while data.startswith(head, at + 3):
        stop = at + 9 + (data[at] << 16 | data[at + 1] << 8 | data[at + 2])
        if stop > end or stop - at - 9 > _MAX_FRAME:
            break
        parts.append(data[at + 9 : stop])
        at = stop
    return b"".join(parts), at


def _unpadded(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        msg = "padding longer than its frame"
        raise _ProtocolError(msg)
    return payload[1 : len(payload) - payload[0]]
