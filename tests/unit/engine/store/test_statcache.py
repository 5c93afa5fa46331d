from __future__ import annotations

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from crossdock.engine.store.statcache import margin_ns

if TYPE_CHECKING:
    from pathlib import Path

    from crossdock.engine.store import Store

DIGEST = hashlib.sha256(b"content").digest()
LATER = 10**18


@pytest.fixture
def info(tmp_path: Path) -> os.stat_result:
    (tmp_path / "file").write_bytes(b"content")
    return (tmp_path / "file").stat()


def fake(info: os.stat_result, **changes: int) -> os.stat_result:
    """A stat result with some nanosecond times or fields changed."""
    fields = list(info)
    extra = {"st_mtime_ns": info.st_mtime_ns, "st_ctime_ns": info.st_ctime_ns}
    for name, value in changes.items():
        if name == "st_ino":
            fields[1] = value
        elif name == "st_size":
            fields[6] = value
        else:
            extra[name] = value
    return os.stat_result(fields, extra)


def test_an_unchanged_file_is_known_in_the_next_process(store: Store, info: os.stat_result) -> None:
    table = store.stats.load("/ctx")
    assert table.get("a/b", info) is None
    table.record("a/b", info, DIGEST, time.time_ns() + LATER)
    table.save()
    again = store.stats.load("/ctx")
    assert len(again) == 1
    assert again.get("a/b", info) == DIGEST
    assert again.get("a/c", info) is None
    assert store.stats.load("/other").get("a/b", info) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"st_ino": 1},
        {"st_size": 8},
        {"st_mtime_ns": 5},
        {"st_mtime_ns": -5},
        {"st_ctime_ns": 5},
    ],
    ids=str,
)
def test_any_difference_makes_it_unknown(store: Store, info: os.stat_result, changes: dict[str, int]) -> None:
    table = store.stats.load("/ctx")
    table.record("f", info, DIGEST, time.time_ns() + LATER)
    table.save()
    assert store.stats.load("/ctx").get("f", fake(info, **changes)) is None


@pytest.mark.parametrize(
    ("ctime_ns", "age_ns", "kept"),
    [
        pytest.param(1_000_000_001, 0, False, id="read in the tick it was written"),
        pytest.param(1_000_000_001, 50_000_000, False, id="read 50 ms after it was written"),
        pytest.param(1_000_000_001, 150_000_000, True, id="read 150 ms after it was written"),
        pytest.param(
            1_000_000_001, -5_000_000_000, False, id="written in the future: the clock was set back"
        ),
        pytest.param(2_000_000_000, 150_000_000, False, id="whole seconds: a coarse file system"),
        pytest.param(2_000_000_000, 2_600_000_000, True, id="whole seconds, long ago"),
    ],
)
def test_racy_times_are_not_believed(
    store: Store, info: os.stat_result, ctime_ns: int, age_ns: int, kept: bool
) -> None:
    stamp = fake(info, st_ctime_ns=ctime_ns)
    table = store.stats.load("/ctx")
    table.record("f", stamp, DIGEST, ctime_ns + age_ns)
    table.save()
    assert (store.stats.load("/ctx").get("f", stamp) is not None) is kept


def test_a_rewrite_within_the_same_moment_is_noticed(store: Store, tmp_path: Path) -> None:
    """Same size, same mtime, other content, as fast as this machine can."""
    path = tmp_path / "f"
    for attempt in range(50):
        path.write_bytes(b"a" * 8)
        began = time.time_ns()
        before = path.stat()
        table = store.stats.load(f"/ctx{attempt}")
        table.record("f", before, DIGEST, began)
        table.save()
        path.write_bytes(b"b" * 8)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert store.stats.load(f"/ctx{attempt}").get("f", path.stat()) is None


def test_names_that_are_not_text_work(store: Store, info: os.stat_result) -> None:
    name = os.fsdecode(b"bad\xff\nname")
    table = store.stats.load("/ctx")
    table.record(name, info, DIGEST, time.time_ns() + LATER)
    table.save()
    assert store.stats.load("/ctx").get(name, info) == DIGEST


def test_the_last_record_wins_and_old_entries_stay(store: Store, info: os.stat_result) -> None:
    table = store.stats.load("/ctx")
    for name in ("one", "two"):
        table.record(name, info, DIGEST, time.time_ns() + LATER)
    table.save()
    other = hashlib.sha256(b"other").digest()
    table = store.stats.load("/ctx")
    table.record("two", info, other, time.time_ns() + LATER)
    table.save()
    table = store.stats.load("/ctx")
    assert table.get("one", info) == DIGEST
    assert table.get("two", info) == other
    assert len(table) == 2


def test_entries_nobody_asks_for_are_dropped_when_they_are_many(store: Store, info: os.stat_result) -> None:
    began = time.time_ns() + LATER
    table = store.stats.load("/ctx")
    for number in range(3000):
        table.record(f"old{number}", info, DIGEST, began)
    table.save()
    table = store.stats.load("/ctx")
    assert table.get("old7", info) == DIGEST
    table.record("new", info, DIGEST, began)
    table.save()
    table = store.stats.load("/ctx")
    assert len(table) == 2
    assert table.get("old7", info) == DIGEST


def test_what_a_writer_that_died_left_is_taken_over(store: Store, info: os.stat_result) -> None:
    for name in ("one", "two"):
        for path in list(store.layout.stat.iterdir()):
            (store.layout.stat / f"{path.name}.new").write_bytes(b"half of a longer table" * 100)
        table = store.stats.load("/ctx")
        table.record(name, info, DIGEST, time.time_ns() + LATER)
        table.save()
    assert len(store.stats.load("/ctx")) == 2
    assert len(os.listdir(store.layout.stat)) == 1
    assert store.check(repair=False) == []


def test_many_writers_at_once_leave_one_whole_table(store: Store, info: os.stat_result) -> None:
    def write(number: int) -> None:
        for _ in range(20):
            table = store.stats.load("/ctx")
            for entry in range(200):
                table.record(f"{number}-{entry}", info, DIGEST, time.time_ns() + LATER)
            table.save()
            assert len(store.stats.load("/ctx")) > 0

    # Who finds another one writing writes nothing: there must be a table before.
    first = store.stats.load("/ctx")
    first.record("first", info, DIGEST, time.time_ns() + LATER)
    first.save()
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(write, number) for number in range(4)]:
            future.result(60)
    assert len(os.listdir(store.layout.stat)) == 1


def test_after_the_clock_was_set_back_nothing_is_believed(store: Store, info: os.stat_result) -> None:
    """A file written now may get the very times that another content of it had before."""
    table = store.stats.load("/ctx")
    table.record("f", info, DIGEST, time.time_ns() + LATER)
    table.save()
    (path,) = store.layout.stat.iterdir()
    assert store.stats.load("/ctx").get("f", info) == DIGEST
    future = time.time_ns() + 3600 * 10**9
    os.utime(path, ns=(future, future))
    table = store.stats.load("/ctx")
    assert table.get("f", info) is None
    table.record("f", info, DIGEST, time.time_ns() + LATER)
    table.save()
    assert store.stats.load("/ctx").get("f", info) == DIGEST


def test_nothing_new_writes_nothing(store: Store, info: os.stat_result) -> None:
    store.stats.load("/ctx").save()
    assert os.listdir(store.layout.stat) == []


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "garbage"])
def test_a_damaged_table_is_an_empty_one(store: Store, info: os.stat_result, damage: str) -> None:
    table = store.stats.load("/ctx")
    for number in range(10):
        table.record(f"f{number}", info, DIGEST, time.time_ns() + LATER)
    table.save()
    (path,) = store.layout.stat.iterdir()
    data = path.read_bytes()
    flipped = data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]
    path.write_bytes(
        {"truncate": data[:-40], "flip": flipped, "empty": b"", "garbage": b"\xff" * 500}[damage]
    )
    assert len(store.stats.load("/ctx")) == 0


def test_pruning_removes_tables(store: Store, info: os.stat_result) -> None:
    table = store.stats.load("/ctx")
    table.record("f", info, DIGEST, time.time_ns() + LATER)
    table.save()
    assert store.stats.size() > 0
    assert store.stats.prune(3600) == 0
    assert store.stats.prune(0) > 0
    assert store.stats.size() == 0


def test_margins_follow_the_granularity(info: os.stat_result) -> None:
    assert margin_ns(fake(info, st_ctime_ns=7_000_000_000)) > 2_000_000_000
    assert margin_ns(fake(info, st_ctime_ns=7_000_000_123)) < 1_000_000_000


def test_a_table_that_nobody_asks_is_not_read(store: Store, info: os.stat_result) -> None:
    table = store.stats.load("/ctx")
    table.record("a", info, DIGEST, time.time_ns() + LATER)
    table.save()
    asked, unasked = store.stats.load("/ctx"), store.stats.load("/ctx")
    assert asked.get("a", info) == DIGEST
    assert store.stats.prune(0) > 0
    assert asked.get("a", info) == DIGEST
    assert unasked.get("a", info) is None


def test_what_is_recorded_before_the_table_is_read_joins_what_is_there(
    store: Store, info: os.stat_result
) -> None:
    for name in ("a", "b"):
        table = store.stats.load("/ctx")
        table.record(name, info, DIGEST, time.time_ns() + LATER)
        table.save()
    assert len(store.stats.load("/ctx")) == 2


def test_threads_that_ask_at_once_read_it_once(store: Store, info: os.stat_result) -> None:
    table = store.stats.load("/ctx")
    table.record("a", info, DIGEST, time.time_ns() + LATER)
    table.save()
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            again = store.stats.load("/ctx")
            assert set(pool.map(lambda _: again.get("a", info), range(8))) == {DIGEST}  # noqa: B023
