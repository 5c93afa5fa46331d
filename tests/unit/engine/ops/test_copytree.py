"""COPY's results, case by case, with the destinations that cp users get wrong."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

import pytest

from crossdock.cancel import CancelToken
from crossdock.engine.cache.layerview import LayerView
from crossdock.engine.ops.chmod import parse_mode
from crossdock.engine.ops.copytree import CopyOptions, copy
from crossdock.engine.ops.upper import Upper
from crossdock.errors import SolveError, UsageError
from crossdock.llb.ops import FileActionCopy

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def source(tmp_path: Path) -> Any:
    base = tmp_path / "src"
    (base / "d/e").mkdir(parents=True)
    (base / "d/a").write_text("a")
    (base / "d/e/b").write_text("b")
    (base / "c").write_text("c")
    (base / "l").symlink_to("c")
    os.utime(base / "c", (1000, 1000))
    os.utime(base / "d", (2000, 2000))
    return base


def run(
    tmp_path: Path,
    source: Any,
    src: Any,
    dest: Any,
    *,
    lowers: Any = (),
    existing: Any = (),
    options: Any = None,
    **fields: Any,
) -> Any:
    """Copy, and return what the result looks like: ``{path: text, '/' or '>target'}``."""
    lower = tmp_path / "lower"
    lower.mkdir(exist_ok=True)
    for entry in existing:
        if ">" in entry:
            (lower / entry.split(">")[0]).symlink_to(entry.split(">")[1])
            continue
        path = lower / entry.rstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if entry.endswith("/"):
            path.mkdir()
        else:
            path.write_text("old")
    top = tmp_path / "upper"
    top.mkdir()
    upper = Upper([*lowers, lower], top, lenient_owner=True)
    fields.setdefault("create_dest_path", True)
    fields.setdefault("allow_wildcard", True)
    fields.setdefault("follow_symlink", True)
    fields.setdefault("dir_copy_contents", True)
    action = FileActionCopy(src=src, dest=dest, **fields)
    options = options or CopyOptions()
    options = options._replace(
        contents=action.dir_copy_contents,
        include=action.include_patterns,
        exclude=action.exclude_patterns,
        replace=action.always_replace_existing_dest_paths,
    )
    copy(LayerView([source]), upper, action, options, unpack=None, cancel=CancelToken())
    return show(upper.view)


def show(view: Any, node: Any = None) -> Any:
    out = {}
    for kid in view.children(node or view.root()).values():
        if kid.is_dir:
            out[kid.path] = "/"
            out.update(show(view, kid))
        elif kid.is_link:
            out[kid.path] = ">" + view.readlink(kid)
        else:
            with os.fdopen(view.open(kid)) as file:
                out[kid.path] = file.read()
    return out


D = {"x": "/", "x/a": "a", "x/e": "/", "x/e/b": "b"}
CASES = {
    "a file to a new name": ("c", "/x", (), {"x": "c"}),
    "a file to a new directory": ("c", "/x/", (), {"x": "/", "x/c": "c"}),
    "a file into an existing directory": ("c", "/x", ("x/",), {"x": "/", "x/c": "c"}),
    "a file over a file": ("c", "/x", ("x",), {"x": "c"}),
    "a file below missing directories": ("c", "/p/q/x", (), {"p": "/", "p/q": "/", "p/q/x": "c"}),
    "a directory's contents to a new name": ("d", "/x", (), D),
    "a directory's contents to a new directory": ("d", "/x/", (), D),
    "a directory's contents into an existing one": ("d", "/x", ("x/old",), {**D, "x/old": "old"}),
    "a directory over an equal one merges": (
        "d",
        "/x",
        ("x/e/old", "x/a"),
        {**D, "x/e/old": "old"},
    ),
    "everything to the root": (
        "/",
        "/",
        (),
        {"c": "c", "d": "/", "d/a": "a", "d/e": "/", "d/e/b": "b", "l": ">c"},
    ),
    "a wildcard's matches": ("d/*", "/x/", (), {"x": "/", "x/a": "a", "x/b": "b"}),
    "a wildcard that matches one file to a name": ("c*", "/x", (), {"x": "c"}),
    "through a link to a directory": (
        "c",
        "/l/x",
        ("real/", "l>real"),
        {"real": "/", "real/x": "c", "l": ">real"},
    ),
    "through a link to an absolute directory": (
        "c",
        "/l/",
        ("real/", "l>/real"),
        {"real": "/", "real/c": "c", "l": ">/real"},
    ),
    "through a link that leads out stays inside": (
        "c",
        "/l/x",
        ("l>../../../../etc",),
        {"l": ">../../../../etc", "etc": "/", "etc/x": "c"},
    ),
    "onto a link writes where it leads": ("c", "/l", ("old", "l>old"), {"l": ">old", "old": "c"}),
    "a link is followed when it is named": ("l", "/x", (), {"x": "c"}),
}


@pytest.mark.parametrize(("src", "dest", "existing", "expected"), CASES.values(), ids=CASES.keys())
def test_destination(tmp_path: Path, source: Any, src: Any, dest: Any, existing: Any, expected: Any) -> None:
    assert run(tmp_path, source, src, dest, existing=existing) == expected


def test_a_directory_itself_without_contents_flag(tmp_path: Path, source: Any) -> None:
    result = run(tmp_path, source, "d", "/x", existing=("x/",), dir_copy_contents=False)
    assert result == {"x": "/", "x/d": "/", "x/d/a": "a", "x/d/e": "/", "x/d/e/b": "b"}


def test_a_link_is_kept_when_not_followed(tmp_path: Path, source: Any) -> None:
    assert run(tmp_path, source, "l", "/x", follow_symlink=False) == {"x": ">c"}


ERRORS = {
    "a missing source": ({"src": "zzz", "dest": "/x"}, (), '"/zzz": not found'),
    "a wildcard without matches": ({"src": "z*", "dest": "/x"}, (), "not found"),
    "a file over a directory": ({"src": "d", "dest": "/x"}, ("x/a/",), "cannot replace the directory /x/a"),
    "a directory over a file": ({"src": "d", "dest": "/x"}, ("x/e",), "cannot copy a directory to /x/e"),
    "below a file": ({"src": "c", "dest": "/x/y"}, ("x",), "/x is not a directory"),
    "no parent, and not to be made": (
        {"src": "c", "dest": "/p/x", "create_dest_path": False},
        (),
        "/p does not exist",
    ),
}


@pytest.mark.parametrize(("fields", "existing", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors(tmp_path: Path, source: Any, fields: Any, existing: Any, message: Any) -> None:
    with pytest.raises(SolveError, match=message):
        run(tmp_path, source, existing=existing, **fields)


def test_an_empty_wildcard_may_be_allowed(tmp_path: Path, source: Any) -> None:
    assert run(tmp_path, source, "z*", "/x", allow_empty_wildcard=True) == {}


def test_a_plain_path_must_exist_even_then(tmp_path: Path, source: Any) -> None:
    with pytest.raises(SolveError, match="not found"):
        run(tmp_path, source, "zzz", "/x", allow_empty_wildcard=True)


def test_replacing_whatever_is_there(tmp_path: Path, source: Any) -> None:
    result = run(
        tmp_path, source, "d", "/x", existing=("x/a/deep/", "x/e"), always_replace_existing_dest_paths=True
    )
    assert result == D


def test_include_and_exclude(tmp_path: Path, source: Any) -> None:
    assert run(tmp_path, source, "/", "/x/", include_patterns=("d/e/b",)) == {
        "x": "/",
        "x/d": "/",
        "x/d/e": "/",
        "x/d/e/b": "b",
    }


def test_excluded_paths_are_left_out(tmp_path: Path, source: Any) -> None:
    assert run(tmp_path, source, "/", "/x/", exclude_patterns=("d", "l")) == {"x": "/", "x/c": "c"}


def test_attributes_are_kept(tmp_path: Path, source: Any) -> None:
    (source / "c").chmod(0o4751)
    os.setxattr(source / "c", "user.k", b"v")
    run(tmp_path, source, "c", "/x")
    st = (tmp_path / "upper/x").stat()
    assert stat.S_IMODE(st.st_mode) == 0o4751
    assert st.st_mtime == 1000
    assert os.getxattr(tmp_path / "upper/x", "user.k") == b"v"


def test_directory_times_survive_what_is_copied_into_them(tmp_path: Path, source: Any) -> None:
    run(tmp_path, source, "/", "/x/")
    assert (tmp_path / "upper/x/d").stat().st_mtime == 2000


def test_a_given_time_is_everywhere(tmp_path: Path, source: Any) -> None:
    run(tmp_path, source, "/", "/p/q/", options=CopyOptions(time_ns=5_000_000_000))
    found = [
        os.lstat(os.path.join(base, name)).st_mtime
        for base, dirs, files in os.walk(tmp_path / "upper")
        for name in [*dirs, *files]
    ]
    assert set(found) == {5}


def test_hard_links_stay_links(tmp_path: Path, source: Any) -> None:
    os.link(source / "d/a", source / "d/e/again")
    run(tmp_path, source, "d", "/x")
    assert (tmp_path / "upper/x/a").stat().st_ino == (tmp_path / "upper/x/e/again").stat().st_ino


def test_mode_is_applied_to_files_and_directories(tmp_path: Path, source: Any) -> None:
    run(tmp_path, source, "d", "/x/", options=CopyOptions(mode=parse_mode("u=rwX,go=rX")))
    assert stat.S_IMODE((tmp_path / "upper/x/a").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "upper/x/e").stat().st_mode) == 0o755


def test_large_files_are_copied_whole(tmp_path: Path, source: Any) -> None:
    data = os.urandom(3_000_001)
    (source / "big").write_bytes(data)
    upper = Upper([], tmp_path, lenient_owner=True)
    action = FileActionCopy(src="big", dest="/copied", create_dest_path=True)
    copy(LayerView([source]), upper, action, CopyOptions(), unpack=None, cancel=CancelToken())
    assert (tmp_path / "copied").read_bytes() == data


MODES = {
    "octal": ("640", 0o100777, 0o640),
    "octal with setuid": ("4755", 0o100644, 0o4755),
    "add": ("+x", 0o100644, 0o755),
    "add for one": ("u+x", 0o100644, 0o744),
    "remove": ("go-rwx", 0o100755, 0o700),
    "set": ("u=rw,go=r", 0o100777, 0o644),
    "X on a plain file": ("a+X", 0o100644, 0o644),
    "X on a directory": ("a+X", 0o040644, 0o755),
    "X on an executable": ("g+X", 0o100744, 0o754),
    "copied from another class": ("g=u", 0o100754, 0o774),
    "several actions": ("u-w+x", 0o100644, 0o544),
    "setgid": ("g+s", 0o100755, 0o2755),
    "sticky": ("+t", 0o040755, 0o1755),
}


@pytest.mark.parametrize(("text", "before", "after"), MODES.values(), ids=MODES.keys())
def test_modes(text: Any, before: Any, after: Any) -> None:
    assert oct(parse_mode(text)(before)) == oct(after)


@pytest.mark.parametrize("text", ["", "8", "u", "u+q", "x+r", "u+x;rm", "09"])
def test_bad_modes(text: Any) -> None:
    with pytest.raises(UsageError, match="invalid mode"):
        parse_mode(text)
