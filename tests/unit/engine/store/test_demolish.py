"""Removing a whole store."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from crossdock.engine.store import Store
from crossdock.engine.store.demolish import remove_store
from crossdock.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path

    from crossdock.cancel import CancelToken


def fill(root: Path, cancel: CancelToken) -> None:
    with Store.open(root) as store, store.lease() as lease:
        with store.layers.new(lease, kind="exec") as new:
            deep = new.fs / "/".join("abcdefgh")
            deep.mkdir(parents=True)
            (deep / "file").write_bytes(b"x")
            store.records.save("c", [(new.commit(),)], lease=lease)
            deep.chmod(0)
        store.content.put_bytes(b"blob", lease)
        with store.mounts.use(lease, name="m", sharing="shared", cancel=cancel) as path:
            (path / "kept").write_bytes(b"x")
    for name in ("builders", "sandbox", "history"):
        (root / name).mkdir()
        (root / name / "file").write_text("x")


def test_nothing_is_left(tmp_path: Path, cancel: CancelToken) -> None:
    fill(tmp_path / "s", cancel)
    assert remove_store(tmp_path / "s", cancel)
    assert not (tmp_path / "s").exists()
    assert not remove_store(tmp_path / "s", cancel)


def test_other_files_stay(tmp_path: Path, cancel: CancelToken) -> None:
    fill(tmp_path / "s", cancel)
    (tmp_path / "s/mine").write_text("mine")
    assert remove_store(tmp_path / "s", cancel)
    assert os.listdir(tmp_path / "s") == ["mine"]


def test_a_store_in_use_stays_as_it_is(tmp_path: Path, cancel: CancelToken) -> None:
    fill(tmp_path / "s", cancel)
    with Store.open(tmp_path / "s") as store:
        with store.lease():
            with pytest.raises(StoreError, match="used by a running build") as caught:
                remove_store(tmp_path / "s", cancel)
            assert "--keep-state" in (caught.value.hint or "")
            assert len(store.disk_usage()) == 3
        assert store.check(repair=False) == []


@pytest.mark.parametrize("text", ["", "something else\n", "crossdock store 99\n"])
def test_what_is_no_store_of_ours_is_left_alone(tmp_path: Path, cancel: CancelToken, text: str) -> None:
    (tmp_path / "s/layers").mkdir(parents=True)
    if text:
        (tmp_path / "s/version").write_text(text)
        with pytest.raises(StoreError):
            remove_store(tmp_path / "s", cancel)
    else:
        assert not remove_store(tmp_path / "s", cancel)
    assert (tmp_path / "s/layers").exists()


def test_one_can_be_made_there_again(tmp_path: Path, cancel: CancelToken) -> None:
    fill(tmp_path / "s", cancel)
    remove_store(tmp_path / "s", cancel)
    with Store.open(tmp_path / "s") as store:
        assert store.disk_usage() == []
        assert store.check(repair=False) == []
