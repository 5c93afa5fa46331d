from __future__ import annotations

import pytest

from crossdock.errors import CrossdockError, NotSupported, UsageError
from crossdock.layers import Compression


@pytest.mark.parametrize(
    ("attrs", "expected"),
    [
        ({}, Compression("gzip", None, False)),
        ({"compression": "zstd"}, Compression("zstd")),
        ({"compression": "zstd", "compression-level": "22"}, Compression("zstd", 22)),
        ({"compression-level": "0"}, Compression("gzip", 0)),
        ({"compression": "uncompressed", "compression-level": "3"}, Compression("uncompressed", None)),
        ({"force-compression": "true"}, Compression("gzip", None, True)),
        ({"force-compression": ""}, Compression("gzip", None, True)),
        ({"force-compression": "f", "name": "x"}, Compression("gzip", None, False)),
    ],
    ids=str,
)
def test_attributes_are_understood(attrs: dict[str, str], expected: Compression) -> None:
    assert Compression.from_attrs(attrs) == expected


@pytest.mark.parametrize(
    ("attrs", "kind", "message"),
    [
        ({"compression": "lzma"}, UsageError, "'lzma' for compression"),
        ({"compression": "estargz"}, NotSupported, "estargz"),
        ({"compression-level": "10"}, UsageError, "10 for compression-level with gzip"),
        ({"compression-level": "-1"}, UsageError, "-1 for compression-level"),
        (
            {"compression": "zstd", "compression-level": "23"},
            UsageError,
            "23 for compression-level with zstd",
        ),
        ({"compression-level": "best"}, UsageError, "non-integer value 'best'"),
        ({"force-compression": "yes"}, UsageError, "non-bool value 'yes' specified for force-compression"),
    ],
    ids=str,
)
def test_wrong_values_are_named(attrs: dict[str, str], kind: type[CrossdockError], message: str) -> None:
    with pytest.raises(kind, match=message):
        Compression.from_attrs(attrs)
