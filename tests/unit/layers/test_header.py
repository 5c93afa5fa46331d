from __future__ import annotations

import hashlib
import io
import tarfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdock.layers.header import END, encode_header

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")

# Digests of what Go 1.19's archive/tar writes for these headers with Format = FormatPAX, the way
# containerd and BuildKit use it.
GO = [
    (
        "a plain file",
        {"name": b"etc/passwd", "mode": 0o644, "size": 5, "mtime": 1700000000},
        "ca86bbf9980dc5a9",
    ),
    (
        "a directory",
        {"name": b"usr/bin/", "kind": b"5", "mode": 0o755, "mtime": 1700000000},
        "293e43e05f7cee41",
    ),
    (
        "a set-id file of another owner",
        {"name": b"bin/su", "mode": 0o4755, "uid": 1000, "gid": 65534, "size": 100, "mtime": 1},
        "713f37bc983abde9",
    ),
    (
        "a symbolic link",
        {"name": b"bin", "kind": b"2", "mode": 0o777, "linkname": b"usr/bin", "mtime": 5},
        "3bb61ce073fe27b3",
    ),
    (
        "a hard link",
        {"name": b"b", "kind": b"1", "mode": 0o600, "linkname": b"a", "mtime": 5},
        "43cf596b2a37ad51",
    ),
    (
        "a path of 101 bytes that can be split",
        {"name": b"d" * 50 + b"/" + b"f" * 50, "mode": 0o644, "size": 1, "mtime": 1},
        "6028c9206982d0d8",
    ),
    (
        "a directory path that can be split before its last name",
        {"name": b"d" * 99 + b"/" + b"e" * 20 + b"/", "kind": b"5", "mode": 0o755, "mtime": 1},
        "804f7a6ede7d2efb",
    ),
    (
        "a name of 101 bytes without a slash",
        {"name": b"f" * 101, "mode": 0o644, "size": 1, "mtime": 1},
        "1eff6eebc9eb818d",
    ),
    (
        "a name that is not ASCII",
        {"name": "dir/naïve-日本".encode(), "mode": 0o644, "size": 1, "mtime": 1},
        "7288b6ea395b923a",
    ),
    (
        "a name that is not UTF-8",
        {"name": b"dir/\xff\xfe", "mode": 0o644, "size": 1, "mtime": 1},
        "1bb9e822edf626c6",
    ),
    (
        "a long link target",
        {"name": b"l", "kind": b"2", "mode": 0o777, "linkname": b"t" * 150, "mtime": 1},
        "4de5548172dc0702",
    ),
    (
        "a path cut at a slash",
        {"name": b"p" * 99 + b"/" + b"q" * 160, "mode": 0o644, "size": 1, "mtime": 1},
        "e1a85bd845da4cf6",
    ),
    (
        "a large user id",
        {"name": b"f", "mode": 0o644, "uid": 1 << 31, "gid": 1 << 24, "mtime": 1},
        "def6b5121c70ffac",
    ),
    ("a file of 9 GiB", {"name": b"f", "mode": 0o644, "size": 9 << 30, "mtime": 1}, "2448e09de69ca97a"),
    ("a time before 1970", {"name": b"f", "mode": 0o644, "mtime": -5}, "25586e62e692be8b"),
    (
        "attributes",
        {
            "name": b"bin/ping",
            "mode": 0o755,
            "size": 3,
            "mtime": 1,
            "records": {
                b"SCHILY.xattr.security.capability": CAPABILITY,
                b"SCHILY.xattr.user.note": b"a=b\n\x00",
            },
        },
        "aad615dda3026a72",
    ),
    (
        "attributes and a long path that could be split",
        {
            "name": b"d" * 50 + b"/" + b"f" * 60,
            "mode": 0o644,
            "size": 3,
            "mtime": 1,
            "records": {b"SCHILY.xattr.user.note": b"x"},
        },
        "1bc5cf6e39eeda0f",
    ),
    (
        "a record whose length has one digit more than its content",
        {"name": b"f", "mode": 0o644, "mtime": 1, "records": {b"SCHILY.xattr.user.n": b"v" * 75}},
        "b77a80f44eb0cd5f",
    ),
    (
        "a device",
        {"name": b"dev/null", "kind": b"3", "mode": 0o666, "mtime": 1, "device": (1, 3)},
        "93cf49b45e1192c6",
    ),
    ("a pipe", {"name": b"p", "kind": b"6", "mode": 0o600, "mtime": 1}, "b0106ebf9b9b18c5"),
    ("a whiteout", {"name": b"etc/.wh.passwd"}, "9cda696e344bae38"),
]


@pytest.mark.parametrize(("fields", "digest"), [case[1:] for case in GO], ids=[case[0] for case in GO])
def test_headers_are_those_of_go(fields: dict[str, Any], digest: str) -> None:
    header = encode_header(**{"kind": b"0", **fields})
    assert hashlib.sha256(header).hexdigest()[:16] == digest


names = st.binary(min_size=1, max_size=300).filter(
    lambda name: b"\0" not in name and not name.endswith(b"/") and name.strip(b"/") == name
)


@given(
    name=names,
    target=names,
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 2**32 - 2),
    mtime=st.integers(-(2**40), 2**40),
)
def test_python_reads_back_what_was_encoded(
    name: bytes, target: bytes, mode: int, uid: int, mtime: int
) -> None:
    data = encode_header(name, kind=b"2", mode=mode, uid=uid, mtime=mtime, linkname=target) + END
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as archive:
        (entry,) = archive.getmembers()
    assert entry.name.encode(errors="surrogateescape") == name
    assert entry.linkname.encode(errors="surrogateescape") == target
    assert (entry.mode, entry.uid, entry.mtime) == (mode, uid, mtime)
