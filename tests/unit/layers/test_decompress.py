from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import zlib
from typing import TYPE_CHECKING

import pytest
import zstandard

from crossdock.errors import LayerError
from crossdock.layers import Compression, decompressor, open_decompressed, recompress
from crossdock.layers.feed import BlockFeed

if TYPE_CHECKING:
    from collections.abc import Callable

    from crossdock.cancel import CancelToken

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}
KINDS = list(COMPRESSORS)
PLAIN = b"".join(b"line %d\n" % number for number in range(300_000))


class Trickle:
    """Gives a few bytes at a time, as sockets do."""

    def __init__(self, data: bytes, step: int) -> None:
        self._data = io.BytesIO(data)
        self._step = step

    def read(self, size: int) -> bytes:
        return self._data.read(min(size, self._step))


@pytest.mark.parametrize("kind", [*KINDS, "uncompressed"])
def test_each_form_is_recognised_and_undone(kind: str) -> None:
    data = COMPRESSORS.get(kind, bytes)(PLAIN)
    name, reader = open_decompressed(io.BytesIO(data))
    assert name == kind
    assert reader.read(10) == PLAIN[:10]
    assert reader.read() == PLAIN[10:]
    assert reader.read(10) == b""


@pytest.mark.parametrize("kind", [*KINDS, "uncompressed"])
@pytest.mark.parametrize("step", [1, 5, 4097])
def test_sources_that_give_little_at_a_time(kind: str, step: int) -> None:
    short = PLAIN[:20_000]
    data = COMPRESSORS.get(kind, bytes)(short)
    assert open_decompressed(Trickle(data, step))[1].read() == short


@pytest.mark.parametrize("kind", KINDS)
def test_several_members_are_one_stream(kind: str) -> None:
    compress = COMPRESSORS[kind]
    data = compress(b"one,") + compress(b"") + compress(b"two")
    for step in (1, 1 << 20):
        assert open_decompressed(Trickle(data, step))[1].read() == b"one,two"


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_after_the_end_are_padding(kind: str) -> None:
    assert decompressor(io.BytesIO(COMPRESSORS[kind](b"data") + bytes(3000))).read() == b"data"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tail", [b"garbage", b"\0\0garbage and more of it", b"x"])
def test_garbage_after_the_end_is_an_error(kind: str, tail: bytes) -> None:
    with pytest.raises(LayerError, match=f"garbage after the {kind} data"):
        decompressor(io.BytesIO(COMPRESSORS[kind](b"data") + tail)).read()


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_that_is_cut_short_is_an_error_at_every_length(kind: str) -> None:
    data = COMPRESSORS[kind](PLAIN[:2000])
    for length in (*range(6, 40), *range(40, len(data), 17), len(data) - 1):
        with pytest.raises(LayerError, match=f"{kind} data (ends early|is corrupt)"):
            decompressor(io.BytesIO(data[:length])).read()


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz"])
def test_a_changed_byte_is_an_error(kind: str) -> None:
    data = bytearray(COMPRESSORS[kind](os.urandom(5000)))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(LayerError, match=f"{kind} data"):
        decompressor(io.BytesIO(bytes(data))).read()


def test_a_gzip_checksum_is_verified() -> None:
    data = bytearray(gzip.compress(b"data"))
    data[-6] ^= 1
    with pytest.raises(LayerError, match="gzip data is corrupt"):
        decompressor(io.BytesIO(bytes(data))).read()


def test_gzip_headers_with_names_and_comments() -> None:
    raw = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = raw.compress(b"data") + raw.flush()
    header = b"\x1f\x8b\x08\x18" + bytes(6) + b"name\0comment\0"
    trailer = zlib.crc32(b"data").to_bytes(4, "little") + (4).to_bytes(4, "little")
    assert decompressor(io.BytesIO(header + body + trailer)).read() == b"data"


def test_skippable_zstd_frames_are_skipped() -> None:
    frame = b"\x55\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"skip!"
    data = frame + COMPRESSORS["zstd"](b"data") + frame
    assert decompressor(io.BytesIO(data)).read() == b"data"


@pytest.mark.parametrize(
    ("kind", "size", "limit"), [*((k, 40, 1) for k in KINDS[:1] + KINDS[2:]), ("zstd", 200, 128)]
)
def test_a_bomb_comes_in_bounded_pieces(kind: str, size: int, limit: int) -> None:
    reader = decompressor(io.BytesIO(COMPRESSORS[kind](bytes(size << 20))))
    largest = total = 0
    while part := reader.read(1 << 30):
        largest = max(largest, len(part))
        total += len(part)
    assert total == size << 20
    assert largest <= limit << 20


def test_short_streams_are_plain() -> None:
    for data in (b"", b"x", b"\x1f\x8b"):
        assert open_decompressed(io.BytesIO(data))[0] == "uncompressed"
        assert decompressor(io.BytesIO(data)).read() == data


def test_a_feed_gives_all_blocks_and_hands_on_errors(cancel: CancelToken) -> None:
    data = os.urandom(5_000_001)
    with BlockFeed(io.BytesIO(data), cancel=cancel) as feed:
        got = []
        while block := feed.next():
            got.append(block)
    assert b"".join(got) == data
    assert feed.size == len(data)
    broken = decompressor(io.BytesIO(gzip.compress(data)[:-100_000]))
    with pytest.raises(LayerError), BlockFeed(broken, cancel=cancel) as feed:
        feed.drain()


def test_leaving_a_feed_early_ends_its_thread(cancel: CancelToken) -> None:
    with BlockFeed(io.BytesIO(bytes(50 << 20)), cancel=cancel) as feed:
        feed.next()


def test_recompressing_keeps_the_plain_bytes(cancel: CancelToken) -> None:
    for kind in ("zstd", "uncompressed", "gzip"):
        out = io.BytesIO()
        result = recompress(
            io.BytesIO(bz2.compress(PLAIN)), out, compression=Compression(kind), cancel=cancel
        )
        assert decompressor(io.BytesIO(out.getvalue())).read() == PLAIN
        assert (result.uncompressed_size, result.size) == (len(PLAIN), len(out.getvalue()))
