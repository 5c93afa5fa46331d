"""Root file systems: the plan, mount point stubs, and copies in place of overlays."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from crossdock.engine.sandbox import native
from crossdock.engine.sandbox.fuse import normalise_marks
from crossdock.engine.sandbox.mounts import BindPlan, OverlayPlan, plan_rootfs
from crossdock.engine.sandbox.native import copied, merge_layers
from crossdock.engine.sandbox.stubs import stubs_removed
from crossdock.errors import SandboxError

if TYPE_CHECKING:
    from pathlib import Path


def test_plans(tmp_path: Path) -> None:
    a, b, upper, work, empty = (tmp_path / name for name in ("a", "b", "u", "w", "e"))

    def plan(*lowers: Path, upper: Path | None = None, work: Path | None = None) -> BindPlan | OverlayPlan:
        return plan_rootfs(lowers, upper=upper, work=work, empty=empty)

    assert plan() == BindPlan(empty, readonly=True)
    assert plan(a) == BindPlan(a, readonly=True)
    assert plan(upper=upper, work=work) == BindPlan(upper, readonly=False), "scratch needs no overlay"
    assert plan(a, b) == OverlayPlan((a, b), None, None)
    assert plan(a, upper=upper, work=work) == OverlayPlan((a,), upper, work)
    with pytest.raises(SandboxError, match="501 layers are more than the 500"):
        plan(*([a] * 501))
    with pytest.raises(SandboxError, match="needs a work directory"):
        plan(a, upper=upper)


def tree(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    root.mkdir(exist_ok=True)
    return root


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


@pytest.fixture
def whiteouts(tmp_path: Path) -> None:
    try:
        os.mknod(tmp_path / "probe", stat.S_IFCHR, 0)
    except PermissionError:
        pytest.skip("needs Linux 5.8: whiteouts by an ordinary user")
    (tmp_path / "probe").unlink()


@pytest.mark.usefixtures("whiteouts")
def test_layers_are_merged_with_whiteouts_and_opaque_directories(tmp_path: Path) -> None:
    low = tree(tmp_path / "low", keep="1", gone="1", dir__old="1", opq__old="1", swap__f="1")
    high = tree(tmp_path / "high", dir__new="2", opq__new="2")
    os.mknod(high / "gone", stat.S_IFCHR, 0)
    os.setxattr(high / "opq", "user.overlay.opaque", b"y")
    (high / "swap").symlink_to("keep")
    os.link(high / "dir/new", high / "dir/hard")
    target = tmp_path / "target"
    target.mkdir()
    merge_layers([low, high], target)
    assert names(target) == ["dir", "dir/hard", "dir/new", "dir/old", "keep", "opq", "opq/new", "swap"]
    assert (target / "swap").is_symlink()
    assert (target / "dir/hard").stat().st_nlink == 2
    assert os.listxattr(target / "opq") == []


@pytest.mark.usefixtures("whiteouts")
def test_what_changed_in_a_copy_is_moved_into_the_upper_directory(tmp_path: Path) -> None:
    low = tree(
        tmp_path / "low",
        same="1",
        edited="1",
        gone="1",
        d__deep__f="1",
        d__other="1",
        rm__a="1",
        quiet__f="1",
    )
    upper, scratch = tree(tmp_path / "upper", earlier="0"), tree(tmp_path / "scratch")
    with copied([low], upper, scratch) as root:
        assert (root / "earlier").read_text() == "0"
        (root / "edited").write_text("2")
        (root / "gone").unlink()
        (root / "d/deep/f").chmod(0o600)
        (root / "rm/a").unlink()
        (root / "rm").rename(root / "moved")
        tree(root, new__er__x="3")
    assert names(upper) == [
        *("d", "d/deep", "d/deep/f", "earlier", "edited", "gone", "moved", "new", "new/er", "new/er/x", "rm"),
    ]
    assert [name for name in names(upper) if stat.S_ISCHR((upper / name).lstat().st_mode)] == ["gone", "rm"]
    assert (upper / "d/deep/f").stat().st_mode & 0o777 == 0o600
    assert list(scratch.iterdir()) == []


def test_a_copy_that_nobody_changed_leaves_the_upper_directory_empty(tmp_path: Path) -> None:
    low, upper, scratch = (tree(tmp_path / name) for name in ("low", "upper", "scratch"))
    tree(low, a__b="1")
    with copied([low], upper, scratch):
        pass
    assert names(upper) == []


@pytest.mark.usefixtures("whiteouts")
def test_marks_of_fuse_overlayfs_become_those_of_overlayfs(tmp_path: Path) -> None:
    upper = tree(tmp_path / "upper", **{"d__.wh.gone": "", "opq__.wh..wh..opq": "", "opq__f": "1"})
    os.setxattr(upper / "opq/f", "user.fuseoverlayfs.origin", b"x")
    normalise_marks(upper)
    assert names(upper) == ["d", "d/gone", "opq", "opq/f"]
    assert stat.S_ISCHR((upper / "d/gone").lstat().st_mode)
    assert os.getxattr(upper / "opq", "user.overlay.opaque") == b"y"
    assert os.listxattr(upper / "opq/f") == []


def test_stubs_go_and_what_was_filled_stays(tmp_path: Path) -> None:
    root = tree(tmp_path / "root", etc__passwd="x")
    os.utime(root / "etc", ns=(10**18, 10**18))
    with stubs_removed(
        str(root), ["/etc/hosts", "/run/a/b", "/filled", "/etc/passwd", "/file"], recursive=False
    ):
        (root / "etc/hosts").touch()
        (root / "run/a/b").mkdir(parents=True)
        tree(root, filled__x="1", file="data")
    assert names(root) == ["etc", "etc/passwd", "file", "filled", "filled/x", "run", "run/a"]
    assert (root / "etc").stat().st_mtime_ns == 10**18, "the directory does not tell of the stub"


def test_made_parents_go_too_when_asked(tmp_path: Path) -> None:
    root = tree(tmp_path / "root")
    with stubs_removed(str(root), ["/run/a/b"], recursive=True):
        (root / "run/a/b").mkdir(parents=True)
    assert names(root) == []


def test_a_stub_that_a_step_replaced_by_a_link_is_left_alone(tmp_path: Path) -> None:
    outside = tree(tmp_path / "outside", precious="")
    root = tree(tmp_path / "root")
    with stubs_removed(str(root), ["/d/precious"], recursive=False):
        (root / "d").symlink_to(outside)
    assert (outside / "precious").exists()


def test_copies_that_killed_workers_left_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left, fresh = tmp_path / "crossdock-root-left", tmp_path / "crossdock-root-fresh"
    for folder in (left, fresh):
        (folder / "root").mkdir(parents=True)
    monkeypatch.setattr(native, "_FRESH_NS", 0)
    with native.scratch_folder(tmp_path) as held:
        assert sorted(tmp_path.iterdir()) == [held], "both looked old"
        with native.scratch_folder(tmp_path) as other:
            assert sorted(tmp_path.iterdir()) == sorted([held, other]), "what is in use stays"
    assert list(tmp_path.iterdir()) == []
    fresh.mkdir()
    monkeypatch.undo()
    with native.scratch_folder(tmp_path):
        assert fresh.exists(), "perhaps it is about to be locked"
