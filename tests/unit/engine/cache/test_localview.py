"""Local directories read in place: patterns, ownership, caching, and changes while reading."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from crossdock.cancel import CancelToken
from crossdock.engine.cache.beneath import open_beneath
from crossdock.engine.cache.checksum import content_digest
from crossdock.engine.cache.listed import ListedTree
from crossdock.engine.cache.localview import LocalView
from crossdock.engine.cache.select import Selector, path_filter, walk
from crossdock.engine.store.statcache import StatTable
from crossdock.errors import ContextError, SolveError

if TYPE_CHECKING:
    from pathlib import Path


def make(root: Path, *entries: Any) -> Any:
    for entry in entries:
        name, _, text = entry.partition("=")
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        elif ">" in name:
            link, target = name.split(">")
            (root / link).symlink_to(target)
        else:
            path.write_text(text)
    return root


@pytest.fixture
def open_view(tmp_path: Path) -> Any:
    views = []

    def make_view(root: Path, exclude: Any = (), include: Any = (), table: Any = None) -> Any:
        view = LocalView(root, path_filter(tuple(include), tuple(exclude)), table)
        views.append(view)
        return view

    yield make_view
    for view in views:
        view.close()


def paths(view: Any) -> Any:
    return [path for path, _ in walk(view, view.root(), None) if path]


EXCLUDES = {
    "nothing excluded": ((), ["a", "d", "d/b", "d/e", "d/e/c", "n", "n/x"]),
    "a directory with all in it": (("d",), ["a", "n", "n/x"]),
    "a pattern at any depth": (("**/c",), ["a", "d", "d/b", "d/e", "n", "n/x"]),
    "what is taken back keeps its parents": (("d", "!d/e/c"), ["a", "d", "d/e", "d/e/c", "n", "n/x"]),
    "everything but one": (("*", "!n/x"), ["n", "n/x"]),
}


@pytest.mark.parametrize(("exclude", "expected"), EXCLUDES.values(), ids=EXCLUDES.keys())
def test_patterns(tmp_path: Path, open_view: Any, exclude: Any, expected: Any) -> None:
    make(tmp_path, "a=1", "d/b=2", "d/e/c=3", "n/x=4")
    assert paths(open_view(tmp_path, exclude)) == expected


def test_everything_belongs_to_root(tmp_path: Path, open_view: Any) -> None:
    make(tmp_path, "a=1")
    view = open_view(tmp_path)
    node = view.child(view.root(), "a")
    assert (node.uid, node.gid) == (0, 0)


def test_sockets_are_left_out(tmp_path: Path, open_view: Any) -> None:
    import socket

    make(tmp_path, "a=1")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
        assert paths(open_view(tmp_path)) == ["a"]


def test_a_link_of_the_tree_is_never_followed_outside(tmp_path: Path, open_view: Any) -> None:
    secret = make(tmp_path, "secret=1") / "secret"
    root = make(tmp_path / "ctx", "a=1")
    (root / "l").symlink_to(secret)
    view = open_view(root)
    assert view.child(view.root(), "l").is_link
    with pytest.raises(SolveError, match="not found"):
        content_digest(view, [Selector("/l", follow=True)], CancelToken())


def test_a_directory_replaced_by_a_link_is_not_entered(tmp_path: Path, open_view: Any) -> None:
    make(tmp_path, "outside/x=1", "ctx/d/x=2")
    view = open_view(tmp_path / "ctx")
    node = view.child(view.child(view.root(), "d"), "x")
    (tmp_path / "ctx/d").rename(tmp_path / "ctx/old")
    (tmp_path / "ctx/d").symlink_to("../outside")
    with pytest.raises(ContextError, match="cannot read"):
        os.close(view.open(node))


def test_a_missing_directory_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ContextError, match="nowhere"):
        LocalView(tmp_path / "nowhere", None, None)


def test_a_file_that_vanishes_is_named(tmp_path: Path, open_view: Any) -> None:
    make(tmp_path, "a=1")
    view = open_view(tmp_path)
    node = view.child(view.root(), "a")
    (tmp_path / "a").unlink()
    with pytest.raises(ContextError, match="a changed while the build was reading it") as caught:
        view.digests([node], CancelToken())
    assert caught.value.retryable


def test_a_file_that_changes_is_named(tmp_path: Path, open_view: Any) -> None:
    make(tmp_path, "a=1")
    view = open_view(tmp_path)
    node = view.child(view.root(), "a")
    (tmp_path / "a").write_text("longer")
    with pytest.raises(ContextError, match="changed while the build was reading it"):
        view.digests([node], CancelToken())


def old(root: Path) -> Any:
    """Make every file look left alone: ctime cannot be set, so wait until it is old enough."""
    time.sleep(0.15)
    return root


def test_unchanged_files_are_not_read_again(
    tmp_path: Path, open_view: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "ctx"
    root.mkdir()
    old(make(root, "a=1", "d/b=2"))
    table = StatTable(tmp_path / "stat")
    first = open_view(root, table=table)
    digest = content_digest(first, [Selector()], CancelToken())
    table.save()
    second = open_view(root, table=StatTable(tmp_path / "stat"))
    monkeypatch.setattr(LocalView, "open", lambda *_: pytest.fail("read again"))
    assert content_digest(second, [Selector()], CancelToken()) == digest


def test_a_change_with_the_same_size_and_mtime_is_noticed(tmp_path: Path, open_view: Any) -> None:
    root = tmp_path / "ctx"
    root.mkdir()
    old(make(root, "a=1"))
    before = (root / "a").stat()
    table = StatTable(tmp_path / "stat")
    first = open_view(root, table=table)
    digest = content_digest(first, [Selector()], CancelToken())
    table.save()
    (root / "a").write_text("2")
    os.utime(root / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    second = open_view(root, table=StatTable(tmp_path / "stat"))
    assert content_digest(second, [Selector()], CancelToken()) != digest


def test_a_file_written_just_before_is_not_believed_next_time(tmp_path: Path, open_view: Any) -> None:
    root = tmp_path / "ctx"
    root.mkdir()
    make(root, "a=1")
    table = StatTable(tmp_path / "stat")
    first = open_view(root, table=table)
    content_digest(first, [Selector()], CancelToken())
    table.save()
    assert len(StatTable(tmp_path / "stat")) == 0


def test_excluded_says_why_a_path_is_missing(tmp_path: Path, open_view: Any) -> None:
    make(tmp_path, "a=1", "b=2")
    view = open_view(tmp_path, ["a"])
    assert view.excluded("a")
    assert not view.excluded("zzz")
    with pytest.raises(SolveError, match='"/a": not found') as caught:
        content_digest(view, [Selector("/a")], CancelToken())
    assert caught.value.hint == "a is excluded by .dockerignore"


@pytest.mark.parametrize("kernel", ["new", "old"])
def test_opening_beneath_follows_no_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: Any
) -> None:
    if kernel == "old":
        monkeypatch.setattr("crossdock.engine.cache.beneath._missing", True)
    make(tmp_path, "d/x=1", "l>d", "d/y>x")
    root = os.open(tmp_path, os.O_RDONLY)
    try:
        os.close(open_beneath(root, "d/x", os.O_RDONLY))
        for path in ("l/x", "d/y"):
            with pytest.raises(OSError, match=r"symbolic link|Not a directory"):
                open_beneath(root, path, os.O_RDONLY)
    finally:
        os.close(root)


def listed(view: Any) -> ListedTree:
    """All of a view, as who brought the directory would hand it over."""
    return ListedTree(view.root(), len(paths(view)), time.time_ns())


def test_a_tree_that_is_listed_is_not_listed_again(tmp_path: Path, open_view: Any) -> None:
    make(tmp_path, "a=1", "d/b=2")
    tree = listed(open_view(tmp_path))
    (tmp_path / "later").write_text("later")
    view = LocalView(tmp_path, None, None, tree)
    assert paths(view) == ["a", "d", "d/b"]
    assert content_digest(view, [Selector()], CancelToken()) != content_digest(
        open_view(tmp_path), [Selector()], CancelToken()
    )
    view.close()


def test_a_file_that_is_not_what_was_listed_is_an_error(tmp_path: Path, open_view: Any) -> None:
    make(tmp_path, "a=1")
    tree = listed(open_view(tmp_path))
    (tmp_path / "a").write_text("longer")
    view = LocalView(tmp_path, None, None, tree)
    with pytest.raises(ContextError, match="changed while"):
        content_digest(view, [Selector()], CancelToken())
    view.close()


def test_digests_are_kept_with_the_tree_by_what_they_are_of(tmp_path: Path, open_view: Any) -> None:
    make(tmp_path, "a=1", "b=2")
    tree = listed(open_view(tmp_path))
    tree.checksums = {}
    chosen = [
        [Selector("/a")],
        [Selector("/b")],
        [Selector(exclude=("a",))],
        [Selector("/a"), Selector("/b")],
    ]
    first = LocalView(tmp_path, None, None, tree)
    digests = [content_digest(first, selectors, CancelToken()) for selectors in chosen]
    first.close()
    assert len(set(digests)) == len(chosen)
    assert digests == [content_digest(open_view(tmp_path), s, CancelToken()) for s in chosen]
    (tmp_path / "a").unlink()
    (tmp_path / "b").unlink()
    again = LocalView(tmp_path, None, None, tree)
    assert digests == [content_digest(again, s, CancelToken()) for s in chosen]
    with pytest.raises(SolveError, match="not found"):
        content_digest(again, [Selector("/c")], CancelToken())
    again.close()
