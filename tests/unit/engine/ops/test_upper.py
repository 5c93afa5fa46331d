"""Writing into an upper directory by hand gives what the same changes give on a plain tree."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdock.engine.cache.layerview import OPAQUE_XATTR
from crossdock.engine.ops.upper import Owner, Upper
from crossdock.errors import SolveError
from crossdock.whiteouts import is_whiteout


@pytest.fixture
def stack(tmp_path: Path) -> Any:
    """A lower layer with ``d/a``, ``d/e/b``, ``f``, and an upper on top."""
    lower, top = tmp_path / "lower", tmp_path / "upper"
    (lower / "d/e").mkdir(parents=True)
    (lower / "d/a").write_text("a")
    (lower / "d/e/b").write_text("b")
    (lower / "f").write_text("f")
    top.mkdir()
    return lower, top, Upper([lower], top, lenient_owner=True)


def write(upper: Any, path: Any, text: Any = "new") -> None:
    Path(upper.make_room(path)).write_text(text)


def names(view: Any, node: Any = None) -> Any:
    out = []
    for kid in view.children(node or view.root()).values():
        out.append(kid.path)
        if kid.is_dir:
            out += names(view, kid)
    return out


def test_a_new_file_copies_its_directory_up_with_its_attributes(stack: Any) -> None:
    lower, top, upper = stack
    (lower / "d").chmod(0o2750)
    os.setxattr(lower / "d", "user.k", b"v")
    write(upper, "d/new")
    assert sorted(os.listdir(top)) == ["d"]
    assert os.listdir(top / "d") == ["new"]
    assert stat.S_IMODE((top / "d").stat().st_mode) == 0o2750
    assert os.getxattr(top / "d", "user.k") == b"v"
    assert names(upper.view) == ["d", "d/a", "d/e", "d/e/b", "d/new", "f"]


def test_removing_what_is_below_leaves_a_whiteout(stack: Any) -> None:
    _, top, upper = stack
    upper.remove("d/a")
    assert is_whiteout(os.lstat(top / "d/a"))
    assert upper.lookup("d/a") is None


def test_removing_what_is_only_here_leaves_nothing(stack: Any) -> None:
    _, top, upper = stack
    write(upper, "d/new")
    upper.remove("d/new")
    assert os.listdir(top / "d") == []


def test_removing_a_directory_and_making_it_again_hides_the_old_one(stack: Any) -> None:
    _, top, upper = stack
    upper.remove("d")
    upper.make_directory("d", 0o755, None, None)
    assert os.getxattr(top / "d", OPAQUE_XATTR) == b"y"
    assert names(upper.view) == ["d", "f"]


def test_a_file_where_a_directory_was_removed(stack: Any) -> None:
    _, top, upper = stack
    upper.remove("d")
    write(upper, "d", "file now")
    assert (top / "d").read_text() == "file now"
    assert names(upper.view) == ["d", "f"]


def test_removing_nothing_does_nothing(stack: Any) -> None:
    _, top, upper = stack
    upper.remove("zzz")
    assert os.listdir(top) == []


def test_a_file_does_not_replace_a_directory(stack: Any) -> None:
    with pytest.raises(SolveError, match="cannot replace the directory /d with a file"):
        stack[2].make_room("d")


def test_making_directories_returns_those_made(stack: Any) -> None:
    upper = stack[2]
    assert upper.make_directories("d/x/y", 0o700, None) == ["d/x", "d/x/y"]
    assert upper.make_directories("d/x/y", 0o700, None) == []
    with pytest.raises(SolveError, match="/f is not a directory"):
        upper.make_directories("f/x", 0o755, None)


def test_the_roots_attributes_are_copied_up_too(stack: Any) -> None:
    lower, top, upper = stack
    lower.chmod(0o700)
    write(upper, "x")
    assert stat.S_IMODE(top.stat().st_mode) == 0o700


@pytest.mark.needs("user")
def test_an_id_that_does_not_exist_here_is_an_error_with_a_hint(tmp_path: Path) -> None:
    upper = Upper([], tmp_path)
    write(upper, "x")
    with pytest.raises(SolveError, match="no such id") as caught:
        upper.chown(str(tmp_path / "x"), Owner(4242, 4242))
    assert "subuid" in (caught.value.hint or "")


_NAME = st.sampled_from(["a", "b", "c"])
_PATH = st.lists(_NAME, min_size=1, max_size=3).map("/".join)
_ACTION = st.tuples(st.sampled_from(["mkdir", "write", "rm", "link"]), _PATH)


def apply_plain(root: Path, action: str, path: str) -> bool:
    """Make the change on a plain tree; False when it cannot be made."""
    target = root / path
    parents = [root / "/".join(path.split("/")[:n]) for n in range(1, path.count("/") + 1)]
    if any(p.is_symlink() or not p.is_dir() for p in parents):
        return False
    if action == "mkdir":
        if os.path.lexists(target):
            return False
        target.mkdir()
    elif action == "rm":
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
    else:
        if target.is_dir() and not target.is_symlink():
            return False
        target.unlink(missing_ok=True)
        target.write_text("w") if action == "write" else target.symlink_to("t")
    return True


def apply_upper(upper: Upper, action: str, path: str) -> None:
    if action == "mkdir":
        upper.make_directory(path, 0o755, None, None)
    elif action == "rm":
        upper.remove(path)
    elif action == "write":
        write(upper, path, "w")
    else:
        os.symlink("t", upper.make_room(path))


def plain(root: Path) -> dict[str, str]:
    out = {}
    for base, dirs, files in os.walk(root):
        for name in [*dirs, *files]:
            path = Path(base, name)
            kind = ">" if path.is_symlink() else "/" if path.is_dir() else path.read_text()
            out[str(path.relative_to(root))] = kind
    return out


def merged(view: Any, node: Any = None) -> dict[str, str]:
    out = {}
    for kid in view.children(node or view.root()).values():
        if kid.is_dir:
            out[kid.path] = "/"
            out.update(merged(view, kid))
        else:
            out[kid.path] = ">" if kid.is_link else Path(kid.where).read_text()
    return out


@settings(max_examples=150, deadline=None)
@given(layers=st.lists(st.lists(_ACTION, max_size=8), min_size=1, max_size=4), fresh=st.booleans())
def test_any_changes_over_any_layers_give_what_they_give_on_a_plain_tree(layers: Any, fresh: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        truth = Path(folder, "truth")
        truth.mkdir()
        made: list[Path] = []
        for number, actions in enumerate(layers):
            top = Path(folder, f"layer{number}")
            top.mkdir()
            upper = Upper(made, top, lenient_owner=True)
            for action, path in actions:
                if apply_plain(truth, action, path):
                    if fresh:  # nothing remembered from one change to the next
                        upper = Upper(made, top, lenient_owner=True)
                    apply_upper(upper, action, path)
                    assert merged(upper.view) == plain(truth)
            made.append(top)
