from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from crossdock.engine.store import Store
from crossdock.image.descriptor import Descriptor
from crossdock.image.digest import DiffId, sha256_digest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from crossdock.cancel import CancelToken

DIFF = DiffId("sha256:" + "a" * 64)
DATA = b"data of a blob"
DIGEST = sha256_digest(DATA)
BLOB = Descriptor("x.tar+gzip", DIGEST, len(DATA))


@pytest.fixture
def filled(store: Store, cancel: CancelToken) -> Store:
    """A store with one of everything; returns it idle."""
    with store.lease() as lease:
        store.content.put_bytes(DATA, lease)
        remote = store.layers.add_remote(lease, diff_id=DIFF, blob=BLOB, repositories=["h/r"])
        store.layers.materialise(remote, lambda path: (path / "x").touch(), cancel)
        with store.layers.new(lease, kind="exec") as new:
            top = new.commit()
        store.records.save("sha256:c", [[remote, top]], lease=lease, keys=["sha256:k"])
        manifest = store.content.put_bytes(b'{"layers": []}', lease)
        store.images.put("img", Descriptor("m", manifest, 14), lease)
        with store.mounts.use(lease, name="m", sharing="shared", cancel=cancel) as path:
            (path / "x").touch()
    assert store.check(repair=False) == []
    return store


def layer(store: Store, kind: str) -> Path:
    (name,) = store.db.one("SELECT id FROM layers WHERE kind=?", (kind,))
    return store.layout.layers / str(name)


def mount(store: Store) -> Path:
    return store.layout.mounts / store.mounts.ids()[0]


def execute(store: Store, sql: str) -> None:
    with store.db.transaction() as tx:
        tx.execute(sql)


DAMAGE: dict[str, tuple[Callable[[Store], object], str, str]] = {
    "a blob file is missing": (lambda s: s.content.path(DIGEST).unlink(), "blob", "file is missing"),
    "a blob file is truncated": (lambda s: os.truncate(s.content.path(DIGEST), 3), "blob", "3 bytes instead"),
    "a blob file is damaged": (
        lambda s: s.content.path(DIGEST).write_bytes(b"x" * len(DATA)),
        "blob",
        "content is damaged",
    ),
    "a blob file without a row": (
        lambda s: (s.layout.blobs / "sha256" / ("0" * 64)).write_bytes(b""),
        "blob",
        "not recorded",
    ),
    "a total is wrong": (
        lambda s: execute(s, "UPDATE totals SET size_bytes=7 WHERE name='blobs'"),
        "database",
        "not 7",
    ),
    "a total is missing": (
        lambda s: execute(s, "DELETE FROM totals WHERE name='layers'"),
        "database",
        "not noted",
    ),
    "a layer directory is missing": (
        lambda s: shutil.rmtree(layer(s, "exec")),
        "layer",
        "directory is missing",
    ),
    "the directory of a layer with a blob is missing": (
        lambda s: shutil.rmtree(layer(s, "image")),
        "layer",
        "directory is missing",
    ),
    "a layer directory without a row": (
        lambda s: (s.layout.layers / "orphan22/fs/d").mkdir(parents=True),
        "layer",
        "not recorded",
    ),
    "half a directory": (lambda s: (layer(s, "image") / "partial").mkdir(), "layer", "unfinished: partial"),
    "a work directory left": (
        lambda s: (layer(s, "exec") / "work/work").mkdir(parents=True),
        "layer",
        "unfinished: work",
    ),
    "a directory that is not marked": (
        lambda s: execute(s, "UPDATE layers SET has_directory=0 WHERE kind='image'"),
        "layer",
        "unfinished: fs",
    ),
    "a layer with nothing": (
        lambda s: execute(s, "INSERT INTO layers VALUES('empty222','image','','d',0,0,0,0,0,0)"),
        "layer",
        "neither a directory nor a blob",
    ),
    "a result whose layer is gone": (
        lambda s: execute(s, "DELETE FROM layers WHERE kind='exec'"),
        "record",
        "a layer of it is missing",
    ),
    "layers of no result": (
        lambda s: execute(s, "DELETE FROM results"),
        "record",
        "layers of no result",
    ),
    "a blob of no layer": (
        lambda s: execute(s, "INSERT INTO layer_blobs VALUES('gone2222','sha256:x','gzip','{}')"),
        "record",
        "blob of no layer",
    ),
    "blobs of no image": (
        lambda s: execute(s, "DELETE FROM images"),
        "record",
        "belongs to no image",
    ),
    "a mount without a directory": (lambda s: shutil.rmtree(mount(s)), "mount", "directory is missing"),
    "a mount without a row": (lambda s: execute(s, "DELETE FROM mounts"), "mount", "not recorded"),
    "an image without a manifest": (
        lambda s: s.content.forget(s.images.all()[0].descriptor.digest),
        "image",
        "manifest",
    ),
    "a write cut off": (
        lambda s: (s.layout.ingest / "deadbeef.1").write_bytes(b"x"),
        "leftover",
        "cut off",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_found_repaired_and_gone(filled: Store, case: str) -> None:
    damage, kind, said = DAMAGE[case]
    damage(filled)
    found = filled.check(repair=False)
    assert any(p.kind == kind and said in p.text and not p.repaired for p in found), found
    repaired = filled.check(repair=True)
    assert all(p.repaired for p in repaired)
    assert filled.check(repair=False) == []
    with Store.open(filled.root) as again:
        assert again.check(repair=False) == []


def test_a_layer_that_lost_its_directory_but_has_a_source_becomes_remote(
    filled: Store, cancel: CancelToken
) -> None:
    home = layer(filled, "image")
    shutil.rmtree(home)
    filled.check(repair=True)
    assert filled.layers.directory(home.name) is None
    with filled.lease() as lease:
        assert filled.records.result("sha256:c", lease) is not None
        found = filled.layers.find(DIFF, lease)
        assert found == home.name
        path = filled.layers.materialise(found, lambda _p: DIFF, cancel)
    assert path.is_dir()


def test_a_step_whose_layer_is_lost_is_not_a_cache_hit(filled: Store) -> None:
    shutil.rmtree(layer(filled, "exec"))
    filled.check(repair=True)
    with filled.lease() as lease:
        assert filled.records.result("sha256:c", lease) is None
    assert filled.records.canonical("sha256:k") is None


def test_contents_can_be_left_unread(filled: Store) -> None:
    filled.content.path(DIGEST).write_bytes(b"x" * len(DATA))
    assert filled.check(repair=False, contents=False) == []
    assert len(filled.check(repair=False)) == 1


def test_what_a_living_process_is_making_is_left_alone(filled: Store, cancel: CancelToken) -> None:
    with Store.open(filled.root) as other, other.lease() as lease:
        layer_id = other.layers.add_remote(lease, diff_id=DiffId("sha256:" + "c" * 64), blob=BLOB)
        with other.layers.new(lease, kind="exec") as new, other.content.writer(lease) as writer:
            (new.fs / "x").touch()
            writer.write(b"x" * 300_000)

            def fill(path: Path) -> None:
                (path / "x").touch()
                assert filled.check(repair=True) == []
                assert (path / "x").exists()

            other.layers.materialise(layer_id, fill, cancel)
            other.records.save("sha256:new", [[new.commit()]], lease=lease)
            writer.commit()
    assert filled.check(repair=False) == []


# --- power cuts ---


def reboot(store: Store) -> Store:
    execute(store, "UPDATE meta SET value='another boot' WHERE key='boot_id'")
    return Store.open(store.root)


def test_after_a_power_cut_only_what_reached_the_disk_is_believed(filled: Store) -> None:
    exec_layer, image_layer = layer(filled, "exec"), layer(filled, "image")
    filled.content.path(DIGEST).write_bytes(b"")
    with reboot(filled) as store:
        assert not store.content.has(DIGEST)
        assert not exec_layer.exists()
        assert store.layers.directory(image_layer.name) is None
        assert store.images.get("img") is not None
        assert store.check(repair=False) == []


def test_after_a_power_cut_what_was_synced_is_all_there(filled: Store) -> None:
    filled.sync()
    with reboot(filled) as store, store.lease() as lease:
        assert store.content.has(DIGEST)
        assert store.records.result("sha256:c", lease) is not None
        assert layer(store, "exec").exists()


def test_a_blob_that_is_whole_survives_without_sync(filled: Store) -> None:
    with reboot(filled) as store:
        assert store.content.read(DIGEST) == DATA
