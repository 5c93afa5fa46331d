"""One HTTP/2 connection over a byte stream: flow control, streams that block.

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
from typing import TYPE_CHECKING

from crossdock.buildkit.rpc.frames import (
    ACK,
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    GOAWAY,
    HEADERS,
    MAX_FRAME,
    MAX_WINDOW,
    NO_ERROR,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    REFUSED_STREAM,
    RST,
    S_FRAME,
    S_HEADERS,
    S_STREAMS,
    S_WINDOW,
    SETTINGS,
    STREAM_CLOSED,
    WINDOW,
    ProtocolError,
    check_frame,
    data_frames,
    frame,
    header_frames,
    joined,
    unpadded,
)
from crossdock.buildkit.rpc.hpack import Decoder, HeaderError, encode
from crossdock.buildkit.rpc.streams import STREAM_WINDOW, ConnectionLost, Stream, StreamReset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from crossdock.buildkit.transport import ByteStream

__all__ = ["MAX_STREAMS", "Connection"]

_DEFAULT_WINDOW = 65_535
#: bytes a peer may have under way to us on all streams together
_CONNECTION_WINDOW = 32 << 20
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
            S_STREAMS: MAX_STREAMS,
            S_WINDOW: STREAM_WINDOW,
            S_FRAME: MAX_FRAME,
            S_HEADERS: self._max_headers,
        }
        payload = b"".join(struct.pack(">HI", k, v) for k, v in settings.items())
        greeting = frame(SETTINGS, 0, 0, payload)
        greeting += frame(WINDOW, 0, 0, struct.pack(">I", _CONNECTION_WINDOW - _DEFAULT_WINDOW))
        self._write(greeting if self._server else PREFACE + greeting)
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
            self._write_locked(header_frames(stream.number, block, self._peer_frame, end=end))
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
            self._write_locked(header_frames(stream.number, block, self._peer_frame, end=end))
        self._forget_ended(stream)

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
                self._write_locked(data_frames(stream.number, view[at : at + count], size, last=last))
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
                out += frame(WINDOW, 0, 0, struct.pack(">I", self._owed))
                self._receive_window += self._owed
                self._owed = 0
            if stream is not None and not stream.remote_ended:
                stream.owed += count
                if stream.owed >= STREAM_WINDOW // 4:
                    out += frame(WINDOW, 0, stream.number, struct.pack(">I", stream.owed))
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
                self._write(frame(RST, 0, stream.number, struct.pack(">I", code)))

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
        except (ProtocolError, HeaderError) as exc:
            code = exc.code if isinstance(exc, ProtocolError) else COMPRESSION_ERROR
            with contextlib.suppress(ConnectionLost):
                self._write(frame(GOAWAY, 0, 0, struct.pack(">II", self._last_peer, code)))
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
                if not self._greeted and data[at + 3] != SETTINGS:
                    msg = "the peer does not speak gRPC (is TLS wanted, or is it another service?)"
                    raise ProtocolError(msg)
                if length > MAX_FRAME:
                    msg = "frame larger than allowed"
                    raise ProtocolError(msg)
                if end - at - 9 < length:
                    break
                number = int.from_bytes(data[at + 5 : at + 9], "big") & MAX_WINDOW
                payload, kind, flags = data[at + 9 : at + 9 + length], data[at + 3], data[at + 4]
                at += 9 + length
                if (
                    kind == DATA
                    and not flags
                    and data.startswith(data[at - length - 6 : at - length], at + 3)
                ):
                    payload, at = joined(payload, data, at)
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
        while len(data) < len(PREFACE):
            block = self._bytes.recv(_BLOCK)
            if not block:
                break
            data += block
        if data[: len(PREFACE)] != PREFACE:
            if not data:
                return b""
            msg = "the peer does not speak HTTP/2"
            raise ProtocolError(msg)
        return data[len(PREFACE) :]

    def _handle(self, kind: int, flags: int, number: int, payload: bytes, touched: set[Stream]) -> None:
        if self._open_block is not None and (kind != CONTINUATION or number != self._open_block[0]):
            msg = "a header block was interrupted"
            raise ProtocolError(msg)
        check_frame(kind, number, len(payload))
        if kind == DATA:
            self._on_data(flags, number, payload, touched)
        elif kind == HEADERS:
            self._on_headers(flags, number, payload)
        elif kind == CONTINUATION:
            self._on_continuation(flags, payload)
        elif kind == WINDOW:
            self._on_window(number, payload)
        elif kind == RST:
            self._on_reset(number, payload)
        elif kind == SETTINGS:
            self._on_settings(flags, payload)
        elif kind == PING:
            if not flags & ACK:
                self._write(frame(PING, ACK, 0, payload))
        elif kind == GOAWAY:
            self._on_goaway(payload)
        # Unknown kinds, priorities among them, are to be ignored.

    def _on_data(self, flags: int, number: int, payload: bytes, touched: set[Stream]) -> None:
        count = len(payload)
        if flags & PADDED:
            payload = unpadded(payload)
        ended = bool(flags & END_STREAM)
        with self.lock:
            self._receive_window -= count
            stream = self._streams.get(number)
            if stream is not None:
                stream.receive_window -= count
            if self._receive_window < 0 or (stream is not None and stream.receive_window < 0):
                msg = "more data than the window allows"
                raise ProtocolError(msg, FLOW_CONTROL_ERROR)
            if stream is not None:
                if stream.remote_ended:
                    msg = "data after the end of a stream"
                    raise ProtocolError(msg, STREAM_CLOSED)
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
        if flags & PADDED:
            payload = unpadded(payload)
        if flags & PRIORITY:
            payload = payload[5:]
        if flags & END_HEADERS:
            self._on_block(number, flags, payload)
        else:
            self._open_block = (number, flags, bytearray(payload))

    def _on_continuation(self, flags: int, payload: bytes) -> None:
        if self._open_block is None:
            msg = "continuation of no header block"
            raise ProtocolError(msg)
        number, first_flags, block = self._open_block
        block += payload
        if len(block) > self._max_headers:
            msg = "header block too large"
            raise ProtocolError(msg)
        if flags & END_HEADERS:
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
                    raise ProtocolError(msg)
                self._last_peer = number
                if len(self._streams) < MAX_STREAMS:
                    stream = opened = Stream(self, number, self._initial_window)
                    self._streams[number] = stream
                else:
                    refused = True
            if stream is not None:  # else an answer to what we reset
                if stream.remote_ended or len(stream.blocks) >= _MAX_BLOCKS:
                    msg = "headers that nobody waits for"
                    raise ProtocolError(msg)
                if stream is not opened and self._server and not flags & END_STREAM:
                    msg = "headers in the middle of a stream"
                    raise ProtocolError(msg)
                stream.blocks.append(headers)
                if flags & END_STREAM:
                    stream.remote_ended = True
                    if stream.local_ended:
                        del self._streams[number]
                stream.readable.notify_all()
        if refused:
            self._write(frame(RST, 0, number, struct.pack(">I", REFUSED_STREAM)))
        if opened is not None and self._on_stream is not None:
            self._on_stream(opened)

    def _on_window(self, number: int, payload: bytes) -> None:
        (count,) = struct.unpack(">I", payload)
        if not count & MAX_WINDOW:
            msg = "a window was opened by nothing"
            raise ProtocolError(msg)
        with self.lock:
            if not number:
                self._send_window += count & MAX_WINDOW
                if self._send_window > MAX_WINDOW:
                    msg = "window too large"
                    raise ProtocolError(msg, FLOW_CONTROL_ERROR)
            elif (stream := self._streams.get(number)) is not None:
                stream.send_window += count & MAX_WINDOW
                if stream.send_window > MAX_WINDOW:
                    msg = "window too large"
                    raise ProtocolError(msg, FLOW_CONTROL_ERROR)
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
            raise ProtocolError(msg, ENHANCE_YOUR_CALM)

    def _on_settings(self, flags: int, payload: bytes) -> None:
        if flags & ACK:
            return
        if len(payload) % 6:
            msg = "malformed settings"
            raise ProtocolError(msg)
        self._greeted = True
        # Of a setting that is said several times the last counts.
        said = dict(struct.iter_unpack(">HI", payload))
        window = said.get(S_WINDOW, self._initial_window)
        if window > MAX_WINDOW:
            msg = "window too large"
            raise ProtocolError(msg, FLOW_CONTROL_ERROR)
        # The peer goes by its old settings until it is told, so that nothing that needs the new ones may come before.
        with self._send_lock:
            with self.lock:
                for stream in self._streams.values() if window != self._initial_window else ():
                    stream.send_window += window - self._initial_window
                self._initial_window = window
                if S_FRAME in said:
                    self._peer_frame = min(max(said[S_FRAME], 16_384), _BLOCK)
                self._writable.notify_all()
            self._write_locked(frame(SETTINGS, ACK, 0))

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
