"""Encode tar headers: ustar where it suffices, PAX where not; byte for byte as Go's archive/tar.

Layers are compared by digest across tools, so the choices follow the writer that BuildKit and
containerd use: a path over 100 bytes is split into prefix and name when it can be, everything else
that does not fit becomes a PAX record, and PAX headers are named ``dir/PaxHeaders.0/file``.

Spec: POSIX.1-2001 pax; Go ``archive/tar`` (``Header.allowedFormats``, ``Writer.writePAXHeader``).
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BLOCK", "END", "XATTR_PREFIX", "encode_header", "padding"]

BLOCK = 512
#: end of an archive: two zero blocks
END = bytes(2 * BLOCK)
XATTR_PREFIX = b"SCHILY.xattr."

_NAME_SIZE = 100
_PREFIX_SIZE = 155
_MAX_ID = 0o7777777
_MAX_NUMBER = 0o77777777777
_NO_DEVICE = b"0000000\x000000000\x00"
_NO_OWNER_NAMES = bytes(64)
_NO_PREFIX = bytes(_PREFIX_SIZE + 12)
_COMMON_TAIL = b"ustar\x0000" + _NO_OWNER_NAMES + _NO_DEVICE + _NO_PREFIX
_CHECKSUM_AT = 148


def padding(size: int) -> int:
    """Zero bytes that follow ``size`` bytes of data."""
    return -size % BLOCK


def encode_header(
    name: bytes,
    *,
    kind: bytes,
    mode: int = 0,
    uid: int = 0,
    gid: int = 0,
    size: int = 0,
    mtime: int = 0,
    linkname: bytes = b"",
    device: tuple[int, int] | None = None,
    records: Mapping[bytes, bytes] | None = None,
) -> bytes:
    """Return one or, with PAX, three or more blocks; ``mtime`` in seconds, ``kind`` the type flag.

    ``records`` are further PAX records, for example extended attributes. Names hold no NUL.
    """
    fits = (
        len(name) <= _NAME_SIZE
        and len(linkname) <= _NAME_SIZE
        and 0 <= uid <= _MAX_ID
        and 0 <= gid <= _MAX_ID
        and size <= _MAX_NUMBER
        and 0 <= mtime <= _MAX_NUMBER
        and not records
        and name.isascii()
        and linkname.isascii()
    )
    if fits and device is None:
        return _block(name, kind, mode, uid, gid, size, mtime, linkname, _COMMON_TAIL)
    return _encode_slow(name, kind, mode, uid, gid, size, mtime, linkname, device, records or {})


def _encode_slow(
    name: bytes,
    kind: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    linkname: bytes,
    device: tuple[int, int] | None,
    extra: Mapping[bytes, bytes],
) -> bytes:
    records = dict(extra)
    split = _split_path(name)
    ustar = not records
    if len(name) > _NAME_SIZE or not name.isascii():
        records[b"path"] = name
        ustar = ustar and split is not None
    if len(linkname) > _NAME_SIZE or not linkname.isascii():
        records[b"linkpath"] = linkname
        ustar = False
    numbers = ((b"uid", uid, _MAX_ID), (b"gid", gid, _MAX_ID), (b"size", size, _MAX_NUMBER))
    for key, value, limit in (*numbers, (b"mtime", mtime, _MAX_NUMBER)):
        if not 0 <= value <= limit:
            records[key] = b"%d" % value
            ustar = False
    devices = b"%07o\x00%07o\x00" % device if device and max(device) <= _MAX_ID else _NO_DEVICE
    tail = b"ustar\x0000" + _NO_OWNER_NAMES + devices
    if ustar:
        prefix, short = split if split is not None else (b"", name)
        tail += prefix.ljust(_PREFIX_SIZE + 12, b"\x00")
        return _block(short, kind, mode, uid, gid, size, mtime, linkname, tail)
    main = _block(
        _field(name),
        kind,
        mode,
        uid if 0 <= uid <= _MAX_ID else 0,
        gid if 0 <= gid <= _MAX_ID else 0,
        size if size <= _MAX_NUMBER else 0,
        mtime if 0 <= mtime <= _MAX_NUMBER else 0,
        _field(linkname),
        tail + _NO_PREFIX,
    )
    return _pax_blocks(name, records) + main


def _pax_blocks(name: bytes, records: Mapping[bytes, bytes]) -> bytes:
    data = b"".join(_record(key, records[key]) for key in sorted(records))
    directory, _, file = name.rpartition(b"/")
    parts = [p for p in (directory, b"PaxHeaders.0", file) if p]
    pax_name = _ascii(b"/".join(parts))[:_NAME_SIZE].rstrip(b"/")
    header = _block(pax_name, b"x", 0, 0, 0, len(data), 0, b"", b"ustar\x0000" + bytes(247))
    return header + data + bytes(padding(len(data)))


def _record(key: bytes, value: bytes) -> bytes:
    size = len(key) + len(value) + 3  # space, equals sign, newline
    total = size + len(str(size))
    total = size + len(str(total))
    return b"%d %b=%b\n" % (total, key, value)


def _block(
    name: bytes,
    kind: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    linkname: bytes,
    tail: bytes,
) -> bytes:
    block = b"%b%07o\x00%07o\x00%07o\x00%011o\x00%011o\x00        %b%b%b" % (
        name.ljust(_NAME_SIZE, b"\x00"),
        mode,
        uid,
        gid,
        size,
        mtime,
        kind,
        linkname.ljust(_NAME_SIZE, b"\x00"),
        tail,
    )
    # Adler-32's low half is 1 + the sum of the bytes modulo 65521: exact here, where every byte is
    # below 128 and at most 500 are not zero, and 40 times as fast as sum().
    checksum = (zlib.adler32(block) & 0xFFFF) - 1
    return b"%b%06o\x00 %b" % (block[:_CHECKSUM_AT], checksum, block[_CHECKSUM_AT + 8 :])


def _ascii(text: bytes) -> bytes:
    return text if text.isascii() else bytes(c for c in text if 0 < c < 128)


def _field(text: bytes) -> bytes:
    """A name field of a header whose true value is in a PAX record."""
    text = _ascii(text)
    if len(text) > _NAME_SIZE and text[_NAME_SIZE - 1 : _NAME_SIZE] == b"/":
        # Some readers take a name that ends in a slash for a directory, whatever the type says. Go
        # puts a NUL in place of the slash and keeps the byte after it, if there was a run of slashes.
        kept = len(text[: _NAME_SIZE - 1].rstrip(b"/"))
        return text[:kept] + b"\x00" + text[kept + 1 : _NAME_SIZE]
    return text[:_NAME_SIZE]


def _split_path(name: bytes) -> tuple[bytes, bytes] | None:
    length = len(name)
    if length <= _NAME_SIZE or not name.isascii():
        return None
    if length > _PREFIX_SIZE + 1:
        length = _PREFIX_SIZE + 1
    elif name.endswith(b"/"):
        length -= 1
    at = name.rfind(b"/", 0, length)
    rest = len(name) - at - 1
    if at <= 0 or not 0 < rest <= _NAME_SIZE or at > _PREFIX_SIZE:
        return None
    return name[:at], name[at + 1 :]
