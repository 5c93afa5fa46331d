"""What counts for a content digest and what does not; what wildcards and patterns select."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from crossdock.cancel import CancelToken
from crossdock.engine.cache.checksum import content_digest
from crossdock.engine.cache.layerview import LayerView
from crossdock.engine.cache.select import Selector, expand, has_wildcard
from crossdock.errors import SolveError

if TYPE_CHECKING:
    from pathlib import Path


def digest(*directories: Any, selector: Any = None) -> Any:
    return content_digest(LayerView(directories), [selector or Selector()], CancelToken())


@pytest.fixture
def root(tmp_path: Path) -> Any:
    for name in ("one", "two"):
        base = tmp_path / name
        (base / "d/e").mkdir(parents=True)
        (base / "d/a").write_text("a")
        (base / "d/e/b").write_text("b")
        (base / "c").write_text("c")
        (base / "l").symlink_to("c")
    return tmp_path


def test_equal_trees_have_equal_digests(root: Path) -> None:
    assert digest(root / "one") == digest(root / "two")


CHANGES = {
    "content": lambda r: (r / "d/a").write_text("x"),
    "a name": lambda r: (r / "d/a").rename(r / "d/z"),
    "a mode": lambda r: (r / "d/a").chmod(0o600),
    "a directory's mode": lambda r: (r / "d").chmod(0o700),
    "a link's target": lambda r: ((r / "l").unlink(), (r / "l").symlink_to("d")),
    "a new file": lambda r: (r / "d/e/new").write_text(""),
    "a new empty directory": lambda r: (r / "empty").mkdir(),
    "an attribute": lambda r: os.setxattr(r / "c", "user.x", b"1"),
    "a file for a directory": lambda r: ((r / "c").unlink(), (r / "c").mkdir()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_counts(root: Path, change: Any) -> None:
    change(root / "two")
    assert digest(root / "one") != digest(root / "two")


def test_times_do_not_count(root: Path) -> None:
    os.utime(root / "two/d/a", (1, 1))
    os.utime(root / "two/d", (1, 1))
    assert digest(root / "one") == digest(root / "two")


def test_how_a_tree_is_cut_into_layers_does_not_count(root: Path) -> None:
    (root / "empty").mkdir()
    assert digest(root / "one") == digest(root / "empty", root / "one")


def test_only_what_is_selected_counts(root: Path) -> None:
    (root / "two/c").write_text("other")
    (root / "two/d/e/b").write_text("other")
    selector = Selector("/d/a")
    assert digest(root / "one", selector=selector) == digest(root / "two", selector=selector)
    assert digest(root / "one", selector=Selector("/d")) != digest(root / "two", selector=Selector("/d"))


def test_the_name_of_a_single_selected_path_is_not_its_content(root: Path) -> None:
    assert digest(root / "one", selector=Selector("/d/a")) != digest(root / "one", selector=Selector("/c"))
    (root / "two/c").write_text("a")
    assert digest(root / "one", selector=Selector("/d/a")) == digest(root / "two", selector=Selector("/c"))


def test_a_followed_link_counts_as_what_it_leads_to(root: Path) -> None:
    follow = Selector("/l", follow=True)
    assert digest(root / "one", selector=follow) == digest(root / "one", selector=Selector("/c"))
    assert digest(root / "one", selector=Selector("/l")) != digest(root / "one", selector=follow)


def test_excluded_paths_do_not_count(root: Path) -> None:
    (root / "two/d/e/b").write_text("other")
    selector = Selector("/d", exclude=("e",))
    assert digest(root / "one", selector=selector) == digest(root / "two", selector=selector)


def test_included_paths_alone_count_with_their_parents(root: Path) -> None:
    (root / "two/d/a").write_text("other")
    selector = Selector("/", include=("d/e/b",))
    assert digest(root / "one", selector=selector) == digest(root / "two", selector=selector)
    (root / "two/d/e").chmod(0o700)
    assert digest(root / "one", selector=selector) != digest(root / "two", selector=selector)


def test_a_missing_path_is_an_error(root: Path) -> None:
    with pytest.raises(SolveError, match='"/zzz": not found'):
        digest(root / "one", selector=Selector("zzz"))


def test_a_wildcard_that_matches_nothing_is_no_error_here(root: Path) -> None:
    assert digest(root / "one", selector=Selector("zzz*", wildcard=True))


def test_a_required_path_that_is_missing_is_an_error(root: Path) -> None:
    selector = Selector("/", include=("d/e/**",), required=("/d/e",))
    digest(root / "one", selector=selector)
    with pytest.raises(SolveError, match='"/d/zzz": not found'):
        digest(root / "one", selector=selector._replace(required=("/d/zzz",)))


WILDCARDS = {
    "a star": ("d/*", ["d/a", "d/e"]),
    "a question mark": ("?", ["c", "d", "l"]),
    "a class": ("[cl]", ["c", "l"]),
    "a negated class": ("[^cl]", ["d"]),
    "several components": ("*/e/b", ["d/e/b"]),
    "no wildcard": ("d/e", ["d/e"]),
    "an escaped one": ("\\c", []),
    "below a file": ("c/*", []),
}


@pytest.mark.parametrize(("pattern", "expected"), WILDCARDS.values(), ids=WILDCARDS.keys())
def test_wildcards(root: Path, pattern: Any, expected: Any) -> None:
    found = expand(LayerView([root / "one"]), pattern, wildcard=True, follow=False)
    assert [match.path for match in found] == expected


def test_has_wildcard() -> None:
    assert has_wildcard("a/*.txt")
    assert not has_wildcard("a/\\*.txt")
