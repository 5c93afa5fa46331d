"""Waiting for a lock that another process holds, or for what its holder makes."""

from __future__ import annotations

import fcntl
import os
import threading
from typing import TYPE_CHECKING

import pytest

from crossdock.cancel import CancelToken
from crossdock.engine.facade_keys import StoreKeyCache
from crossdock.engine.store import Store
from crossdock.engine.store.locks import hold
from crossdock.errors import Cancelled

if TYPE_CHECKING:
    from pathlib import Path


def locked(path: Path) -> int:
    """Lock a file as another process would: by a descriptor of its own."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def test_a_free_lock_is_held(tmp_path: Path) -> None:
    with hold(tmp_path / "lock", CancelToken(), unless=lambda: True) as fd:
        assert fd >= 0


def test_the_wait_ends_when_the_lock_is_free(tmp_path: Path) -> None:
    other, asked = locked(tmp_path / "lock"), threading.Event()

    def unless() -> bool:
        asked.set()
        return False

    def let_go() -> None:
        asked.wait()
        os.close(other)

    thread = threading.Thread(target=let_go)
    thread.start()
    with hold(tmp_path / "lock", CancelToken(), unless=unless) as fd:
        assert fd >= 0
    thread.join()


def test_the_wait_ends_without_the_lock_when_it_is_not_needed(tmp_path: Path) -> None:
    other = locked(tmp_path / "lock")
    answers = iter([False, False, True])
    with hold(tmp_path / "lock", CancelToken(), unless=lambda: next(answers)) as fd:
        assert fd == -1
    os.close(other)


def test_a_wait_can_be_cancelled(tmp_path: Path) -> None:
    other, cancel = locked(tmp_path / "lock"), CancelToken()

    def unless() -> bool:
        cancel.cancel(Cancelled())
        return False

    with pytest.raises(Cancelled), hold(tmp_path / "lock", cancel, unless=unless):
        pass
    os.close(other)


def test_who_waits_for_a_step_goes_on_when_its_result_is_there(tmp_path: Path) -> None:
    key = "sha256:" + "a" * 64
    with Store.open(tmp_path / "store") as store, store.lease() as lease:
        keys = StoreKeyCache(store, lease)
        other = locked(store.layout.locks / f"key-{'a' * 32}")
        saved = threading.Timer(0.02, lambda: store.records.save(key, [[]], lease=lease))
        saved.start()
        with keys.exclusive(key, CancelToken()):
            assert keys.lookup(key) is not None
        saved.join()
        os.close(other)
