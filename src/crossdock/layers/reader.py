"""Parse tar streams: ustar, old V7, PAX with global records, GNU long names, GNU sparse files.

Every archive is taken for hostile: sizes are bounded, numbers and records checked, and what is not
understood is an error. Whether a *name* is harmless is not decided here (``crossdock.layers.unpack``).

Spec: POSIX.1-2001 pax; GNU tar manual, "Basic Tar Format"; where they leave room, Go's archive/tar.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

from crossdock.errors import LayerError
from crossdock.layers import sparse
from crossdock.layers.header import BLOCK, padding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["TarEntry", "TarReader"]

_MAX_EXTENSION = 1 << 20  # as Go: a PAX header or long name larger than this is an attack
_MAX_GLOBALS = 1000
_MAX_SIZE = 1 << 62
_ZERO = bytes(BLOCK)
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_XATTR = "SCHILY.xattr."
_NO_DATA = frozenset((b"1", b"2", b"3", b"4", b"5", b"6"))
_REGULAR = frozenset((b"0", b"\x00", b"7", b"S"))
#: kinds that are returned; others are extensions, skipped, or errors
_KNOWN = _NO_DATA | _REGULAR
_VOLUME_LABEL = b"V"
_DUMP_DIRECTORY = b"D"


class TarEntry:
    """One entry. ``kind`` is the type flag, ``"0"`` for every sort of regular file."""

    __slots__ = (
        "device",
        "gid",
        "kind",
        "linkname",
        "mode",
        "mtime_ns",
        "name",
        "segments",
        "size",
        "uid",
        "xattrs",
    )

    def __init__(self, name: bytes, kind: bytes) -> None:
        #: as stored: may be absolute, hold ``..``, or end with a slash
        self.name = name
        self.kind = kind
        self.mode = 0
        self.uid = 0
        self.gid = 0
        #: bytes of content, holes included
        self.size = 0
        self.mtime_ns = 0
        self.linkname = b""
        self.device = (0, 0)
        self.xattrs: dict[str, bytes] | None = None
        #: ``(offset, length)`` of the parts that hold data; None when all does
        self.segments: list[tuple[int, int]] | None = None


class TarReader:
    """Reads entries in order from blocks of any size (``next_block`` gives ``b""`` at the end)."""

    def __init__(self, next_block: Callable[[], bytes]) -> None:
        self._next_block = next_block
        self._view = memoryview(b"")
        self._at = 0
        self._data_left = 0
        self._data_pad = 0
        self._globals: dict[str, bytes] = {}
        self._number = 0

    def next(self) -> TarEntry | None:
        """Return the next entry, whose content may then be read; None at the end of the archive.

        Raises: LayerError when the archive is malformed or cut short.
        """
        self._skip(self._data_left + self._data_pad)
        self._data_left = self._data_pad = 0
        records: dict[str, bytes] = {}
        long_name = long_link = b""
        while True:
            header = self._read(BLOCK, at_end=True)
            if not header:
                if records or long_name or long_link:
                    self._fail("ends after an extended header")
                return None
            if header == _ZERO:
                self._end_mark()
                return None
            self._number += 1
            kind = header[156:157]
            if kind == b"x":
                records = _parse_records(self._extension(header), self._number)
            elif kind == b"g":
                self._globals.update(_parse_records(self._extension(header), self._number))
                if len(self._globals) > _MAX_GLOBALS:
                    self._fail("has too many global records")
            elif kind == b"L":
                long_name = self._extension(header).partition(b"\x00")[0]
            elif kind == b"K":
                long_link = self._extension(header).partition(b"\x00")[0]
            elif kind == _VOLUME_LABEL:
                _check(header, self._number)
            else:
                if self._globals:
                    records = {**self._globals, **records}
                return self._entry(header, records, long_name, long_link)

    def pieces(self, entry: TarEntry) -> Iterator[tuple[int, memoryview]]:
        """Yield the content of the entry just returned as ``(offset, bytes)``; holes are left out.

        Raises: LayerError when the archive is cut short.
        """
        if entry.segments is not None:
            for offset, length in entry.segments:
                at = offset
                for part in self._data(length):
                    yield at, part
                    at += len(part)
            return
        at = 0
        for part in self._data(self._data_left):
            yield at, part
            at += len(part)

    def _data(self, count: int) -> Iterator[memoryview]:
        if count > self._data_left:
            self._fail("has a sparse map larger than its data")
        while count:
            part = self._available(count)
            self._data_left -= len(part)
            count -= len(part)
            yield part

    def _available(self, limit: int) -> memoryview:
        """Take what is at hand, at least a byte."""
        if self._at == len(self._view):
            block = self._next_block()
            if not block:
                self._fail("ends in the middle of a file")
            self._view, self._at = memoryview(block), 0
        part = self._view[self._at : self._at + limit]
        self._at += len(part)
        return part

    def _read(self, count: int, *, at_end: bool = False) -> bytes:
        """Read exactly ``count`` bytes; none, when ``at_end`` and the stream is over."""
        part = self._view[self._at : self._at + count]
        if len(part) == count:
            self._at += count
            return bytes(part)
        if at_end and not part:
            block = self._next_block()
            if not block:
                return b""
            self._view, self._at = memoryview(block), 0
        parts = []
        while count:
            part = self._available(count)
            parts.append(bytes(part))
            count -= len(part)
        return b"".join(parts)

    def _skip(self, count: int) -> None:
        while count:
            count -= len(self._available(count))

    def _end_mark(self) -> None:
        second = self._read(BLOCK, at_end=True)
        if second and second != _ZERO:
            self._fail("goes on after a lone zero block")

    def _extension(self, header: bytes) -> bytes:
        size = _check(header, self._number).size
        if size > _MAX_EXTENSION:
            self._fail(f"has an extended header of {size} bytes")
        data = self._read(size)
        self._skip(padding(size))
        return data

    def _entry(
        self, header: bytes, records: dict[str, bytes], long_name: bytes, long_link: bytes
    ) -> TarEntry:
        entry = _check(header, self._number)
        entry.name = long_name or entry.name
        entry.linkname = long_link or entry.linkname
        if records:
            _apply_records(entry, records, self._number)
        kind = entry.kind
        if kind == _DUMP_DIRECTORY:
            kind = b"5"
        if kind not in _KNOWN:
            self._fail(f"has an entry of unknown type {kind!r}")
        self._data_left = 0 if kind in _NO_DATA else entry.size
        if entry.kind == _DUMP_DIRECTORY:
            self._data_left = entry.size
        self._data_pad = padding(self._data_left)
        if kind == b"S":
            entry.segments, entry.size = sparse.old_gnu_map(header, self._read)
        elif any(key.startswith("GNU.sparse.") for key in records):
            self._pax_sparse(entry, records)
        if kind in _NO_DATA:
            entry.size = 0
        elif kind != b"5":
            # V7 archives have no directory type: the name says it.
            kind = b"5" if kind == b"\x00" and entry.name.endswith(b"/") else b"0"
        entry.kind = kind
        if b"\x00" in entry.name or b"\x00" in entry.linkname or not entry.name:
            self._fail("has an entry with an empty name or a NUL in it")
        return entry

    def _pax_sparse(self, entry: TarEntry, records: dict[str, bytes]) -> None:
        name = records.get("GNU.sparse.name")
        if name:
            entry.name = name
        if records.get("GNU.sparse.major") == b"1":
            entry.segments, entry.size = sparse.pax_1_map(records, self._map_block)
        else:
            entry.segments, entry.size = sparse.pax_0_map(records)

    def _map_block(self, count: int) -> bytes:
        if count > self._data_left:
            self._fail("has a sparse map larger than its data")
        self._data_left -= count
        return self._read(count)

    def _fail(self, what: str) -> None:
        summary = f"invalid tar archive: it {what} (entry {self._number})"
        raise LayerError(summary)


def _check(header: bytes, number: int) -> TarEntry:
    """Check the sum and parse the fixed fields."""
    fields = _HEADER.unpack(header)
    blanked = header[:148] + b"        " + header[156:]
    stated = _number(fields[6], "checksum", number)
    total = (zlib.adler32(blanked) & 0xFFFF) - 1  # the sum of the bytes modulo 65521
    if stated % 65521 != total % 65521 and stated != sum(b - ((b & 128) << 1) for b in blanked):
        summary = f"invalid tar archive: wrong header checksum (entry {number})"
        raise LayerError(summary, hint="the file is not a tar archive, or is damaged")
    name = fields[0].partition(b"\x00")[0]
    if fields[9] == b"ustar\x0000" and fields[14][0]:
        name = fields[14].partition(b"\x00")[0] + b"/" + name
    entry = TarEntry(name, fields[7])
    entry.mode = _number(fields[1], "mode", number) & 0o7777
    entry.uid = _number(fields[2], "uid", number)
    entry.gid = _number(fields[3], "gid", number)
    entry.size = _number(fields[4], "size", number)
    entry.mtime_ns = _number(fields[5], "mtime", number) * 1_000_000_000
    entry.linkname = fields[8].partition(b"\x00")[0]
    if entry.kind in (b"3", b"4") and fields[9].startswith(b"ustar"):
        entry.device = (_number(fields[12], "device", number), _number(fields[13], "device", number))
    _check_size(entry.size, number)
    return entry


def _check_size(size: int, number: int) -> None:
    if not 0 <= size < _MAX_SIZE:
        summary = f"invalid tar archive: size {size} (entry {number})"
        raise LayerError(summary)


def _number(field: bytes, what: str, number: int) -> int:
    text = field.rstrip(b" \x00")
    if text.isdigit():
        try:
            return int(text, 8)
        except ValueError:
            text = b"?"
    elif field[0] & 0x80:
        # Base 256, big endian, two's complement: the top bit is the mark, the next one the sign.
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        return value - (1 << (8 * len(field) - 1)) if field[0] & 0x40 else value
    text = text.partition(b"\x00")[0].strip(b" ")
    if not text:
        return 0
    if text.isdigit() and not text.strip(b"01234567"):
        return int(text, 8)
    summary = f"invalid tar archive: {what} is not a number (entry {number})"
    raise LayerError(summary)


def _parse_records(data: bytes, number: int) -> dict[str, bytes]:
    """Parse ``length key=value newline`` records; the later of two with one key counts."""
    records: dict[str, bytes] = {}
    sparse_map: list[bytes] = []
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 20)
        digits = data[at:space] if space > at else b""
        end = at + int(digits) if digits.isdigit() else -1
        if not space < end <= len(data) or data[end - 1 : end] != b"\n":
            summary = f"invalid tar archive: malformed PAX record (entry {number})"
            raise LayerError(summary)
        key_bytes, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or not key_bytes or b"\x00" in key_bytes:
            summary = f"invalid tar archive: malformed PAX record (entry {number})"
            raise LayerError(summary)
        key = key_bytes.decode("utf-8", "surrogateescape")
        if key in ("GNU.sparse.offset", "GNU.sparse.numbytes"):
            sparse_map.append(value)  # format 0.0 repeats these two keys
        records[key] = value
        at = end
    if sparse_map:
        records["GNU.sparse.map"] = b",".join(sparse_map)
    return records


def _apply_records(entry: TarEntry, records: dict[str, bytes], number: int) -> None:
    for key, value in records.items():
        if key.startswith(_XATTR):
            if entry.xattrs is None:
                entry.xattrs = {}
            entry.xattrs[key[len(_XATTR) :]] = value
        elif not value:
            continue  # an empty value takes back an earlier record: the header's field counts
        elif key == "path":
            entry.name = value
        elif key == "linkpath":
            entry.linkname = value
        elif key == "mtime":
            entry.mtime_ns = _pax_time_ns(value, number)
        elif key in ("size", "uid", "gid"):
            setattr(entry, key, _pax_number(value, key, number))


def _pax_number(value: bytes, key: str, number: int) -> int:
    if not value.isdigit() or len(value) > 20:
        summary = f"invalid tar archive: PAX {key} {value[:30]!r} is not a number (entry {number})"
        raise LayerError(summary)
    result = int(value)
    _check_size(result, number)
    return result


def _pax_time_ns(value: bytes, number: int) -> int:
    sign = -1 if value.startswith(b"-") else 1
    whole, dot, fraction = value.lstrip(b"-").partition(b".")
    if not whole.isdigit() or len(whole) > 18 or (dot and fraction and not fraction.isdigit()):
        summary = f"invalid tar archive: PAX mtime {value[:30]!r} is not a time (entry {number})"
        raise LayerError(summary)
    return sign * (int(whole) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0") or b"0"))
