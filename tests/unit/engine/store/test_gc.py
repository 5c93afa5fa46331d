from __future__ import annotations

import json
import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdock.engine.store import CachedResult, Store, hooks
from crossdock.engine.store.gc import GCPolicy, default_policies, keep_bytes, leaves_first
from crossdock.engine.store.usage import STAT_CACHES, UsageRecord
from crossdock.errors import Cancelled
from crossdock.image.descriptor import Descriptor
from crossdock.image.digest import DiffId, sha256_digest

if TYPE_CHECKING:
    from crossdock.cancel import CancelToken
    from crossdock.engine.store import LayerId

MB = 1_000_000
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def add_layer(
    store: Store, size: int = MB, *, canonical: str = "", below: tuple[LayerId, ...] = ()
) -> LayerId:
    with store.lease() as lease, store.layers.new(lease, kind="exec") as new:
        (new.fs / "data").write_bytes(os.urandom(10))
        layer = new.commit(size_bytes=size)
        if canonical:
            store.records.save(canonical, [(*below, layer)], lease=lease, description=f"RUN {canonical}")
    return layer


def record(name: str, parents: set[int], used_ns: int) -> UsageRecord:
    return UsageRecord(
        id=name,
        kind="layer",
        mutable=False,
        in_use=False,
        size=1,
        parents=tuple(map(str, parents)),
        created_ns=0,
        last_used_ns=used_ns,
        usage_count=0,
        description="",
        record_type="regular",
        shared=False,
    )


def age(store: Store, seconds: float, *layers: str) -> None:
    with store.db.transaction() as tx:
        tx.executemany(
            "UPDATE layers SET used_ns=used_ns-? WHERE id=?",
            [(int(seconds * 1e9), layer) for layer in layers],
        )


def on_disk(store: Store) -> set[str]:
    return set(os.listdir(store.layout.layers))


def set_clock(monkeypatch: pytest.MonkeyPatch, *, ahead_s: float) -> None:
    """Let the machine's clock differ from the true one."""
    real = time.clock_gettime_ns
    monkeypatch.setattr(time, "time_ns", lambda: real(time.CLOCK_REALTIME) + int(ahead_s * 1e9))


YEAR_S = 365 * 86400.0


# --- clocks that jump ---


def test_what_was_used_while_the_clock_was_ahead_grows_old_all_the_same(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_clock(monkeypatch, ahead_s=YEAR_S)
    layer = add_layer(store, canonical="c")
    set_clock(monkeypatch, ahead_s=0)
    policy = GCPolicy(keep_duration_s=3600)
    store.prune(policy)
    assert on_disk(store) == {layer}, "it may have been used a moment ago"
    set_clock(monkeypatch, ahead_s=7200)
    store.prune(policy)
    assert on_disk(store) == set()


def test_use_after_the_clock_was_set_back_counts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    set_clock(monkeypatch, ahead_s=YEAR_S)
    layer = add_layer(store, canonical="c")
    set_clock(monkeypatch, ahead_s=0)
    with store.lease() as lease:
        assert store.records.result("c", lease) is not None
    assert abs(store.layers.get(layer).used_ns - time.time_ns()) < 60e9
    assert store.layers.get(layer).use_count == 2, "made, and used"


def test_the_longest_unused_goes_first_though_its_clock_was_ahead(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_clock(monkeypatch, ahead_s=YEAR_S)
    old = add_layer(store, canonical="old")
    set_clock(monkeypatch, ahead_s=0)
    store.prune(GCPolicy(keep_duration_s=3600))
    set_clock(monkeypatch, ahead_s=600)
    new = add_layer(store, canonical="new")
    store.prune(GCPolicy(max_used_space=3 * MB // 2))
    assert on_disk(store) == {new}, old


def test_a_clock_that_jumps_removes_nothing_in_use(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = add_layer(store, canonical="c")
    with store.lease() as lease:
        assert store.records.result("c", lease) is not None
        for ahead_s in (YEAR_S, -YEAR_S):
            set_clock(monkeypatch, ahead_s=ahead_s)
            store.prune(GCPolicy(all=True, keep_duration_s=1.0))
            store.prune(GCPolicy(all=True))
            assert on_disk(store) == {layer}


# --- what goes ---


def test_pruning_empties_an_idle_store(store: Store, cancel: CancelToken) -> None:
    first = add_layer(store, canonical="c1")
    add_layer(store, canonical="c2", below=(first,))
    with store.lease() as lease:
        store.content.put_bytes(b"loose", lease)
        with store.mounts.use(lease, name="m", sharing="shared", cancel=cancel) as path:
            (path / "x").write_bytes(b"x" * 10_000)
    removed: list[UsageRecord] = []
    freed = store.prune(GCPolicy(all=True), sink=removed.append)
    assert {r.kind for r in removed} == {"layer", "mount", "blob"}
    assert freed == sum(r.size for r in removed)
    assert store.disk_usage() == []
    assert store.total_size() == 0
    assert on_disk(store) == set()
    assert os.listdir(store.layout.mounts) == []
    assert os.listdir(store.layout.trash) == []
    for table in ("layers", "blobs", "results", "result_layers", "keys", "mounts"):
        assert store.db.one(f"SELECT count(*) FROM {table}") == (0,), table
    assert store.check(repair=False) == []


def test_internal_and_frontend_records_need_all(store: Store) -> None:
    with store.lease() as lease:
        blob = store.content.put_bytes(b"config", lease)
        with store.layers.new(lease, kind="exec") as new:
            frontend = new.commit()
        store.records.save("f", [[frontend]], lease=lease, record_type="frontend")
    store.prune()
    assert store.content.has(blob)
    assert on_disk(store) == {frontend}
    store.prune(GCPolicy(all=True))
    assert not store.content.has(blob)
    assert on_disk(store) == set()


def test_a_result_goes_with_any_of_its_layers_and_its_keys(store: Store) -> None:
    base = add_layer(store, canonical="base")
    top = add_layer(store, canonical="top", below=(base,))
    store.records.link("key", "top")
    store.prune(GCPolicy(filters=(f"id=={top}",)))
    assert store.records.canonical("key") is None
    assert store.records.canonical("base") == "base"
    assert on_disk(store) == {base}


def test_a_layer_under_another_stays_until_that_goes(store: Store) -> None:
    base = add_layer(store, canonical="base")
    top = add_layer(store, canonical="top", below=(base,))
    store.prune(GCPolicy(filters=(f"id=={base}",)))
    assert on_disk(store) == {base, top}
    kept = {r.id: r.kept for r in store.disk_usage()}
    assert kept[base] == f"the layer {top} stands on it"
    assert kept[top] == ""


def test_young_records_are_kept_by_age(store: Store) -> None:
    old, young = add_layer(store, canonical="a"), add_layer(store, canonical="b")
    age(store, 3600, old)
    store.prune(GCPolicy(keep_duration_s=1800))
    assert on_disk(store) == {young}
    assert [r.id for r in store.disk_usage(age_limit_s=1800)] == []


def test_the_longest_unused_go_first_down_to_the_limit(store: Store) -> None:
    layers = [add_layer(store, canonical=f"c{n}") for n in range(10)]
    for position, layer in enumerate(layers):
        age(store, 1000 - position, layer)
    store.prune(GCPolicy(max_used_space=4 * MB))
    assert on_disk(store) == set(layers[6:])


def test_a_store_within_its_limit_is_left_alone(store: Store) -> None:
    layer = add_layer(store, canonical="c")
    assert store.prune(GCPolicy(max_used_space=2 * MB)) == 0
    assert on_disk(store) == {layer}


def test_blobs_of_a_layer_go_with_it_unless_another_layer_has_them(store: Store) -> None:
    first, second = add_layer(store), add_layer(store)
    with store.lease() as lease:
        digest = store.content.put_bytes(b"packed", lease)
    blob = Descriptor("application/x.tar+gzip", digest, 6)
    for layer, letter in ((first, "a"), (second, "b")):
        store.layers.add_blob(layer, blob, DiffId("sha256:" + letter * 64))
    assert sum(r.size for r in store.disk_usage()) == store.total_size() == 2 * MB + 6
    store.prune(GCPolicy(filters=(f"id=={first}",)))
    assert store.content.has(digest)
    store.prune(GCPolicy(filters=(f"id=={second}",)))
    assert not store.content.has(digest)
    assert not store.content.path(digest).exists()


def test_stat_caches_are_one_internal_record(store: Store) -> None:
    table = store.stats.load("/ctx")
    table.record("f", os.stat("/"), b"x" * 32, time.time_ns() + 10**18)
    table.save()
    assert [r.id for r in store.disk_usage()] == [STAT_CACHES]
    store.prune()
    assert store.stats.size() > 0
    store.prune(GCPolicy(all=True))
    assert store.stats.size() == 0


# --- what stays ---


def test_nothing_a_lease_holds_is_removed_by_any_means(store: Store, cancel: CancelToken) -> None:
    base = add_layer(store, canonical="base")
    layer = add_layer(store, canonical="c", below=(base,))
    with store.lease() as earlier:
        store.content.put_bytes(b"data", earlier)
    digest = sha256_digest(b"data")
    with Store.open(store.root) as user, user.lease() as lease:
        found = user.records.result("c", lease)
        assert found is not None
        assert user.content.has(digest, lease)
        with (
            user.layers.new(lease, kind="exec") as new,
            user.mounts.use(lease, name="m", sharing="shared", cancel=cancel) as mount,
        ):
            store.prune(GCPolicy(all=True))
            assert store.enforce(1) > 0
            store.gc(default_policies(1000), max_bytes=1)
            assert new.fs.is_dir()
            assert mount.is_dir()
        assert on_disk(store) >= {base, layer}
        assert user.content.read(digest) == b"data"
        assert user.records.result("c", lease) == found
        in_use = {r.id for r in store.disk_usage(["inuse"])}
        assert in_use >= {base, layer, digest}
    store.prune(GCPolicy(all=True))
    assert on_disk(store) == set()


def test_local_images_keep_their_content(store: Store) -> None:
    layer = add_layer(store, canonical="c")
    with store.lease() as lease:
        config = store.content.put_bytes(b"{}", lease)
        packed = store.content.put_bytes(b"packed", lease)
        store.layers.add_blob(layer, Descriptor("x.tar+gzip", packed, 6), DiffId("sha256:" + "a" * 64))
        manifest = json.dumps(
            {
                "mediaType": MANIFEST,
                "config": {"mediaType": "c", "digest": config, "size": 2},
                "layers": [{"mediaType": "l", "digest": packed, "size": 6}],
            }
        ).encode()
        digest = store.content.put_bytes(manifest, lease)
        store.images.put("app:1", Descriptor(MANIFEST, digest, len(manifest)), lease)
    usage = {r.id: r for r in store.disk_usage()}
    assert usage[layer].shared
    assert "app:1" in usage[layer].kept
    assert "app:1" in usage[config].kept
    store.prune()
    assert on_disk(store) == {layer}
    store.prune(GCPolicy(all=True))
    store.enforce(1)
    assert on_disk(store) == set()
    for blob in (config, packed, digest):
        assert store.content.has(blob)
    assert store.images.remove("app:1")
    store.prune(GCPolicy(all=True))
    assert list(store.content.digests()) == []


def test_what_is_taken_into_use_after_it_was_chosen_is_kept(store: Store) -> None:
    layer = add_layer(store, canonical="c")
    with Store.open(store.root) as user, user.lease() as lease:
        hooks.install("store.prune:before_batch", lambda: user.records.result("c", lease))
        assert store.prune() == 0
        assert user.records.result("c", lease) is not None
    assert on_disk(store) == {layer}


def test_who_asks_for_what_is_just_being_removed_waits_and_misses(store: Store) -> None:
    add_layer(store, canonical="c")
    with ThreadPoolExecutor(1) as pool, Store.open(store.root) as user, user.lease() as lease:
        asked: list[Future[CachedResult | None]] = []

        def ask() -> None:
            asked.append(pool.submit(user.records.result, "c", lease))
            with pytest.raises(TimeoutError):
                asked[0].result(0.2)

        hooks.install("store.prune:before_delete", ask)
        store.prune()
        assert asked[0].result(10) is None


def test_a_layer_taken_into_use_while_pruning_is_kept_or_reported_missing(store: Store) -> None:
    """Whatever the order, a result that was found stays usable."""
    done = threading.Event()
    broken: list[str] = []

    def use() -> None:
        with Store.open(store.root) as user:
            while not done.is_set():
                with user.lease() as lease:
                    found = user.records.result("c", lease)
                    for layer in found.outputs[0] if found else ():
                        directory = user.layers.directory(layer)
                        if directory is None or not (directory / "data").exists():
                            broken.append(layer)

    thread = threading.Thread(target=use)
    thread.start()
    try:
        for _ in range(150):
            below = add_layer(store, canonical="b")
            add_layer(store, canonical="c", below=(below,))
            store.prune()
    finally:
        done.set()
        thread.join()
    assert broken == []


# --- limits ---


def test_the_hard_limit_wins_over_age_and_type(store: Store) -> None:
    with store.lease() as lease:
        for number in range(5):
            with store.layers.new(lease, kind="exec") as new:
                layer = new.commit(size_bytes=MB)
            store.records.save(f"c{number}", [[layer]], lease=lease, record_type="internal")
    assert store.enforce(10 * MB) == 0
    assert len(on_disk(store)) == 5
    assert store.enforce(3 * MB) == 0
    assert store.total_size() <= 3 * MB
    assert len(on_disk(store)) == 2


def test_the_limit_says_how_far_it_is_missed(store: Store) -> None:
    layer = add_layer(store)
    with store.lease() as lease:
        lease.protect(layers=[layer])
        assert store.enforce(MB // 2) == MB // 2
    assert store.enforce(MB // 2) == 0


def test_gc_removes_layers_that_nothing_can_find(store: Store) -> None:
    add_layer(store)
    found = add_layer(store, canonical="c")
    store.gc(())
    assert on_disk(store) == {found}


@pytest.mark.parametrize(
    ("policy", "total", "free", "expected"),
    [
        (GCPolicy(), 100, 100, None),
        (GCPolicy(max_used_space=60), 100, 100, 60),
        (GCPolicy(reserved_space=30), 100, 100, 30),
        (GCPolicy(max_used_space=60, reserved_space=80), 100, 100, 80),
        (GCPolicy(min_free_space=50), 100, 20, 70),
        (GCPolicy(min_free_space=50), 100, 80, 100),
        (GCPolicy(min_free_space=500), 100, 20, 0),
        (GCPolicy(min_free_space=500, reserved_space=10), 100, 20, 10),
        (GCPolicy(max_used_space=60, min_free_space=50), 100, 20, 60),
        (GCPolicy(max_used_space=90, min_free_space=50), 100, 20, 70),
    ],
)
def test_how_much_is_kept(policy: GCPolicy, total: int, free: int, expected: int | None) -> None:
    assert keep_bytes(policy, total, free) == expected


def test_default_rules_match_what_they_name() -> None:
    rules = default_policies(1000 * 10**9)
    assert len(rules) == 4
    assert rules[3].max_used_space == 100 * 10**9
    assert rules[3].reserved_space == 10 * 10**9
    assert len(rules[0].filters) == 3


@given(st.data())
def test_a_layer_is_only_taken_after_all_that_stand_on_it(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    records = []
    for number in range(count):
        parents = data.draw(st.sets(st.integers(0, number - 1), max_size=3)) if number else set()
        used = data.draw(st.integers(0, 3))
        records.append(record(str(number), parents, used))
    chosen = [r for r in records if data.draw(st.booleans())]
    order = [r.id for r in leaves_first(chosen, records)]
    assert len(set(order)) == len(order)
    for position, name in enumerate(order):
        above = {r.id for r in records if name in r.parents}
        assert above <= set(order[:position])
    # and nothing that could go was held back
    left = {r.id for r in chosen} - set(order)
    for name in left:
        assert any(name in r.parents and r.id not in order for r in records)


def test_pruning_can_be_cancelled_and_the_store_stays_right(store: Store, cancel: CancelToken) -> None:
    for number in range(200):
        add_layer(store, canonical=f"c{number}")
    removed: list[UsageRecord] = []

    def sink(one: UsageRecord) -> None:
        removed.append(one)
        cancel.cancel()

    with pytest.raises(Cancelled):
        store.prune(sink=sink, cancel=cancel)
    assert 0 < len(removed) < 200
    assert len(on_disk(store)) == 200 - len(removed)
    assert store.check(repair=False) == []
