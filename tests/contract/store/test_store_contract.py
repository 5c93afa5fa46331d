"""What every way of reaching one store must keep: by the same handle, by another, by one opened later, from another thread."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from crossdock.cancel import CancelToken
from crossdock.engine.store import Store
from crossdock.engine.store.gc import GCPolicy
from crossdock.errors import DigestMismatch
from crossdock.image.descriptor import Descriptor
from crossdock.image.digest import DiffId, sha256_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Reach = Callable[[], Store]

DATA = b"content" * 100
DIGEST = sha256_digest(DATA)
DIFF = DiffId("sha256:" + "a" * 64)
BLOB = Descriptor("application/vnd.oci.image.layer.v1.tar+zstd", DIGEST, len(DATA))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "s") as opened:
        yield opened


@pytest.fixture(
    params=["the same handle", "another handle", "a handle opened later", "another thread's handle"]
)
def reach(request: pytest.FixtureRequest, store: Store) -> Iterator[Reach]:
    """A way to get a handle on what was written."""
    with ExitStack() as stack:
        if request.param == "another handle":
            other = stack.enter_context(Store.open(store.root))
            yield lambda: other
        elif request.param == "a handle opened later":
            yield lambda: stack.enter_context(Store.open(store.root))
        elif request.param == "another thread's handle":

            def open_in_thread() -> Store:
                opened: list[Store] = []
                thread = threading.Thread(target=lambda: opened.append(Store.open(store.root)))
                thread.start()
                thread.join()
                return stack.enter_context(opened[0])

            yield open_in_thread
        else:
            yield lambda: store


# --- content ---


def test_a_blob_is_visible_when_committed_and_not_before(store: Store, reach: Reach) -> None:
    with store.lease() as lease, store.content.writer(lease) as writer:
        writer.write(DATA)
        assert not reach().content.has(DIGEST)
        writer.commit(BLOB)
        seen = reach()
        assert seen.content.size(DIGEST) == len(DATA)
        assert seen.content.read(DIGEST) == DATA
        with seen.content.open(DIGEST) as file:
            assert file.read() == DATA


def test_putting_twice_is_putting_once(store: Store, reach: Reach) -> None:
    with store.lease() as lease, reach().lease() as other:
        assert store.content.put_bytes(DATA, lease) == reach().content.put_bytes(DATA, other)
    assert list(reach().content.digests()) == [DIGEST]


def test_a_refused_blob_is_visible_to_nobody(store: Store, reach: Reach) -> None:
    with store.lease() as lease, store.content.writer(lease) as writer:
        writer.write(b"other")
        with pytest.raises(DigestMismatch):
            writer.commit(BLOB)
    assert list(reach().content.digests()) == []


# --- layers ---


def test_a_layer_is_visible_when_committed_and_not_before(store: Store, reach: Reach) -> None:
    with store.lease() as lease, store.layers.new(lease, kind="exec", description="RUN x") as new:
        (new.fs / "f").write_text("x")
        assert not reach().layers.exists(new.id)
        layer = new.commit(diff_id=DIFF)
        seen = reach()
        assert seen.layers.find(DIFF) == layer
        assert seen.layers.get(layer) == store.layers.get(layer)
        directory = seen.layers.directory(layer)
        assert directory is not None
        assert (directory / "f").read_text() == "x"


def test_what_is_learned_of_a_layer_is_seen_by_all(store: Store, reach: Reach) -> None:
    with store.lease() as lease:
        layer = store.layers.add_remote(lease, diff_id=DIFF, blob=BLOB)
        assert reach().layers.directory(layer) is None
        reach().layers.add_repositories([BLOB.digest], ["h/r"])
        assert store.layers.get(layer).blobs[0].repositories == ("h/r",)
        path = reach().layers.materialise(layer, lambda _path: DIFF, CancelToken())
        assert store.layers.directory(layer) == path


# --- records ---


def test_a_result_is_a_hit_for_all(store: Store, reach: Reach) -> None:
    with store.lease() as lease, store.layers.new(lease, kind="exec") as new:
        layer = new.commit()
        assert reach().records.canonical("k") is None
        store.records.save("c", [[layer]], lease=lease, keys=["k"])
    seen = reach()
    assert seen.records.canonical("k") == "c"
    with seen.lease() as lease:
        found = seen.records.result("c", lease)
    assert found is not None
    assert found.outputs == ((layer,),)


# --- leases ---


def test_what_a_lease_holds_is_not_removed_by_anybody(store: Store, reach: Reach) -> None:
    with store.lease() as lease:
        store.content.put_bytes(DATA, lease)
        with store.layers.new(lease, kind="exec") as new:
            layer = new.commit()
        reach().prune(GCPolicy(all=True))
        assert store.content.read(DIGEST) == DATA
        assert store.layers.directory(layer) is not None
    reach().prune(GCPolicy(all=True))
    assert not store.content.has(DIGEST)
    assert not store.layers.exists(layer)
    assert reach().check(repair=False) == []


def test_cache_mounts_are_shared(store: Store, reach: Reach) -> None:
    cancel = CancelToken()
    with store.lease() as lease, store.mounts.use(lease, name="m", sharing="shared", cancel=cancel) as path:
        (path / "x").write_text("y")
        seen = reach()
        with seen.lease() as other, seen.mounts.use(other, name="m", sharing="shared", cancel=cancel) as same:
            assert (same / "x").read_text() == "y"
