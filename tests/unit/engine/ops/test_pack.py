"""Files whose bytes are packed from where they are: what is noted, and what is refused."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from crossdock.cancel import CancelToken
from crossdock.engine.cache.layerview import LayerView
from crossdock.engine.cache.localview import LocalView
from crossdock.engine.ops import pack
from crossdock.engine.ops.copytree import CopyOptions, copy_tree
from crossdock.engine.ops.pack import DeferredContents
from crossdock.engine.ops.upper import Upper
from crossdock.errors import ContextError, LayerError
from crossdock.layers.compression import Compression
from crossdock.layers.walk import write_layer

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    (folder / "d").mkdir(parents=True)
    (folder / "d/large").write_bytes(b"large" * 1000)
    (folder / "d/empty").write_bytes(b"")
    (folder / "small").write_bytes(b"small")
    (folder / "small").chmod(0o4751)
    os.link(folder / "d/large", folder / "again")
    (folder / "link").symlink_to("small")
    os.utime(folder / "small", (1000, 1000))
    return folder


@pytest.fixture
def local(context: Path) -> Any:
    view = LocalView(context, None, None)
    yield view
    view.close()


def copied(source: Any, into: Path, defer: Any = None) -> Path:
    into.mkdir()
    upper = Upper([], into, lenient_owner=True)
    copy_tree(source, upper, CopyOptions(defer=defer), CancelToken())
    return into


class _Blob(bytearray):
    def write(self, data: Any) -> None:
        self.extend(data)


def packed(folder: Path, contents: Any = None, kind: Any = "gzip") -> Any:
    blob = _Blob()
    done = write_layer(folder, blob, compression=Compression(kind), contents=contents, cancel=CancelToken())
    return done, bytes(blob)


@pytest.mark.parametrize("kind", ["gzip", "zstd", "uncompressed"])
@pytest.mark.parametrize("of_a_layer", [False, True])
def test_the_blob_is_that_of_a_directory(
    tmp_path: Path, context: Path, local: Any, monkeypatch: pytest.MonkeyPatch, of_a_layer: Any, kind: Any
) -> None:
    monkeypatch.setattr(pack, "LEAST_BYTES", 1)
    contents = DeferredContents()
    source = LayerView([context]) if of_a_layer else local
    empty = copied(source, tmp_path / "empty", contents)
    assert contents
    assert not any(path.stat().st_size for path in empty.rglob("*") if path.is_file())
    assert packed(empty, contents, kind) == packed(copied(source, tmp_path / "full"), None, kind)


def test_few_bytes_are_copied(tmp_path: Path, context: Path) -> None:
    contents = DeferredContents()
    made = copied(LayerView([context]), tmp_path / "made", contents)
    assert not contents
    assert (made / "small").read_text() == "small"


@pytest.mark.parametrize(
    ("files", "total", "worth"),
    [(1, 64 << 20, True), (1, (64 << 20) - 1, False), (12_000, 200 << 20, False), (100, 200 << 20, True)],
)
def test_large_files_are_worth_it(files: int, total: int, worth: bool) -> None:
    assert pack.worth_packing(files, total) is worth


def test_what_follows_something_left_is_left_too(
    tmp_path: Path, context: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its inode may be that of a file that was replaced."""
    monkeypatch.setattr(pack, "LEAST_BYTES", 1000)
    monkeypatch.setattr(pack, "_LEAST_AVERAGE", 1)
    contents = DeferredContents()
    made = tmp_path / "made"
    made.mkdir()
    upper = Upper([], made, lenient_owner=True)
    copy_tree(LayerView([context]), upper, CopyOptions(defer=contents), CancelToken())
    other = tmp_path / "other"
    (other / "d").mkdir(parents=True)
    (other / "d/large").write_bytes(b"tiny")
    copy_tree(LayerView([other]), upper, CopyOptions(defer=contents), CancelToken())
    full = tmp_path / "full"
    full.mkdir()
    upper = Upper([], full, lenient_owner=True)
    copy_tree(LayerView([context]), upper, CopyOptions(), CancelToken())
    copy_tree(LayerView([other]), upper, CopyOptions(), CancelToken())
    assert packed(made, contents) == packed(full)


CHANGES = {
    "longer": lambda path: path.write_bytes(b"large" * 1001),
    "shorter": lambda path: path.write_bytes(b"large" * 999),
    "replaced": lambda path: (path.unlink(), path.write_bytes(b"LARGE" * 1000)),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_local_file_that_changes_before_it_is_packed_fails(
    tmp_path: Path, context: Path, local: Any, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    monkeypatch.setattr(pack, "LEAST_BYTES", 1)
    (context / "again").unlink()
    contents = DeferredContents()
    empty = copied(local, tmp_path / "empty", contents)
    change(context / "d/large")
    with pytest.raises(ContextError, match="d/large changed"):
        packed(empty, contents)


def test_a_file_that_changes_while_it_is_packed_fails(
    tmp_path: Path, context: Path, local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "LEAST_BYTES", 1)
    contents = DeferredContents()
    empty = copied(local, tmp_path / "empty", contents)
    inode = (empty / "d/large").stat().st_ino
    with pytest.raises(ContextError, match="changed"), contents.open(inode):
        (context / "d/large").write_bytes(b"other")


def test_the_context_is_blamed_rather_than_the_layer(
    tmp_path: Path, context: Path, local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "LEAST_BYTES", 1)
    contents = DeferredContents()
    empty = copied(local, tmp_path / "empty", contents)
    inode = (empty / "d/large").stat().st_ino
    opened = contents.open(inode)
    opened.__enter__()
    (context / "d/large").write_bytes(b"other")
    with pytest.raises(ContextError):
        opened.__exit__(LayerError, LayerError("too short"), None)
