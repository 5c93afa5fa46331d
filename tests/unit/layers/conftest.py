"""Fixtures and builders for the layer tests."""

from __future__ import annotations

import io
import os
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from crossdock.cancel import CancelToken
from crossdock.layers import UnpackOptions, unpack_layer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from crossdock.layers import UnpackResult

#: an ordinary user without a namespace can give nothing away
IGNORE_OWNERS = os.geteuid() != 0

Entry = tuple[str, dict[str, Any]]


@pytest.fixture
def cancel() -> CancelToken:
    return CancelToken()


@pytest.fixture
def make_tar() -> Callable[[Iterable[Entry]], bytes]:
    """Archive of ``(name, fields)``; ``data`` is the content, other fields are TarInfo's."""

    def make(entries: Iterable[Entry], **options: Any) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", **options) as archive:
            for name, fields in entries:
                info = tarfile.TarInfo(name)
                data = fields.pop("data", b"")
                info.size = len(data)
                info.mtime = 1_600_000_000
                for key, value in fields.items():
                    setattr(info, key, value)
                archive.addfile(info, io.BytesIO(data))
        return buffer.getvalue()

    return make


@pytest.fixture
def unpack(tmp_path: Path, cancel: CancelToken) -> Callable[..., tuple[Path, UnpackResult]]:
    """Unpack bytes into ``tmp_path/out``; keywords are UnpackOptions'."""

    def run(data: bytes, **options: Any) -> tuple[Path, UnpackResult]:
        dest = tmp_path / "out"
        options.setdefault("ignore_chown_errors", IGNORE_OWNERS)
        result = unpack_layer(io.BytesIO(data), dest, options=UnpackOptions(**options), cancel=cancel)
        return dest, result

    return run
