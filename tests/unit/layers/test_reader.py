from __future__ import annotations

import io
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from crossdock.errors import LayerError
from crossdock.layers.header import END, encode_header, padding
from crossdock.layers.reader import TarReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from crossdock.layers.reader import TarEntry


def blocks(data: bytes, size: int = 1 << 20) -> Callable[[], bytes]:
    pieces: Iterator[bytes] = iter([data[i : i + size] for i in range(0, len(data), size)])
    return lambda: next(pieces, b"")


def read_all(data: bytes, size: int = 1 << 20) -> list[tuple[TarEntry, bytes]]:
    reader = TarReader(blocks(data, size))
    found = []
    while (entry := reader.next()) is not None:
        content = bytearray(entry.size)
        for at, part in reader.pieces(entry):
            content[at : at + len(part)] = part
        found.append((entry, bytes(content)))
    return found


def sealed(header: bytearray) -> bytes:
    """Give a changed header the right checksum."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def with_field(start: int, value: bytes, **fields: object) -> bytes:
    header = bytearray(encode_header(b"f", kind=b"0", **fields))  # type: ignore[arg-type]
    header[start : start + len(value)] = value
    return sealed(header)


def pax(records: bytes, kind: bytes = b"x") -> bytes:
    header = encode_header(b"PaxHeaders.0/x", kind=kind, size=len(records))
    return header + records + bytes(padding(len(records)))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("size", [1, 7, 512, 700, 1 << 20])
def test_every_format_of_tarfile_in_blocks_of_any_size(
    make_tar: Callable[..., bytes], form: int, size: int
) -> None:
    long = {tarfile.USTAR_FORMAT: "d" * 90 + "/" + "f" * 90}.get(form, "d" * 200 + "/é" + "f" * 200)
    data = make_tar(
        [
            ("dir/", {"type": tarfile.DIRTYPE, "mode": 0o755}),
            (long, {"data": b"x" * 1000, "uid": 1000, "gid": 7, "mode": 0o4755}),
            ("link", {"type": tarfile.SYMTYPE, "linkname": "l" * 99}),
            ("empty", {}),
            ("null", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}),
        ],
        format=form,
    )
    found = read_all(data, size)
    assert [(e.name.decode().rstrip("/"), e.kind, len(c)) for e, c in found] == [
        ("dir", b"5", 0),
        (long, b"0", 1000),
        ("link", b"2", 0),
        ("empty", b"0", 0),
        ("null", b"3", 0),
    ]
    entry, content = found[1]
    assert (entry.uid, entry.gid, entry.mode, entry.mtime_ns) == (1000, 7, 0o4755, 1_600_000_000 * 10**9)
    assert content == b"x" * 1000
    assert found[2][0].linkname == b"l" * 99
    assert found[4][0].device == (1, 3)


def test_content_that_is_not_read_is_skipped(make_tar: Callable[..., bytes]) -> None:
    reader = TarReader(blocks(make_tar([("a", {"data": b"x" * 5000}), ("b", {"data": b"y"})]), 600))
    names = []
    while (entry := reader.next()) is not None:
        names.append(entry.name)
    assert names == [b"a", b"b"]


@pytest.mark.parametrize(
    ("field", "size"),
    [
        (b"\x80" + bytes(10) + b"\x05", 5),
        (b"0000000005\0\0", 5),
        (b"         5 \0", 5),
        (b"\0" * 12, 0),
        (b" " * 12, 0),
        (b"00000000005 ", 5),
    ],
    ids=["base 256", "short octal", "leading spaces", "NULs", "spaces", "no NUL"],
)
def test_sizes_are_read_in_every_way_they_are_written(field: bytes, size: int) -> None:
    ((entry, _),) = read_all(with_field(124, field) + bytes(512 if size else 0) + END)
    assert entry.size == size


def test_negative_times_in_base_256() -> None:
    ((entry, _),) = read_all(with_field(136, b"\xff" * 11 + b"\xfb") + END)
    assert entry.mtime_ns == -5_000_000_000


def test_checksums_of_signed_bytes_are_accepted() -> None:
    header = bytearray(encode_header(b"f", kind=b"0"))
    header[0:4] = "ff\xe9\xe8".encode("latin-1")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(b - 256 if b > 127 else b for b in header)
    assert read_all(bytes(header) + END)[0][0].name == b"ff\xe9\xe8"


def test_pax_records_go_before_the_header() -> None:
    records = b"".join(
        (
            b"20 mtime=1234567.25\n",
            b"17 path=new/name\n",
            b"13 uid=70000\n",
            b"27 SCHILY.xattr.user.a=\0=\n\n",
        )
    )
    records = records.replace(b"27 ", b"%d " % len(b"27 SCHILY.xattr.user.a=\0=\n\n"))
    ((entry, _),) = read_all(pax(records) + encode_header(b"old", kind=b"0", uid=1) + END)
    assert (entry.name, entry.uid, entry.mtime_ns) == (b"new/name", 70000, 1_234_567_250_000_000)
    assert entry.xattrs == {"user.a": b"\0=\n"}


def test_global_records_hold_until_overridden() -> None:
    header = encode_header(b"f", kind=b"0", uid=1)
    data = pax(b"9 uid=55\n", b"g") + header + pax(b"9 uid=66\n") + header + header + END
    assert [entry.uid for entry, _ in read_all(data)] == [55, 66, 55]


def test_an_empty_value_takes_a_global_record_back() -> None:
    data = pax(b"9 uid=55\n", b"g") + pax(b"7 uid=\n") + encode_header(b"f", kind=b"0", uid=1) + END
    assert read_all(data)[0][0].uid == 1


def test_old_archives_mark_directories_by_a_slash() -> None:
    header = bytearray(encode_header(b"dir/", kind=b"0"))
    header[156] = 0
    assert read_all(sealed(header) + END)[0][0].kind == b"5"


def test_an_archive_may_end_without_its_mark() -> None:
    assert len(read_all(encode_header(b"f", kind=b"0"))) == 1
    assert len(read_all(encode_header(b"f", kind=b"0") + bytes(512))) == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        # one archive per line, with a part of the reason given
        (b"not a tar archive".ljust(512, b"."), "checksum"),
        (b"short", "ends in the middle"),
        (encode_header(b"f", kind=b"0", size=600) + bytes(512), "ends in the middle"),
        (encode_header(b"f", kind=b"0", size=600) + bytes(600), "ends in the middle"),
        (with_field(0, b"g")[:100] + bytes(412), "checksum"),
        (with_field(124, b"\xff" * 12), "size -1"),
        (with_field(124, b"\x80" + b"\xff" * 11), "size"),
        (with_field(124, b"-0000000001\0"), "size is not a number"),
        (with_field(124, b"0x00000000f\0"), "size is not a number"),
        (with_field(124, b"00000000009\0"), "size is not a number"),
        (with_field(108, b"zzzzzzz\0"), "uid is not a number"),
        (with_field(156, b"Q"), "unknown type b'Q'"),
        (encode_header(b"", kind=b"0"), "empty name"),
        (encode_header(b"f", kind=b"0") + bytes(512) + encode_header(b"f", kind=b"0"), "lone zero block"),
        (pax(b"9 uid=55\n"), "after an extended header"),
        (pax(b"9 uid=5"), "malformed PAX"),
        (pax(b"99 uid=55\n"), "malformed PAX"),
        (pax(b"0 uid=55\n"), "malformed PAX"),
        (pax(b"-9 uid=55\n"), "malformed PAX"),
        (pax(b"8 uid=55\n\n"), "malformed PAX"),
        (pax(b"6 uid55\n"), "malformed PAX"),
        (pax(b"8 uid=x\n") + encode_header(b"f", kind=b"0"), "PAX uid"),
        (pax(b"13 size=-500\n") + encode_header(b"f", kind=b"0"), "PAX size"),
        (pax(b"11 mtime=x\n") + encode_header(b"f", kind=b"0"), "PAX mtime"),
        (pax(b"14 path=a\0b/c\n") + encode_header(b"f", kind=b"0"), "NUL"),
        (encode_header(b"x", kind=b"x", size=1 << 30), "extended header of"),
        (encode_header(b"L", kind=b"L", size=1 << 21), "extended header of"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_malformed_archives_are_refused_with_a_reason(data: bytes, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        read_all(data)


@pytest.mark.parametrize(
    "form", ["gnu", "posix --sparse-version=0.0", "posix --sparse-version=0.1", "posix --sparse-version=1.0"]
)
def test_sparse_files_of_gnu_tar(tmp_path: Path, form: str) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        for at in range(60):
            file.seek(at * 200_000)
            file.write(b"data %d" % at)
        file.truncate(13_000_000)
    (tmp_path / "after").write_bytes(b"after")
    command = ["tar", "-C", str(tmp_path), "-S", *f"--format={form}".split(), "-cf", "-", "sparse", "after"]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    assert len(data) < 2_000_000
    (sparse, content), (after, last) = read_all(data, 1000)
    assert (sparse.name, after.name) == (b"sparse", b"after")
    assert content == path.read_bytes()
    assert last == b"after"


def test_a_sparse_map_that_lies_is_refused() -> None:
    header = bytearray(encode_header(b"f", kind=b"S", size=512))
    header[386:410] = b"%011o\0%011o\0" % (0, 100_000)
    header[483:495] = b"%011o\0" % 100_000
    with pytest.raises(LayerError, match="larger than its data"):
        read_all(sealed(header) + bytes(512) + END)


@given(st.binary(max_size=3000))
@settings(max_examples=200)
def test_random_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        read_all(data)
    except LayerError as exc:
        assert exc.summary  # noqa: PT017  both ends are right; nothing else may come out


@given(position=st.integers(0, 4095), value=st.integers(0, 255), size=st.sampled_from([512, 1000]))
@settings(max_examples=300)
@example(position=124, value=0x80, size=512)
def test_an_archive_with_a_changed_byte_is_read_or_refused(position: int, value: int, size: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("é" * 60, "b"):
            info = tarfile.TarInfo(name)
            info.size = 600
            archive.addfile(info, io.BytesIO(bytes(600)))
    data = bytearray(buffer.getvalue())
    data[position] = value
    try:
        read_all(bytes(data), size)
    except LayerError as exc:
        assert exc.summary  # noqa: PT017


def test_a_changed_header_with_the_right_checksum_never_crashes() -> None:
    base = encode_header(b"f", kind=b"0", size=100) + bytes(512) + END
    for position in range(500):
        if 148 <= position < 156:
            continue
        for value in (0, 0x20, 0x2F, 0x39, 0x7F, 0x80, 0xFF):
            header = bytearray(base[:512])
            header[position] = value
            try:
                read_all(sealed(header) + base[512:])
            except LayerError as exc:
                assert "invalid tar archive" in exc.summary  # noqa: PT017
