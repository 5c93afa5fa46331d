from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from crossdock.cancel import CancelToken
from crossdock.engine.store import Store
from crossdock.errors import Cancelled, DigestMismatch, StoreError
from crossdock.image.descriptor import Descriptor
from crossdock.image.digest import DiffId, sha256_digest

if TYPE_CHECKING:
    from pathlib import Path

    from crossdock.engine.store import LayerId, Lease

DIFF = DiffId("sha256:" + "a" * 64)
OTHER = DiffId("sha256:" + "b" * 64)
BLOB = Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", sha256_digest(b"blob"), 4)


def make_layer(store: Store, lease: Lease, name: str = "file", diff_id: DiffId | None = None) -> LayerId:
    with store.layers.new(lease, kind="exec", description="RUN x") as new:
        (new.fs / name).write_text("x" * 5000)
        return new.commit(diff_id=diff_id)


def test_a_committed_layer_keeps_its_files_and_says_what_it_is(store: Store, lease: Lease) -> None:
    layer = make_layer(store, lease, diff_id=DIFF)
    info = store.layers.get(layer)
    assert (info.kind, info.description, info.diff_id, info.has_directory) == ("exec", "RUN x", DIFF, True)
    assert info.size_bytes >= 5000
    directory = store.layers.directory(layer)
    assert directory is not None
    assert os.listdir(directory) == ["file"]
    assert os.listdir(directory.parent) == ["fs"]
    assert len(layer) == 8


def test_the_root_of_a_layer_is_0755_whatever_the_umask(store: Store, lease: Lease) -> None:
    before = os.umask(0o077)
    try:
        with store.layers.new(lease, kind="file") as new:
            assert new.fs.stat().st_mode & 0o7777 == 0o755
            assert new.work.is_dir()
    finally:
        os.umask(before)


def test_an_uncommitted_layer_is_removed_with_everything_in_it(store: Store, lease: Lease) -> None:
    with store.layers.new(lease, kind="exec") as new:
        deep = new.fs / "a" / "b"
        deep.mkdir(parents=True)
        (deep / "c").write_text("x")
    assert os.listdir(store.layout.layers) == []
    assert os.listdir(store.layout.trash) == []


def test_an_exception_discards_the_layer(store: Store, lease: Lease) -> None:
    with pytest.raises(ZeroDivisionError), store.layers.new(lease, kind="exec"):
        raise ZeroDivisionError
    assert os.listdir(store.layout.layers) == []


def test_a_work_directory_as_overlayfs_leaves_it_is_removed(store: Store, lease: Lease) -> None:
    with store.layers.new(lease, kind="exec") as new:
        (new.work / "work").mkdir(mode=0)
        (new.work / "work").chmod(0)
        (new.work / "index").mkdir()
        layer = new.commit()
    directory = store.layers.directory(layer)
    assert directory is not None
    assert os.listdir(directory.parent) == ["fs"]


def test_a_second_layer_with_the_same_diff_id_becomes_the_first(store: Store, lease: Lease) -> None:
    first = make_layer(store, lease, diff_id=DIFF)
    assert make_layer(store, lease, diff_id=DIFF) == first
    assert os.listdir(store.layout.layers) == [first]


def test_find_prefers_a_layer_with_a_directory(store: Store, lease: Lease) -> None:
    assert store.layers.find(DIFF) is None
    remote = store.layers.add_remote(lease, diff_id=DIFF, blob=BLOB)
    assert store.layers.find(DIFF) == remote
    local = make_layer(store, lease)
    store.layers.set_diff_id(local, DIFF)
    assert store.layers.find(DIFF, lease) == local


def test_a_layer_cannot_change_its_diff_id(store: Store, lease: Lease) -> None:
    layer = make_layer(store, lease)
    store.layers.set_diff_id(layer, DIFF)
    store.layers.set_diff_id(layer, DIFF)
    with pytest.raises(DigestMismatch):
        store.layers.set_diff_id(layer, OTHER)
    with pytest.raises(DigestMismatch):
        store.layers.add_blob(layer, BLOB, OTHER)


def test_blobs_of_several_compressions_and_repositories_are_kept(store: Store, lease: Lease) -> None:
    layer = store.layers.add_remote(lease, diff_id=DIFF, blob=BLOB, repositories=["h/one"])
    again = store.layers.add_remote(lease, diff_id=DIFF, blob=BLOB, repositories=["h/two", "h/one"])
    assert again == layer
    zstd = Descriptor("application/vnd.oci.image.layer.v1.tar+zstd", sha256_digest(b"z"), 1, {"k": "v"})
    store.layers.add_blob(layer, zstd, DIFF)
    store.layers.add_repositories([zstd.digest], ["h/three"])
    store.layers.add_repositories([zstd.digest], ["h/three"])
    blobs = {blob.compression: blob for blob in store.layers.get(layer).blobs}
    assert blobs["gzip"].descriptor == BLOB
    assert blobs["gzip"].repositories == ("h/one", "h/two")
    assert blobs["zstd"].descriptor == zstd
    assert blobs["zstd"].repositories == ("h/three",)
    store.layers.add_repositories([zstd.digest, BLOB.digest], ["h/four"])
    store.layers.add_repositories([], ["h/five"])
    blobs = {blob.compression: blob for blob in store.layers.get(layer).blobs}
    assert blobs["gzip"].repositories == ("h/four", "h/one", "h/two")
    assert blobs["zstd"].repositories == ("h/four", "h/three")


def test_unknown_layers_are_an_error(store: Store, cancel: CancelToken) -> None:
    with pytest.raises(StoreError, match="no layer"):
        store.layers.get("nothere1")
    with pytest.raises(StoreError, match="no layer"):
        store.layers.directory("nothere1")
    assert not store.layers.exists("nothere1")
    with pytest.raises(StoreError, match="no layer"):
        store.layers.set_diff_id("nothere1", DIFF)


def test_a_remote_layer_gets_its_directory_once_for_many_threads(
    store: Store, lease: Lease, cancel: CancelToken
) -> None:
    layer = store.layers.add_remote(lease, diff_id=DIFF, blob=BLOB)
    assert store.layers.directory(layer) is None
    calls = []
    started = threading.Event()

    def fill(path: Path) -> DiffId:
        calls.append(path)
        started.wait(0.2)
        (path / "x").write_text("y")
        return DIFF

    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: store.layers.materialise(layer, fill, cancel), range(8)))
    assert len(calls) == 1
    assert set(paths) == {store.layers.directory(layer)}
    assert (paths[0] / "x").read_text() == "y"
    assert paths[0].stat().st_mode & 0o777 == 0o755
    assert store.layers.get(layer).size_bytes > 0


def test_two_handles_of_one_store_fill_a_layer_once(store: Store, lease: Lease, cancel: CancelToken) -> None:
    # flock sees two handles of a process as it sees two processes
    layer = store.layers.add_remote(lease, diff_id=DIFF, blob=BLOB)
    inside, go_on = threading.Event(), threading.Event()

    def slow(path: Path) -> None:
        inside.set()
        go_on.wait(10)

    def never(path: Path) -> None:
        pytest.fail("filled twice")

    with Store.open(store.root) as other, ThreadPoolExecutor(2) as pool:
        first = pool.submit(store.layers.materialise, layer, slow, cancel)
        assert inside.wait(10)
        second = pool.submit(other.layers.materialise, layer, never, cancel)
        assert not second.done()
        go_on.set()
        assert first.result(10) == second.result(10)


def test_a_wrong_diff_id_discards_the_directory_and_it_can_be_tried_again(
    store: Store, lease: Lease, cancel: CancelToken
) -> None:
    layer = store.layers.add_remote(lease, diff_id=DIFF, blob=BLOB)
    with pytest.raises(DigestMismatch):
        store.layers.materialise(layer, lambda _path: OTHER, cancel)
    assert store.layers.directory(layer) is None
    assert os.listdir(store.layout.layers / layer) == []
    store.layers.materialise(layer, lambda _path: DIFF, cancel)
    assert store.layers.directory(layer) is not None


def test_what_a_dead_process_left_of_a_directory_is_not_reused(
    store: Store, lease: Lease, cancel: CancelToken
) -> None:
    layer = store.layers.add_remote(lease, diff_id=DIFF, blob=BLOB)
    for name in ("partial", "fs"):
        (store.layout.layers / layer / name / "old").mkdir(parents=True)
    path = store.layers.materialise(layer, lambda _path: None, cancel)
    assert os.listdir(path) == []


def test_waiting_for_a_layer_can_be_cancelled(store: Store, lease: Lease, cancel: CancelToken) -> None:
    layer = store.layers.add_remote(lease, diff_id=DIFF, blob=BLOB)
    inside, go_on = threading.Event(), threading.Event()

    def slow(path: Path) -> None:
        inside.set()
        go_on.wait(10)

    waiting = CancelToken()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(store.layers.materialise, layer, slow, cancel)
        assert inside.wait(10)
        second = pool.submit(store.layers.materialise, layer, slow, waiting)
        waiting.cancel()
        with pytest.raises(Cancelled):
            second.result(5)
        go_on.set()
        first.result(10)


def test_a_removed_layer_cannot_be_filled(store: Store, cancel: CancelToken) -> None:
    with store.lease() as lease:
        layer = store.layers.add_remote(lease, diff_id=DIFF, blob=BLOB)
    store.prune()
    with pytest.raises(StoreError, match="no layer"):
        store.layers.materialise(layer, lambda _path: None, cancel)
