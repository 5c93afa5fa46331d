from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from crossdock.engine.store import Store
from crossdock.engine.store.locks import OncePerKey
from crossdock.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path

    from crossdock.cancel import CancelToken


def fail_inside(store: Store, *, nested: bool) -> None:
    with store.db.transaction() as tx:
        if nested:
            with store.db.transaction() as inner:
                inner.execute("INSERT INTO meta VALUES('a','b')")
        else:
            tx.execute("INSERT INTO meta VALUES('a','b')")
        raise ZeroDivisionError


def test_a_failed_transaction_leaves_nothing_and_the_next_one_works(store: Store) -> None:
    with pytest.raises(ZeroDivisionError):
        fail_inside(store, nested=False)
    assert store.db.one("SELECT 1 FROM meta WHERE key='a'") is None
    with store.db.transaction() as tx:
        tx.execute("INSERT INTO meta VALUES('a','b')")
    assert store.db.one("SELECT value FROM meta WHERE key='a'") == ("b",)


def test_sql_errors_become_store_errors(store: Store) -> None:
    for call in (store.db.one, store.db.all, store.db.execute):
        with pytest.raises(StoreError, match="no such table"):
            call("DELETE FROM nothere")
    assert store.db.one("SELECT 1") == (1,)


def test_nested_transactions_are_one(store: Store) -> None:
    with pytest.raises(ZeroDivisionError):
        fail_inside(store, nested=True)
    assert store.db.one("SELECT 1 FROM meta WHERE key='a'") is None


def test_a_snapshot_does_not_see_later_writes(store: Store) -> None:
    with Store.open(store.root) as other:
        with store.db.snapshot():
            before = store.db.all("SELECT key FROM meta")
            with other.db.transaction() as tx:
                tx.execute("INSERT INTO meta VALUES('new','b')")
            assert store.db.all("SELECT key FROM meta") == before
        assert len(store.db.all("SELECT key FROM meta")) == len(before) + 1


def test_threads_and_handles_write_at_once_without_losing_anything(store: Store) -> None:
    with Store.open(store.root) as other:

        def work(handle: Store, name: str) -> None:
            for number in range(100):
                handle.records.link(f"{name}{number}", "c")

        threads = [
            threading.Thread(target=work, args=(handle, f"{handle is store}{n}-"))
            for handle in (store, other)
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert store.db.one("SELECT count(*) FROM keys") == (800,)


def test_closing_leaves_the_log_for_the_next_opener(tmp_path: Path) -> None:
    """A checkpoint at close costs 10 ms of fsync on every command."""
    with Store.open(tmp_path / "s") as store:
        store.records.link("a", "b")
    assert (tmp_path / "s/metadata.sqlite-wal").stat().st_size > 0
    with Store.open(tmp_path / "s") as store:
        assert store.records.canonical("a") == "b"
        store.db.checkpoint()
        assert (tmp_path / "s/metadata.sqlite-wal").stat().st_size == 0


def test_a_second_handle_keeps_working_when_the_first_closes(tmp_path: Path) -> None:
    first = Store.open(tmp_path / "s")
    with Store.open(tmp_path / "s") as second:
        first.records.link("a", "b")
        first.close()
        second.records.link("c", "d")
        assert second.records.canonical("a") == "b"
    first.close()


def test_once_per_key_lets_others_through_and_is_cancellable(cancel: CancelToken) -> None:
    once = OncePerKey()
    with once.holding("a", cancel), once.holding("b", cancel):
        threading.Timer(0.05, cancel.cancel).start()
        started = time.monotonic()
        with pytest.raises(type(cancel.cause)), once.holding("a", cancel):
            pytest.fail("two at once")
        assert time.monotonic() - started < 5


def test_store_files_are_only_for_their_owner(store: Store) -> None:
    for folder, _, files in os.walk(store.root):
        for name in files:
            mode = os.stat(os.path.join(folder, name)).st_mode
            assert folder != str(store.root) or mode & 0o600 == 0o600
    assert store.root.stat().st_mode & 0o077 == 0
