"""Frames of HTTP/2: their kinds, how they are written, and what is wrong with one by itself.

Spec: RFC 9113 sections 4, 6 and 7.
"""

from __future__ import annotations

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM = ACK = 0x1
END_HEADERS, PADDED, PRIORITY = 0x4, 0x8, 0x20
#: settings
S_STREAMS, S_WINDOW, S_FRAME, S_HEADERS = 3, 4, 5, 6

#: error codes
NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED, FRAME_SIZE_ERROR = 0, 1, 3, 5, 6
REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 7, 8, 9, 11

MAX_WINDOW = (1 << 31) - 1
#: the largest frame we take; larger ones are fewer
MAX_FRAME = 256 * 1024
#: kinds of frames whose payload has one size
_SIZES = {RST: 4, WINDOW: 4, PING: 8}


class ProtocolError(Exception):
    """The peer broke the protocol; ``code`` is what it is told."""

    def __init__(self, text: str, code: int = PROTOCOL_ERROR) -> None:
        super().__init__(text)
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return one frame."""
    return struct.pack(">HBBBI", len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


def header_frames(stream: int, block: bytes, size: int, *, end: bool) -> bytes:
    """Return a header block in frames of ``size`` bytes at most; with ``end`` it ends the stream."""
    parts = [block[at : at + size] for at in range(0, len(block), size)] or [b""]
    out = bytearray()
    for number, part in enumerate(parts):
        kind = CONTINUATION if number else HEADERS
        flags = (END_STREAM if end and not number else 0) | (END_HEADERS if part is parts[-1] else 0)
        out += frame(kind, flags, stream, part)
    return bytes(out)


def data_frames(number: int, data: memoryview, size: int, *, last: bool) -> bytearray:
    """Return data in frames of ``size`` bytes at most; with ``last`` it ends the stream."""
    out = bytearray()
    end = len(data)
    for at in range(0, end, size) or (0,):
        part = data[at : at + size]
        flags = END_STREAM if last and at + size >= end else 0
        count = len(part)
        out += struct.pack(">HBBBI", count >> 8, count & 0xFF, DATA, flags, number)
        out += part
    return out


def joined(payload: bytes, data: bytes, at: int) -> tuple[bytes, int]:
    """Return a frame's data with those of the whole frames at ``at`` that are of its kind, flags and stream; and where they end.

    Go's gRPC makes a frame of each message, however short.
    """
    parts = [payload]
    head, end = data[at + 3 : at + 9], len(data)
    while data.startswith(head, at + 3):
        stop = at + 9 + (data[at] << 16 | data[at + 1] << 8 | data[at + 2])
        if stop > end or stop - at - 9 > MAX_FRAME:
            break
        parts.append(data[at + 9 : stop])
        at = stop
    return b"".join(parts), at


def unpadded(payload: bytes) -> bytes:
    """Return the payload of a padded frame. Raises: ProtocolError."""
    if not payload or payload[0] >= len(payload):
        msg = "padding longer than its frame"
        raise ProtocolError(msg)
    return payload[1 : len(payload) - payload[0]]


def check_frame(kind: int, number: int, size: int) -> None:
    """Refuse a frame that cannot be right whatever came before it. Raises: ProtocolError."""
    if size != _SIZES.get(kind, size) or (kind == GOAWAY and size < 8):
        msg = f"a frame of kind {kind} with {size} bytes"
        raise ProtocolError(msg, FRAME_SIZE_ERROR)
    if not number and kind in (DATA, HEADERS, RST):
        msg = f"a frame of kind {kind} without a stream"
        raise ProtocolError(msg)
