from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crossdock.engine.store.ids import LayerId
from crossdock.errors import StoreError

if TYPE_CHECKING:
    from crossdock.engine.store import Lease, Store


@pytest.fixture
def layers(store: Store, lease: Lease) -> list[LayerId]:
    made = []
    for _ in range(3):
        with store.layers.new(lease, kind="exec") as new:
            made.append(new.commit())
    return made


def test_a_result_is_found_by_its_own_key_and_by_those_linked(
    store: Store, lease: Lease, layers: list[LayerId]
) -> None:
    store.records.save(
        "sha256:c",
        [layers[:2], layers[2:]],
        lease=lease,
        vertex="v",
        description="[1/2] RUN x",
        keys=["sha256:k"],
    )
    store.records.link("sha256:other", "sha256:c")
    for key in ("sha256:c", "sha256:k", "sha256:other"):
        assert store.records.canonical(key) == "sha256:c"
    found = store.records.result("sha256:c", lease)
    assert found is not None
    assert found.outputs == ((layers[0], layers[1]), (layers[2],))
    assert (found.vertex, found.description, found.record_type) == ("v", "[1/2] RUN x", "regular")


def test_what_is_unknown_is_none(store: Store, lease: Lease) -> None:
    assert store.records.canonical("sha256:x") is None
    assert store.records.result("sha256:x", lease) is None
    assert store.records.canonicals(["a", "b"]) == {}


def test_many_keys_are_looked_up_at_once(store: Store) -> None:
    store.records.link_many((f"k{n}", f"c{n % 3}") for n in range(2000))
    found = store.records.canonicals([f"k{n}" for n in range(3000)])
    assert len(found) == 2000
    assert found["k5"] == "c2"


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=st.lists(st.lists(st.integers(0, 2), max_size=4), max_size=4))
def test_any_shape_of_outputs_comes_back(
    store: Store, lease: Lease, layers: list[LayerId], shape: list[list[int]]
) -> None:
    outputs = [[layers[index] for index in output] for output in shape]
    store.records.save("sha256:c", outputs, lease=lease)
    found = store.records.result("sha256:c", lease)
    assert found is not None
    assert found.outputs == tuple(map(tuple, outputs))


def test_a_result_of_unknown_layers_is_refused_and_leaves_nothing(store: Store, lease: Lease) -> None:
    with pytest.raises(StoreError, match="no layer nothere1"):
        store.records.save("sha256:c", [[LayerId("nothere1")]], lease=lease, keys=["sha256:k"])
    assert store.records.canonical("sha256:k") is None
    assert store.records.result("sha256:c", lease) is None


def test_saving_again_replaces(store: Store, lease: Lease, layers: list[LayerId]) -> None:
    store.records.save("sha256:c", [layers], lease=lease)
    store.records.save("sha256:c", [layers[:1]], lease=lease)
    found = store.records.result("sha256:c", lease)
    assert found is not None
    assert found.outputs == ((layers[0],),)
    assert store.db.one("SELECT count(*) FROM result_layers") == (1,)


def test_forgetting_drops_the_keys_too(store: Store, lease: Lease, layers: list[LayerId]) -> None:
    store.records.save("sha256:c", [layers], lease=lease, keys=["sha256:k"])
    store.records.forget("sha256:c")
    store.records.forget("sha256:c")
    assert store.records.canonical("sha256:k") is None
    assert store.records.result("sha256:c", lease) is None


def test_use_is_counted_once_per_lease(store: Store, layers: list[LayerId], lease: Lease) -> None:
    store.records.save("sha256:c", [layers], lease=lease)
    before = store.records.result("sha256:c", lease)
    for _ in range(2):
        with store.lease() as held:
            store.records.result("sha256:c", held)
            store.records.result("sha256:c", held)
    with store.lease() as held:
        found = store.records.result("sha256:c", held)
    assert before is not None
    assert found is not None
    assert found.use_count == 2
    assert found.used_ns > before.created_ns
    assert store.layers.get(layers[0]).use_count == 3
