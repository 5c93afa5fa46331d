"""The store between builds: a limit that holds, collection when due, safety from power cuts when cheap."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from crossdock.cancel import CancelToken
from crossdock.engine.store import Store, upkeep
from crossdock.engine.store.gc import Collector
from crossdock.errors import StoreError
from crossdock.image.descriptor import Descriptor
from crossdock.image.digest import DiffId, sha256_digest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from crossdock.engine.store.gc import GCPolicy

KB = 1000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often a rule was applied: seen at the collector, which still does its work."""
    seen: list[int] = []
    real = Collector.apply

    def apply(self: Collector, policy: GCPolicy) -> None:
        seen.append(1)
        real(self, policy)

    monkeypatch.setattr(Collector, "apply", apply)
    return seen


def fill(store: Store, count: int, size: int = 100 * KB) -> None:
    with store.lease() as lease:
        for number in range(count):
            store.content.put_bytes(number.to_bytes(4, "big") + os.urandom(size - 4), lease)


def pages(monkeypatch: pytest.MonkeyPatch, dirty: int) -> None:
    monkeypatch.setattr(upkeep, "_dirty_bytes", lambda: dirty)


def unsafe(store: Store) -> int:
    row = store.db.one("SELECT count(*) FROM blobs WHERE durable=0")
    return int(row[0])


def test_the_limit_holds_afterwards(store: Store) -> None:
    fill(store, 20)
    upkeep.keep_house(store, max_bytes=1000 * KB, cancel=CancelToken())
    assert 0 < store.total_size() <= 1000 * KB


def test_without_a_limit_a_small_store_is_left_alone(store: Store, collected: list[int]) -> None:
    fill(store, 20)
    upkeep.keep_house(store, cancel=CancelToken())
    assert store.total_size() >= 2000 * KB
    assert collected == []


def test_garbage_is_collected_at_most_once_in_a_while(
    store: Store, collected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "_SMALL", 0)
    fill(store, 2)
    upkeep.keep_house(store, cancel=CancelToken())
    first = len(collected)
    assert first == 4, "each of the four default rules"
    upkeep.keep_house(store, cancel=CancelToken())
    assert len(collected) == first
    stamp = store.layout.locks / "collected"
    os.utime(stamp, (0, time.time_ns() / 1e9 - 2 * 3600))
    upkeep.keep_house(store, cancel=CancelToken())
    assert len(collected) == 2 * first


def test_a_stamp_of_the_future_does_not_stop_collection(
    store: Store, collected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "_SMALL", 0)
    fill(store, 1)
    stamp = store.layout.locks / "collected"
    stamp.touch()
    os.utime(stamp, (0, time.time_ns() / 1e9 + 10 * 3600))
    upkeep.keep_house(store, cancel=CancelToken())
    assert collected


def test_what_was_stored_is_made_durable_when_little_waits(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages(monkeypatch, 0)
    fill(store, 3)
    assert unsafe(store) == 3
    upkeep.keep_house(store, cancel=CancelToken())
    assert unsafe(store) == 0


def test_a_short_build_does_not_wait_for_much_to_be_written(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages(monkeypatch, 500_000_000)
    fill(store, 3)
    upkeep.keep_house(store, spent_s=2.0, cancel=CancelToken())
    assert unsafe(store) == 3
    upkeep.keep_house(store, spent_s=200.0, cancel=CancelToken())
    assert unsafe(store) == 0


def test_nothing_new_writes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    pages(monkeypatch, 0)
    fill(store, 1)
    upkeep.keep_house(store, cancel=CancelToken())
    log = store.layout.database.with_name(store.layout.database.name + "-wal")
    before = log.stat()
    upkeep.keep_house(store, cancel=CancelToken())
    assert (log.stat().st_size, log.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_a_sync_beside_other_work_makes_what_is_stored_durable(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages(monkeypatch, 0)
    fill(store, 3)
    assert unsafe(store) == 3
    with upkeep.BackgroundSync(store) as sync:
        sync.begin()
        sync.begin()
    assert unsafe(store) == 0


def test_a_sync_that_would_take_long_is_left_for_later(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    pages(monkeypatch, 1 << 40)
    fill(store, 3)
    with upkeep.BackgroundSync(store) as sync:
        sync.begin()
    assert unsafe(store) == 3


def test_a_sync_that_fails_beside_other_work_fails_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        summary = "the disk is gone"
        raise StoreError(summary)

    pages(monkeypatch, 0)
    fill(store, 1)
    monkeypatch.setattr(store, "sync", broken)
    with upkeep.BackgroundSync(store) as sync:
        sync.begin()
    assert unsafe(store) == 1


def test_what_each_build_asks_of_the_whole_store_does_not_read_all_of_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages(monkeypatch, 0)
    fill(store, 2)
    asked: list[str] = []
    store.db._connection.set_trace_callback(asked.append)
    upkeep.keep_house(store, cancel=CancelToken())
    store.db._connection.set_trace_callback(None)
    plans = [
        row[3]
        for sql in asked
        if sql.startswith("SELECT")
        for row in store.db.all(f"EXPLAIN QUERY PLAN {sql}")
    ]
    assert any("blobs_not_durable" in plan for plan in plans)
    full = [
        plan
        for plan in plans
        if plan.startswith("SCAN") and "_not_durable" not in plan and "totals" not in plan
    ]
    assert not full


def test_the_total_follows_what_is_stored(store: Store) -> None:
    def noted_and_counted() -> tuple[int, int]:
        tables = ("layers", "blobs", "mounts")
        counted = sum(store.db.one(f"SELECT total(size_bytes) FROM {table}")[0] for table in tables)
        return store.total_size(), counted

    def unpack(folder: Path) -> None:
        (folder / "x").write_bytes(b"x" * 50 * KB)

    with store.lease() as lease:
        with store.layers.new(lease, kind="exec") as new:
            (new.fs / "x").write_bytes(b"x" * 100 * KB)
            new.commit()
        remote = store.layers.add_remote(
            lease, diff_id=DiffId("sha256:" + "a" * 64), blob=Descriptor("x", sha256_digest(b"x"), 1)
        )
        store.layers.materialise(remote, unpack, CancelToken())
        digest = store.content.put_bytes(b"y" * 3 * KB, lease)
        store.content.put_bytes(b"y" * 3 * KB, lease)
        with store.mounts.use(lease, name="m", sharing="shared", cancel=CancelToken()) as mount:
            (mount / "x").write_bytes(b"z" * 90 * KB)
        store.disk_usage()
    noted, counted = noted_and_counted()
    assert noted == counted >= 243 * KB
    store.content.forget(digest)
    assert noted_and_counted() == (noted - 3 * KB, noted - 3 * KB)
    store.prune()
    assert noted_and_counted() == (0, 0)
