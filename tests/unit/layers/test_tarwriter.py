from __future__ import annotations

import io
import tarfile

import pytest

from crossdock.errors import LayerError
from crossdock.layers import TarWriter


def test_an_archive_is_what_was_added_and_nothing_else() -> None:
    out = io.BytesIO()
    writer = TarWriter(out)
    writer.add_directory("blobs/")
    writer.add_bytes("blobs/" + "x" * 150, b"data", mode=0o444)
    writer.add_stream("stream", io.BytesIO(bytes(700)), 700, mtime=9)
    writer.close()
    data = out.getvalue()
    assert data[-1024:] == bytes(1024)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        found = [(m.name, m.size, m.mode, m.mtime, m.uid, m.uname) for m in archive]
    assert found == [
        ("blobs", 0, 0o755, 0, 0, ""),
        ("blobs/" + "x" * 150, 4, 0o444, 0, 0, ""),
        ("stream", 700, 0o644, 9, 0, ""),
    ]


@pytest.mark.parametrize(("length", "message"), [(699, "1 of 700 bytes are missing"), (701, "more than 700")])
def test_a_stream_of_another_length_is_an_error(length: int, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        TarWriter(io.BytesIO()).add_stream("s", io.BytesIO(bytes(length)), 700)
