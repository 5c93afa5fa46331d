"""Links among wanted paths."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.patterns.follow import follow_links

if TYPE_CHECKING:
    from pathlib import Path


def _tree(root: Path) -> str:
    (root / "dir/sub").mkdir(parents=True)
    (root / "dir/sub/file").touch()
    (root / "real").touch()
    (root / "link").symlink_to("dir/sub")
    (root / "abs").symlink_to("/real")
    (root / "out").symlink_to("../../etc/passwd")
    (root / "loop1").symlink_to("loop2")
    (root / "loop2").symlink_to("loop1")
    return str(root)


def test_a_link_brings_its_target(tmp_path: Path) -> None:
    root = _tree(tmp_path)
    assert follow_links(root, ["link/file"]) == ("dir/sub/file", "link")
    assert follow_links(root, ["abs"]) == ("abs", "real")


def test_links_cannot_leave_the_root(tmp_path: Path) -> None:
    assert follow_links(_tree(tmp_path), ["out", "../real"]) == ("etc/passwd", "out", "real")


def test_loops_end(tmp_path: Path) -> None:
    assert follow_links(_tree(tmp_path), ["loop1"]) == ("loop1", "loop2")


def test_wildcards_are_resolved_to_links(tmp_path: Path) -> None:
    assert follow_links(_tree(tmp_path), ["l*nk/file"]) == ("dir/sub/file", "l*nk")


def test_the_root_means_everything(tmp_path: Path) -> None:
    assert follow_links(_tree(tmp_path), [".", "real"]) == ()


def test_missing_paths_are_kept(tmp_path: Path) -> None:
    assert follow_links(_tree(tmp_path), ["nope/x"]) == ("nope/x",)
