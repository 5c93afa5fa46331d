from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING

from crossdock.engine.store.removal import tree_size

if TYPE_CHECKING:
    from pathlib import Path

    from crossdock.engine.store import Store


def make_deep(root: Path, depth: int) -> None:
    """Nest far beyond PATH_MAX and the recursion limit."""
    root.mkdir()
    fd = os.open(root, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d" * 50, dir_fd=fd)
        below = os.open("d" * 50, os.O_RDONLY, dir_fd=fd)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.close(fd)
        fd = below
    os.close(fd)


def test_trees_of_any_depth_are_deleted(store: Store, tmp_path: Path) -> None:
    make_deep(tmp_path / "deep", sys.getrecursionlimit() + 500)
    store.trash.delete(tmp_path / "deep")
    assert not (tmp_path / "deep").exists()
    assert os.listdir(store.layout.trash) == []


def test_directories_without_permissions_are_deleted(store: Store, tmp_path: Path) -> None:
    closed = tmp_path / "t/a/b"
    closed.mkdir(parents=True)
    (closed / "f").touch()
    for path in (closed, closed.parent):
        path.chmod(0)
    store.trash.delete(tmp_path / "t")
    assert os.listdir(store.layout.trash) == []


def test_links_and_special_files_are_removed_not_followed(store: Store, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/keep").touch()
    tree = tmp_path / "t"
    tree.mkdir()
    (tree / "link").symlink_to(tmp_path / "outside")
    os.mkfifo(tree / "fifo")
    store.trash.delete(tree)
    store.trash.delete(tmp_path / "absent")
    (tmp_path / "top").symlink_to(tmp_path / "outside")
    store.trash.delete(tmp_path / "top")
    assert (tmp_path / "outside/keep").exists()
    assert not tree.exists()


def test_two_emptiers_do_not_disturb_each_other(store: Store, tmp_path: Path) -> None:
    for number in range(20):
        for sub in range(20):
            folder = tmp_path / f"t{number}/s{sub}"
            folder.mkdir(parents=True)
            (folder / "f").touch()
        store.trash.take(tmp_path / f"t{number}")
    failures: list[BaseException] = []

    def work() -> None:
        try:
            # what the lock normally keeps apart
            store.trash._empty(lambda: True)
        except BaseException as exc:  # noqa: BLE001 - reported below
            failures.append(exc)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.trash.empty()
    assert failures == []
    assert os.listdir(store.layout.trash) == []


def test_emptying_stops_when_told(store: Store, tmp_path: Path) -> None:
    (tmp_path / "t/a").mkdir(parents=True)
    store.trash.take(tmp_path / "t")
    store.trash.empty(lambda: False)
    assert store.trash.pending()
    store.trash.empty()
    assert not store.trash.pending()


def test_opening_clears_a_trash_that_was_left(store: Store, tmp_path: Path) -> None:
    (tmp_path / "t/a").mkdir(parents=True)
    store.trash.take(tmp_path / "t")
    store.recover()
    for thread in threading.enumerate():
        if thread.name == "store-trash":
            thread.join(10)
    assert not store.trash.pending()


def test_hard_links_count_once_and_holes_do_not(tmp_path: Path) -> None:
    tree = tmp_path / "t"
    tree.mkdir()
    (tree / "a").write_bytes(b"x" * 1_000_000)
    os.sync()
    alone = tree_size(tree)
    os.link(tree / "a", tree / "b")
    with (tree / "hole").open("wb") as file:
        file.truncate(10**9)
    assert 1_000_000 <= alone <= 1_100_000
    assert tree_size(tree) - alone < 100_000
