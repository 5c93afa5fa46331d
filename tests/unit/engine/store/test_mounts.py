from __future__ import annotations

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from crossdock.cancel import CancelToken
from crossdock.engine.store import Store, hooks, mounts
from crossdock.engine.store.mounts import mount_id
from crossdock.errors import Cancelled

if TYPE_CHECKING:
    from pathlib import Path

    from crossdock.engine.store import Lease, Sharing


def test_files_stay_from_use_to_use(store: Store, lease: Lease, cancel: CancelToken) -> None:
    with store.mounts.use(lease, name="/root/.cache", sharing="shared", cancel=cancel) as path:
        assert path.stat().st_mode & 0o777 == 0o755
        (path / "x").write_text("y")
    with store.mounts.use(lease, name="/root/.cache", sharing="locked", cancel=cancel) as path:
        assert (path / "x").read_text() == "y"


def test_name_namespace_and_base_each_make_another_mount() -> None:
    ids = {
        mount_id(*parts)
        for parts in [("a", "", ""), ("", "a", ""), ("", "", "a"), ("a", "a", ""), ("aa", "", "")]
    }
    assert len(ids) == 5
    assert mount_id("a", "b", "c") == mount_id("a", "b", "c")


def test_a_mount_is_filled_once_and_not_half(store: Store, lease: Lease, cancel: CancelToken) -> None:
    def fail(path: Path) -> None:
        (path / "half").write_text("")
        raise ZeroDivisionError

    def fill(path: Path) -> None:
        (path / "base").write_text("b")

    def use(fill: object) -> list[str]:
        with store.mounts.use(lease, name="c", sharing="shared", cancel=cancel, fill=fill) as path:  # type: ignore[arg-type]
            return os.listdir(path)

    with pytest.raises(ZeroDivisionError):
        use(fail)
    assert use(fill) == ["base"]
    assert use(fail) == ["base"]


def test_shared_users_are_in_one_directory_at_once(store: Store, lease: Lease, cancel: CancelToken) -> None:
    with (
        store.mounts.use(lease, name="c", sharing="shared", cancel=cancel) as first,
        store.mounts.use(lease, name="c", sharing="shared", cancel=cancel) as second,
    ):
        assert first == second
        assert store.mounts.in_use(first.parent.name)
    assert not store.mounts.in_use(first.parent.name)


def test_who_waited_for_the_first_shared_user_joins_it(
    store: Store, lease: Lease, cancel: CancelToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting begins while the mount does not exist yet, which only one user at a time may change."""
    monkeypatch.setattr(mounts, "_SHOWN_AFTER_S", 0.0)
    waits, joined = threading.Event(), threading.Event()

    def join() -> None:
        def told(begun: bool) -> None:
            if begun:
                waits.set()

        with store.mounts.use(lease, name="c", sharing="shared", cancel=cancel, waiting=told):
            joined.set()

    def fill(_: Path) -> None:
        second.start()
        assert waits.wait(10)

    second = threading.Thread(target=join)
    with store.mounts.use(lease, name="c", sharing="shared", cancel=cancel, fill=fill):
        assert joined.wait(10)
    second.join()


def test_a_long_wait_is_told_and_its_end(
    store: Store, lease: Lease, cancel: CancelToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts, "_SHOWN_AFTER_S", 0.0)
    told: list[bool] = []
    waiting = CancelToken()

    def tell(begun: bool) -> None:
        told.append(begun)
        waiting.cancel()

    with (
        store.mounts.use(lease, name="c", sharing="locked", cancel=cancel),
        pytest.raises(Cancelled),
        store.mounts.use(lease, name="c", sharing="locked", cancel=waiting, waiting=tell),
    ):
        pytest.fail("two at once")
    assert told == [True, False]


def test_private_users_get_a_directory_each_and_it_is_used_again(
    store: Store, lease: Lease, cancel: CancelToken
) -> None:
    def private() -> object:
        return store.mounts.use(lease, name="c", sharing="private", cancel=cancel)

    with private() as first, private() as second, private() as third:  # type: ignore[attr-defined]
        assert len({first, second, third}) == 3
        (first / "x").write_text("1")
    with private() as again:  # type: ignore[attr-defined]
        assert again == first
        assert (again / "x").read_text() == "1"
    assert len(store.mounts.ids()) == 3


def test_locked_users_are_alone_also_between_handles(store: Store, lease: Lease, cancel: CancelToken) -> None:
    inside = 0
    most = 0
    guard = threading.Lock()

    def work(handle: Store) -> None:
        nonlocal inside, most
        for _ in range(5):
            with handle.mounts.use(lease, name="c", sharing="locked", cancel=cancel):
                with guard:
                    inside += 1
                    most = max(most, inside)
                with guard:
                    inside -= 1

    with Store.open(store.root) as other, ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(work, handle) for handle in (store, other, store, other)]:
            future.result(30)
    assert most == 1


def test_waiting_for_a_locked_mount_can_be_cancelled(store: Store, lease: Lease, cancel: CancelToken) -> None:
    waiting = CancelToken()
    threading.Timer(0.05, waiting.cancel).start()
    with (
        store.mounts.use(lease, name="c", sharing="locked", cancel=cancel),
        pytest.raises(Cancelled),
        store.mounts.use(lease, name="c", sharing="locked", cancel=waiting),
    ):
        pytest.fail("two at once")


def test_a_mount_in_use_is_not_removed(store: Store, lease: Lease, cancel: CancelToken) -> None:
    with store.mounts.use(lease, name="c", sharing="shared", cancel=cancel) as path:
        assert not store.mounts.remove(path.parent.name)
        assert path.is_dir()
    assert store.mounts.remove(path.parent.name)
    assert os.listdir(store.layout.mounts) == []
    assert store.mounts.ids() == []


@pytest.mark.parametrize("sharing", ["shared", "private", "locked"])
def test_removal_beside_use_never_takes_a_directory_away(
    store: Store, lease: Lease, cancel: CancelToken, sharing: str
) -> None:
    done = threading.Event()

    def remove() -> None:
        while not done.is_set():
            for mount in store.mounts.ids():
                store.mounts.remove(mount)
            store.trash.empty()

    remover = threading.Thread(target=remove)
    remover.start()
    try:
        for _ in range(100):
            with store.mounts.use(lease, name="c", sharing=sharing, cancel=cancel) as path:  # type: ignore[arg-type]
                (path / "x").write_text("y")
                assert (path / "x").read_text() == "y"
    finally:
        done.set()
        remover.join()
    assert store.check(repair=False) == []


@pytest.mark.parametrize("sharing", ["shared", "locked"])
def test_who_waited_during_a_removal_holds_the_new_lock(
    store: Store, lease: Lease, cancel: CancelToken, sharing: Sharing
) -> None:
    """The lock waited for was unlinked with the mount: holding it would keep nobody out."""
    with store.mounts.use(lease, name="c", sharing=sharing, cancel=cancel) as path:
        mount = path.parent.name
    held: list[bool] = []

    def use() -> None:
        with (
            Store.open(store.root) as other,
            other.lease() as own,
            other.mounts.use(own, name="c", sharing=sharing, cancel=cancel) as path,
        ):
            held.append(path.is_dir() and store.mounts.in_use(mount))

    with ThreadPoolExecutor(1) as pool:
        users: list[Future[None]] = []

        def start_using() -> None:
            users.append(pool.submit(use))
            with pytest.raises(TimeoutError):
                users[0].result(0.2)

        hooks.install("store.prune:after_delete", start_using)
        assert store.mounts.remove(mount)
        users[0].result(10)
    assert held == [True]
