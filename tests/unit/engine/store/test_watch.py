"""The limit of a store while things are written to it."""

from __future__ import annotations

import os
import threading
import time
from contextvars import copy_context
from typing import TYPE_CHECKING

import pytest

from crossdock.cancel import CancelToken
from crossdock.engine.store import Store
from crossdock.engine.store.unfinished import note_unfinished
from crossdock.engine.store.watch import SpaceWatch, measure
from crossdock.errors import StoreFull

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from crossdock.engine.store import Lease

MB = 1_000_000
DEADLINE_S = 30


@pytest.fixture
def watch(store: Store) -> Iterator[SpaceWatch]:
    made = SpaceWatch(store, 20 * MB)
    yield made
    made.close()


def fill(path: Path, size: int) -> None:
    path.write_bytes(os.urandom(size))


def until_ended(token: CancelToken) -> None:
    assert token.wait(DEADLINE_S), "nobody ended the writer"


def committed_layer(store: Store, size: int) -> str:
    with store.lease() as lease, store.layers.new(lease, kind="exec") as new:
        fill(new.fs / "data", size)
        layer = new.commit()
        store.records.save(f"result of {layer}", [(layer,)], lease=lease)
    return layer


# --- measuring ---


def test_what_is_not_committed_is_measured_by_name(store: Store, lease: Lease, cancel: CancelToken) -> None:
    committed_layer(store, MB)
    with (
        store.layers.new(lease, kind="exec") as new,
        store.content.writer(lease) as blob,
        store.mounts.use(lease, name="m", sharing="shared", cancel=cancel) as mount,
    ):
        fill(new.fs / "x", 3 * MB)
        blob.write(os.urandom(2 * MB))
        fill(mount / "y", 4 * MB)
        found = measure(store)
    assert 5 * MB <= found.committed < 6 * MB, "the layer and the cache mount"
    assert sorted(size // MB for size in found.writing.values()) == [2, 3]
    assert [size // MB for size in found.mounts.values()] == [4]
    assert 10 * MB <= found.total < 11 * MB


def test_a_layer_being_unpacked_counts_once(store: Store, lease: Lease, cancel: CancelToken) -> None:
    from crossdock.image.descriptor import Descriptor
    from crossdock.image.digest import DiffId, sha256_digest

    blob = Descriptor(media_type="application/vnd.oci.image.layer.v1.tar", digest=sha256_digest(b""), size=1)
    layer = store.layers.add_remote(lease, diff_id=DiffId(sha256_digest(b"d")), blob=blob)
    seen = []

    def unpack(dest: Path) -> None:
        fill(dest / "x", 3 * MB)
        seen.append(measure(store))

    store.layers.materialise(layer, unpack, cancel)
    assert [(m.committed // MB, m.writing[layer] // MB) for m in seen] == [(0, 3)]
    after = measure(store)
    assert (after.committed // MB, dict(after.writing)) == (3, {})


# --- keeping the limit ---


def test_a_writer_above_the_limit_is_ended_while_it_writes(
    store: Store, lease: Lease, watch: SpaceWatch, cancel: CancelToken
) -> None:
    with watch.writing(cancel), store.layers.new(lease, kind="exec") as new:
        fill(new.fs / "x", 21 * MB)
        until_ended(cancel)
    assert isinstance(cancel.cause, StoreFull)
    assert cancel.cause.summary == "the store has reached its limit of 20.00MB (max-used-space)"
    assert "MB more are being written" in (cancel.cause.detail or "")


def test_what_may_go_goes_first(store: Store, lease: Lease, watch: SpaceWatch, cancel: CancelToken) -> None:
    old = committed_layer(store, 15 * MB)
    with watch.writing(cancel), store.layers.new(lease, kind="exec") as new:
        fill(new.fs / "x", 15 * MB)
        deadline = time.monotonic() + DEADLINE_S
        while store.layers.exists(old):
            assert time.monotonic() < deadline, "nothing was pruned"
            time.sleep(0.02)
        assert not cancel.wait(0.5), cancel.cause
        new.commit()


def test_nothing_is_pruned_for_a_writer_that_cannot_fit(
    store: Store, lease: Lease, watch: SpaceWatch, cancel: CancelToken
) -> None:
    old = committed_layer(store, 5 * MB)
    fill(store.root / "x", 25 * MB)
    with watch.writing(cancel), store.layers.new(lease, kind="exec") as new:
        # At once: of one half there would be room, and rightly made.
        (store.root / "x").rename(new.fs / "x")
        until_ended(cancel)
    assert store.layers.exists(old)


@pytest.mark.parametrize("what", ["blob", "cache mount", "unpacking"])
def test_all_that_is_written_counts(
    store: Store, lease: Lease, watch: SpaceWatch, cancel: CancelToken, what: str
) -> None:
    from crossdock.image.descriptor import Descriptor
    from crossdock.image.digest import DiffId, sha256_digest

    def unpack(dest: Path) -> None:
        fill(dest / "x", 21 * MB)
        until_ended(cancel)

    with watch.writing(cancel):
        if what == "blob":
            with store.content.writer(lease) as blob:
                blob.write(os.urandom(21 * MB))
                until_ended(cancel)
        elif what == "cache mount":
            with store.mounts.use(lease, name="m", sharing="shared", cancel=CancelToken()) as mount:
                fill(mount / "x", 21 * MB)
                until_ended(cancel)
        else:
            described = Descriptor(
                media_type="application/vnd.oci.image.layer.v1.tar", digest=sha256_digest(b""), size=1
            )
            layer = store.layers.add_remote(lease, diff_id=DiffId(sha256_digest(b"d")), blob=described)
            store.layers.materialise(layer, unpack, CancelToken())
    assert isinstance(cancel.cause, StoreFull)


def test_the_writer_that_writes_most_is_ended(store: Store, lease: Lease, watch: SpaceWatch) -> None:
    large, small = CancelToken(), CancelToken()
    ready = threading.Barrier(2)

    def write(token: CancelToken, size: int) -> None:
        with watch.writing(token), store.layers.new(lease, kind="exec") as new:
            ready.wait()
            fill(new.fs / "x", size)
            large.wait(DEADLINE_S)

    threads = [
        threading.Thread(target=write, args=(large, 15 * MB)),
        threading.Thread(target=write, args=(small, 8 * MB)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert large.cancelled
    assert not small.cancelled


def test_threads_that_work_for_a_writer_are_counted_for_it(
    store: Store, lease: Lease, watch: SpaceWatch
) -> None:
    large, small = CancelToken(), CancelToken()

    def write(size: int) -> None:
        with store.layers.new(lease, kind="exec") as new:
            fill(new.fs / "x", size)
            large.wait(DEADLINE_S)

    with watch.writing(large):
        helper = threading.Thread(target=copy_context().run, args=(write, 15 * MB))
        helper.start()
        with watch.writing(small):
            write(8 * MB)
        helper.join()
    assert large.cancelled
    assert not small.cancelled


def test_another_process_that_writes_more_gives_way_first(
    store: Store, tmp_path: Path, watch: SpaceWatch, cancel: CancelToken
) -> None:
    # Another open store stands for the other process: its layers are noted for no writer here.
    with (
        Store.open(store.root) as other,
        other.lease() as theirs,
        store.lease() as mine,
        other.layers.new(theirs, kind="exec") as larger,
    ):
        fill(larger.fs / "x", 15 * MB)
        with watch.writing(cancel), store.layers.new(mine, kind="exec") as smaller:
            began_s = time.monotonic()
            fill(smaller.fs / "x", 6 * MB)
            # It does not: then the limit counts for us.
            until_ended(cancel)
            assert time.monotonic() - began_s >= 1.0, "it had time to give way"


def test_a_writer_that_is_over_is_not_watched(store: Store, lease: Lease, watch: SpaceWatch) -> None:
    token = CancelToken()
    with watch.writing(token):
        pass
    with store.layers.new(lease, kind="exec") as new:
        fill(new.fs / "x", 25 * MB)
        assert not token.wait(0.5)


def test_nothing_is_noted_without_a_watch() -> None:
    note_unfinished("x")
