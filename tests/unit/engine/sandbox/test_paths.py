"""Paths that stay inside a root."""

from __future__ import annotations

import errno
import os
import shutil
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crossdock.engine.sandbox.paths import (
    find_program,
    make_directories,
    remove_folder,
    resolve_in_root,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def root(tmp_path: Path) -> str:
    base = tmp_path / "root"
    (base / "a/b").mkdir(parents=True)
    (base / "a/f").touch()
    links = {
        "up": "../../..",
        "abs": "/a",
        "rel": "a/b",
        "out": "/../../../etc",
        "dangling": "/no/where",
        "loop": "loop",
    }
    for name, target in links.items():
        (base / name).symlink_to(target)
    (base / "a/b/back").symlink_to("../../abs/b")
    return str(base)


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("/", ""),
        ("a/./b/", "/a/b"),
        ("/../../x", "/x"),
        ("/a/../..", ""),
        ("up/x", "/x"),
        ("abs/b", "/a/b"),
        ("rel/x", "/a/b/x"),
        ("out/passwd", "/etc/passwd"),
        ("dangling/x", "/no/where/x"),
        ("a/b/back/back/y", "/a/b/y"),
        ("a/f/x", "/a/f/x"),
    ],
)
def test_links_lead_where_they_would_if_the_root_were_all(root: str, path: str, inside: str) -> None:
    assert resolve_in_root(root, path) == root + inside


def test_a_loop_of_links_is_an_error(root: str) -> None:
    with pytest.raises(OSError, match="symbolic links") as caught:
        resolve_in_root(root, "/loop/x")
    assert caught.value.errno == errno.ELOOP


@given(
    parts=st.lists(
        st.sampled_from(["..", ".", "a", "b", "up", "abs", "out", "rel", "back", "x"]), max_size=12
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_leaves_the_root(root: str, parts: list[str]) -> None:
    found = resolve_in_root(root, "/".join(parts))
    assert found == root or found.startswith(root + "/")
    assert ".." not in found[len(root) :].split("/")
    real = os.path.realpath(found)
    assert not os.path.lexists(found) or real.startswith(os.path.realpath(root))


def test_directories_are_made_through_links_with_an_owner(root: str, tmp_path: Path) -> None:
    made = make_directories(root, "/dangling/deep", uid=os.getuid(), gid=os.getgid(), mode=0o750)
    assert made == f"{root}/no/where/deep"
    assert os.stat(made).st_mode & 0o777 == 0o750
    assert make_directories(root, "/a/b") == f"{root}/a/b"
    assert not (tmp_path / "no").exists()


def test_a_file_in_the_way_is_an_error(root: str) -> None:
    with pytest.raises(NotADirectoryError):
        make_directories(root, "/a/f/x")


class TestFindProgram:
    @pytest.fixture
    def folders(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        for folder, mode in (("one", 0o644), ("two", 0o755)):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "tool").touch(mode)
        (tmp_path / "one/folder").mkdir()
        monkeypatch.setenv("PATH", f"{tmp_path}/absent:{tmp_path}/one:{tmp_path}/two")
        return str(tmp_path)

    @pytest.mark.parametrize("name", ["tool", "folder", "nothing", "./tool", ""])
    def test_as_the_library_does(self, folders: str, name: str) -> None:
        assert find_program(name) == shutil.which(name)

    def test_what_may_not_be_run_is_passed_over(self, folders: str) -> None:
        assert find_program("tool") == f"{folders}/two/tool"

    def test_another_path(self, folders: str) -> None:
        assert find_program("tool", f"{folders}/one") is None
        assert find_program("tool", f"{folders}/two") == f"{folders}/two/tool"

    def test_a_path_is_taken_as_it_is(self, folders: str) -> None:
        assert find_program(f"{folders}/two/tool") == f"{folders}/two/tool"
        assert find_program(f"{folders}/one/tool") is None


def test_a_folder_is_removed_with_what_is_in_it_and_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    folder = tmp_path / "folder"
    (folder / "deep/deeper").mkdir(parents=True)
    (folder / "deep/file").touch()
    (folder / "link").symlink_to(outside)
    remove_folder(folder)
    assert not folder.exists()
    assert (outside / "kept").exists()
