from __future__ import annotations

import io
import os
import stat
import tarfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from crossdock.cancel import CancelToken
from crossdock.engine.exporters import ExportContext, ExporterSpec, PlatformImage, check_exporters, export
from crossdock.errors import Cancelled, ExportError, UsageError
from crossdock.image import Platform
from crossdock.progress import VertexLog

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm", "v7")


@pytest.fixture
def trees(tmp_path: Path, context: ExportContext, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Folders that stand for mounted results; the ref of an image names its folder."""
    made = {name: tmp_path / "trees" / name for name in ("one", "two")}
    for path in made.values():
        path.mkdir(parents=True)

    @contextmanager
    def mounted(ref: Sequence[str], vertex: str, cancel: CancelToken) -> Iterator[Path]:
        yield made[ref[0]]

    monkeypatch.setattr(context.access, "mounted", mounted)
    return made


ONE = PlatformImage(AMD64, ["one"])  # type: ignore[list-item]
TWO = PlatformImage(ARM64, ["two"])  # type: ignore[list-item]


def local(context: ExportContext, dest: Path, images: Any = (ONE,), **attrs: str) -> Any:
    given = {"dest": str(dest), **{k.replace("_", "-"): v for k, v in attrs.items()}}
    return export(list(images), [ExporterSpec("local", given)], context=context)


def listing(root: Path) -> dict[str, str]:
    found = {}
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = os.path.join(folder, name)
            found[os.path.relpath(path, root)] = stat.filemode(os.lstat(path).st_mode)
    return found


def test_files_come_out_with_modes_times_and_links(
    context: ExportContext, trees: dict[str, Path], tmp_path: Path
) -> None:
    one = trees["one"]
    (one / "ro").mkdir()
    (one / "ro" / "f").write_bytes(b"data" * 100_000)
    (one / "ro" / "f").chmod(0o755)
    os.link(one / "ro" / "f", one / "z")
    (one / "l").symlink_to("/etc/passwd")
    os.mkfifo(one / "p", 0o640)
    os.setxattr(one / "ro" / "f", "user.note", b"kept")
    for path in (one / "ro" / "f", one / "l", one / "ro"):
        os.utime(path, ns=(5, 1_500_000_000_123_456_789), follow_symlinks=False)
    (one / "ro").chmod(0o555)
    dest = tmp_path / "deep" / "out"
    local(context, dest)
    assert listing(dest) == {
        "ro": "dr-xr-xr-x",
        "ro/f": "-rwxr-xr-x",
        "z": "-rwxr-xr-x",
        "l": "lrwxrwxrwx",
        "p": "prw-r-----",
    }
    assert (dest / "z").read_bytes() == b"data" * 100_000
    assert (dest / "z").stat().st_ino == (dest / "ro/f").stat().st_ino
    assert os.readlink(dest / "l") == "/etc/passwd"
    assert os.getxattr(dest / "z", "user.note") == b"kept"
    for name in ("ro", "ro/f", "l"):
        assert (dest / name).lstat().st_mtime_ns == 1_500_000_000_123_456_789
    assert {(dest / n).lstat().st_uid for n in ("ro", "z", "l")} == {os.getuid()}
    for path in (dest / "ro", one / "ro"):
        path.chmod(0o700)  # so that the folder can be removed


def test_an_epoch_is_the_time_of_everything(
    context: ExportContext, trees: dict[str, Path], tmp_path: Path
) -> None:
    (trees["one"] / "d").mkdir()
    (trees["one"] / "d" / "f").touch()
    local(context, tmp_path / "out", source_date_epoch="1000")
    assert [int((tmp_path / "out" / n).stat().st_mtime) for n in ("d", "d/f")] == [1000, 1000]


def test_several_platforms_get_folders(
    context: ExportContext, trees: dict[str, Path], tmp_path: Path
) -> None:
    (trees["one"] / "f").write_text("amd64")
    (trees["two"] / "f").write_text("arm")
    local(context, tmp_path / "out", (ONE, TWO))
    assert sorted(os.listdir(tmp_path / "out")) == ["linux_amd64", "linux_arm_v7"]
    assert (tmp_path / "out/linux_arm_v7/f").read_text() == "arm"
    local(context, tmp_path / "single", (ONE,), platform_split="true")
    assert os.listdir(tmp_path / "single") == ["linux_amd64"]


def test_platforms_that_share_a_file_cannot_share_a_folder(
    context: ExportContext, trees: dict[str, Path], tmp_path: Path
) -> None:
    for name, tree in trees.items():
        (tree / "bin").mkdir()
        (tree / "bin" / name).touch()
    local(context, tmp_path / "out", (ONE, TWO), platform_split="false")
    assert sorted(os.listdir(tmp_path / "out/bin")) == ["one", "two"]
    for tree in trees.values():
        (tree / "bin/same").touch()
    with pytest.raises(ExportError, match="cannot overwrite bin/same from linux/amd64 with linux/arm/v7"):
        local(context, tmp_path / "none", (ONE, TWO), platform_split="false")
    assert not (tmp_path / "none").exists()


def test_copying_merges_and_deleting_mirrors(
    context: ExportContext, trees: dict[str, Path], tmp_path: Path
) -> None:
    dest = tmp_path / "out"
    for name in ("keep/old", "d/old", "f/was/dir"):
        (dest / name).parent.mkdir(parents=True, exist_ok=True)
        (dest / name).touch()
    (dest / "d2").write_text("was a file")
    one = trees["one"]
    (one / "d").mkdir()
    (one / "d" / "new").touch()
    (one / "d2").mkdir()
    (one / "f").write_text("now a file")
    local(context, dest)
    assert {"keep/old", "d/old", "d/new", "d2", "f"} <= set(listing(dest))
    assert (dest / "f").read_text() == "now a file"
    local(context, dest, mode="delete")
    assert sorted(listing(dest)) == ["d", "d/new", "d2", "f"]


def test_links_in_the_destination_are_replaced_not_followed(
    context: ExportContext, trees: dict[str, Path], tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "passwd").write_text("precious")
    dest = tmp_path / "out"
    dest.mkdir()
    (dest / "etc").symlink_to(outside)
    (dest / "f").symlink_to(outside / "passwd")
    one = trees["one"]
    (one / "etc").mkdir()
    (one / "etc" / "passwd").write_text("image")
    (one / "f").write_text("image")
    local(context, dest)
    assert (outside / "passwd").read_text() == "precious"
    assert os.listdir(outside) == ["passwd"]
    assert (dest / "etc/passwd").read_text() == "image"
    (dest / "gone").symlink_to(outside)
    local(context, dest, mode="delete")
    assert os.listdir(outside) == ["passwd"]
    assert not (dest / "gone").is_symlink()


def test_exporting_again_over_hard_links_leaves_no_temporary_file(
    context: ExportContext, trees: dict[str, Path], tmp_path: Path
) -> None:
    (trees["one"] / "a").write_text("x")
    os.link(trees["one"] / "a", trees["one"] / "b")
    for _ in range(3):
        local(context, tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["a", "b"]
    assert (tmp_path / "out/a").stat().st_nlink == 2


def test_whiteouts_and_sockets(
    context: ExportContext,
    trees: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    events: Any,
) -> None:
    import socket

    os.mknod(trees["one"] / "gone", stat.S_IFCHR, 0)
    monkeypatch.chdir(trees["one"])
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("sock")
    local(context, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []
    logs = b"".join(e.data for e in events.events if isinstance(e, VertexLog))
    assert logs == b"warning: sock is a device or socket; left out\n"


def test_cancellation_stops_copying(context: ExportContext, trees: dict[str, Path], tmp_path: Path) -> None:
    (trees["one"] / "f").touch()
    token = CancelToken()
    own = context.with_cancel(token)
    token.cancel()
    with pytest.raises(Cancelled):
        local(own, tmp_path / "out")


def test_destinations_that_cannot_be_are_refused_early(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="destination directory is a file"):
        check_exporters([ExporterSpec("local", {"dest": str(tmp_path / "file")})], multi_platform=False)


@pytest.mark.needs("root")
def test_the_root_is_never_mirrored_into() -> None:
    with pytest.raises(ExportError, match="refusing to mirror into /"):
        check_exporters([ExporterSpec("local", {"dest": "/", "mode": "delete"})], multi_platform=False)


def test_a_tarball_of_files(context: ExportContext, trees: dict[str, Path], tmp_path: Path) -> None:
    (trees["one"] / "f").write_text("one")
    (trees["two"] / "f").write_text("two")
    export([ONE], [ExporterSpec("tar", {"dest": str(tmp_path / "one.tar")})], context=context)
    out = io.BytesIO()
    spec = ExporterSpec("tar", {"source-date-epoch": "7"}, out)
    export([ONE, TWO], [spec], context=context)
    with tarfile.open(tmp_path / "one.tar") as archive:
        assert archive.getnames() == ["f"]
    out.seek(0)
    with tarfile.open(fileobj=out) as archive:
        names = ["linux_amd64", "linux_amd64/f", "linux_arm_v7", "linux_arm_v7/f"]
        assert archive.getnames() == names
        assert {m.mtime for m in archive} == {7}
        assert archive.extractfile("linux_arm_v7/f").read() == b"two"  # type: ignore[union-attr]
    spec = ExporterSpec("tar", {"platform-split": "false"}, io.BytesIO())
    with pytest.raises(UsageError, match="needs platform-split=true"):
        export([ONE, TWO], [spec], context=context)
