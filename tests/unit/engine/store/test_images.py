from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from crossdock.errors import StoreError
from crossdock.image.descriptor import Descriptor
from crossdock.image.digest import sha256_digest

if TYPE_CHECKING:
    from crossdock.engine.store import Lease, Store

INDEX = "application/vnd.oci.image.index.v1+json"


def put_json(store: Store, lease: Lease, document: object) -> Descriptor:
    data = json.dumps(document).encode()
    return Descriptor(INDEX, store.content.put_bytes(data, lease), len(data), {"a": "b"})


def test_a_name_leads_to_its_descriptor(store: Store, lease: Lease) -> None:
    descriptor = put_json(store, lease, {"manifests": []})
    store.images.put("b:1", descriptor, lease)
    store.images.put("a:1", descriptor, lease)
    found = store.images.get("b:1")
    assert found is not None
    assert found.descriptor == descriptor
    assert [image.name for image in store.images.all()] == ["a:1", "b:1"]
    assert store.images.get("c:1") is None


def test_a_name_can_move_and_go(store: Store, lease: Lease) -> None:
    first = put_json(store, lease, {"manifests": []})
    second = put_json(store, lease, {"manifests": [], "x": 1})
    store.images.put("a", first, lease)
    store.images.put("a", second, lease)
    found = store.images.get("a")
    assert found is not None
    assert found.descriptor == second
    assert found.updated_ns > found.created_ns
    assert store.images.remove("a")
    assert not store.images.remove("a")
    assert store.db.all("SELECT * FROM image_blobs") == []


def test_an_image_without_its_manifest_is_refused(store: Store, lease: Lease) -> None:
    absent = Descriptor(INDEX, sha256_digest(b"absent"), 6)
    with pytest.raises(StoreError, match="not in the store"):
        store.images.put("a", absent, lease)
    assert store.images.all() == []


def test_an_index_reaches_everything_below_it(store: Store, lease: Lease) -> None:
    config = store.content.put_bytes(b'{"os": "linux"}', lease)
    lazy = sha256_digest(b"a layer that was never fetched")
    manifest = put_json(store, lease, {"config": {"digest": config}, "layers": [{"digest": lazy}]})
    index = put_json(store, lease, {"manifests": [{"digest": manifest.digest}]})
    store.images.put("a", index, lease)
    rows = {digest for (digest,) in store.db.all("SELECT digest FROM image_blobs WHERE name='a'")}
    assert rows == {index.digest, manifest.digest, config, lazy}


@pytest.mark.parametrize("data", [b"{broken", b'{"config": 5, "layers": {"digest": 3}}', b"[1]", b"\xff\xfe"])
def test_odd_manifests_are_named_like_others(store: Store, lease: Lease, data: bytes) -> None:
    digest = store.content.put_bytes(data, lease)
    store.images.put("a", Descriptor(INDEX, digest, len(data)), lease)
    assert store.images.get("a") is not None
