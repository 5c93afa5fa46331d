from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import tarfile
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crossdock.cancel import CancelToken
from crossdock.errors import Cancelled, LayerError, StoreError
from crossdock.layers import (
    Compression,
    UnpackOptions,
    extract_archive,
    is_archive,
    unpack_layer,
    write_layer,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[..., bytes]
    Unpack = Callable[..., tuple[Path, Any]]

DIR, SYM, LNK = {"type": tarfile.DIRTYPE, "mode": 0o755}, tarfile.SYMTYPE, tarfile.LNKTYPE
MTIME = 1_600_000_000


def sym(target: str) -> dict[str, Any]:
    return {"type": SYM, "linkname": target}


def lnk(target: str) -> dict[str, Any]:
    return {"type": LNK, "linkname": target}


def file(data: bytes = b"x", **fields: Any) -> dict[str, Any]:
    return {"data": data, **fields}


def is_whiteout(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(path: Path) -> bool:
    try:
        return os.getxattr(path, "user.overlay.opaque") == b"y"
    except OSError:
        return False


def tree(root: Path) -> dict[str, str]:
    found = {}
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = os.path.join(folder, name)
            mode = os.lstat(path).st_mode
            found[os.path.relpath(path, root)] = stat.filemode(mode)[0]
    return found


def test_every_sort_of_entry(make_tar: Make, unpack: Unpack) -> None:
    data = make_tar(
        [
            ("usr/", {**DIR, "mode": 0o2750}),
            ("usr/bin/", {**DIR}),
            ("usr/bin/tool", file(b"#!/bin/sh\n", mode=0o4755)),
            ("usr/bin/alias", lnk("usr/bin/tool")),
            ("bin", sym("usr/bin")),
            ("pipe", {"type": tarfile.FIFOTYPE, "mode": 0o600}),
            ("empty", file(b"", mode=0o000)),
        ]
    )
    out, result = unpack(gzip.compress(data))
    assert result.diff_id == "sha256:" + hashlib.sha256(data).hexdigest()
    assert (result.size, result.entries, result.skipped, result.implied) == (len(data), 7, (), ())
    assert tree(out) == {
        "usr": "d",
        "usr/bin": "d",
        "usr/bin/tool": "-",
        "usr/bin/alias": "-",
        "bin": "l",
        "pipe": "p",
        "empty": "-",
    }
    assert (out / "usr").stat().st_mode & 0o7777 == 0o2750
    assert (out / "usr/bin/tool").stat().st_mode & 0o7777 == 0o4755
    assert (out / "usr/bin/tool").stat().st_ino == (out / "usr/bin/alias").stat().st_ino
    assert (out / "usr/bin/tool").read_bytes() == b"#!/bin/sh\n"
    assert os.readlink(out / "bin") == "usr/bin"
    assert {int(path.lstat().st_mtime) for path in (out, out / "usr", out / "bin", out / "pipe")} >= {MTIME}
    assert int((out / "usr").stat().st_mtime) == MTIME
    assert int((out / "bin").lstat().st_mtime) == MTIME


@pytest.mark.needs("root")
def test_owners_come_before_set_id_bits_and_capabilities(make_tar: Make, unpack: Unpack) -> None:
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    data = make_tar(
        [
            ("su", file(uid=1000, gid=2000, mode=0o6755)),
            (
                "ping",
                file(
                    uid=1000,
                    pax_headers={"SCHILY.xattr.security.capability": capability.decode("latin-1")},
                ),
            ),
        ],
        format=tarfile.PAX_FORMAT,
    )
    out, _ = unpack(data)
    status = (out / "su").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (1000, 2000, 0o6755)
    assert os.getxattr(out / "ping", "security.capability") == capability


def test_overlay_attributes_of_an_archive_are_never_set(make_tar: Make, unpack: Unpack) -> None:
    headers = {
        "SCHILY.xattr.user.overlay.redirect": "/etc",
        "SCHILY.xattr.trusted.overlay.opaque": "y",
        "SCHILY.xattr.security.selinux": "label",
        "SCHILY.xattr.user.kept": "yes",
    }
    out, _ = unpack(make_tar([("d/", {**DIR, "pax_headers": headers})], format=tarfile.PAX_FORMAT))
    assert {n for n in os.listxattr(out / "d") if n != "security.selinux"} == {"user.kept"}


def test_attributes_that_cannot_be_set_are_reported(make_tar: Make, unpack: Unpack) -> None:
    headers = {"SCHILY.xattr.nonsense": "x"}
    _, result = unpack(make_tar([("f", file(pax_headers=headers))], format=tarfile.PAX_FORMAT))
    assert len(result.skipped) == 1
    assert result.skipped[0].startswith("f: attribute nonsense cannot be set")


def test_device_nodes_are_left_out_and_reported(make_tar: Make, unpack: Unpack) -> None:
    out, result = unpack(
        make_tar(
            [
                ("dev/null", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}),
                ("dev/hidden", {"type": tarfile.CHRTYPE}),
                ("dev/sda", {"type": tarfile.BLKTYPE, "devmajor": 8}),
            ]
        )
    )
    assert tree(out) == {"dev": "d"}
    assert [note.partition(":")[0] for note in result.skipped] == ["dev/null", "dev/hidden", "dev/sda"]


def test_directories_that_are_missing_are_made_and_reported(make_tar: Make, unpack: Unpack) -> None:
    before = os.umask(0o077)
    try:
        out, result = unpack(make_tar([("a/b/c", file()), ("a/", {**DIR, "mode": 0o700})]))
    finally:
        os.umask(before)
    assert result.implied == ("a/b",)
    assert (out / "a/b").stat().st_mode & 0o7777 == 0o755
    assert (out / "a").stat().st_mode & 0o7777 == 0o700


def test_the_root_entry_sets_the_directory_itself(make_tar: Make, unpack: Unpack) -> None:
    out, _ = unpack(make_tar([("./", {**DIR, "mode": 0o711}), ("./f", file())]))
    assert out.stat().st_mode & 0o7777 == 0o711
    assert int(out.stat().st_mtime) == MTIME


# whiteouts


def test_whiteouts_become_devices_and_opaque_marks_attributes(make_tar: Make, unpack: Unpack) -> None:
    out, _ = unpack(
        make_tar(
            [
                ("etc/", {**DIR}),
                ("etc/.wh.passwd", {}),
                ("var/.wh..wh..opq", {}),
                ("var/new", file()),
                (".wh.top", {}),
                (".wh..wh.plnk", {}),
            ]
        )
    )
    assert tree(out) == {"etc": "d", "etc/passwd": "c", "var": "d", "var/new": "-", "top": "c"}
    assert is_whiteout(out / "etc/passwd")
    assert is_opaque(out / "var")
    assert not is_opaque(out / "etc")


def test_an_opaque_mark_at_the_top(make_tar: Make, unpack: Unpack) -> None:
    out, _ = unpack(make_tar([(".wh..wh..opq", {})]))
    assert is_opaque(out)


@pytest.mark.parametrize("mark_first", [True, False])
def test_what_is_deleted_and_made_anew_in_one_layer(make_tar: Make, unpack: Unpack, mark_first: bool) -> None:
    marks: list[tuple[str, dict[str, Any]]] = [(".wh.d", {}), (".wh.f", {}), (".wh.deep", {})]
    entries = [("d/", {**DIR}), ("f", file()), ("deep/er/file", file())]
    out, _ = unpack(make_tar(marks + entries if mark_first else entries + marks))
    assert tree(out) == {"d": "d", "f": "-", "deep": "d", "deep/er": "d", "deep/er/file": "-"}
    assert is_opaque(out / "d")
    assert is_opaque(out / "deep")


def test_whiteouts_can_be_carried_out_on_what_is_there(
    make_tar: Make, unpack: Unpack, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for name in ("keep", "gone", "dir/old", "dir/sub/old", "opaque/old", "opaque/dir/old"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("lower")
    unpack(
        make_tar(
            [
                (".wh.gone", {}),
                ("dir/.wh.sub", {}),
                ("opaque/new", file()),
                ("opaque/deep/new", file()),
                ("opaque/.wh..wh..opq", {}),
                ("dir/.wh.never", {}),
            ]
        ),
        whiteouts="apply",
    )
    assert tree(out) == {
        "keep": "-",
        "dir": "d",
        "dir/old": "-",
        "opaque": "d",
        "opaque/new": "-",
        "opaque/deep": "d",
        "opaque/deep/new": "-",
    }


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "a/.wh..."])
def test_whiteouts_of_nothing_or_of_the_parent_are_refused(make_tar: Make, unpack: Unpack, name: str) -> None:
    with pytest.raises(LayerError, match="hostile"):
        unpack(make_tar([(name, {})]))


def test_a_hard_link_to_a_whiteout_is_refused(make_tar: Make, unpack: Unpack) -> None:
    with pytest.raises(LayerError, match="no file of this archive"):
        unpack(make_tar([(".wh.w", {}), ("x", lnk("w"))]))


# hostile archives

HOSTILE: dict[str, tuple[list[tuple[str, dict[str, Any]]], str]] = {
    "dot-dot": ([("../escaped", file())], "leads out"),
    "dot-dot inside": ([("a/../../escaped", file())], "leads out"),
    "absolute and dot-dot": ([("/../escaped", file())], "leads out"),
    "only dot-dot": ([("..", {**DIR})], "leads out"),
    "hard link by dot-dot": ([("x", lnk("../secret"))], "leads out"),
    "hard link to an absolute name": ([("x", lnk("/etc/passwd"))], "which is no file of this archive"),
    "hard link through a link": ([("l", sym("..")), ("x", lnk("l/secret"))], "no file of this archive"),
    "hard link through an absolute link": ([("l", sym("/etc")), ("x", lnk("l/passwd"))], "no file of this"),
    "hard link to a directory": ([("d/", {**DIR}), ("x", lnk("d"))], "no file of this archive"),
    "hard link to itself": ([("x", lnk("x"))], "no file of this archive"),
    "hard link to the root": ([("x", lnk("."))], "no file of this archive"),
    "a file as the root": ([("./", file())], "would replace the directory itself"),
    "a link as the root": ([("/", sym("/etc"))], "would replace the directory itself"),
    "a file used as a directory": ([("f", file()), ("f/x", file())], "used as a directory"),
    "links in a circle": ([("a", sym("b")), ("b", sym("a")), ("a/x", file())], "too many symbolic links"),
    "a component too long": ([("n" * 300, file())], "File name too long"),
    "a path too long": ([("d/" * 2500 + "x", file())], "hostile"),
    "an owner out of range": ([("f", file(uid=2**32 - 1))], "belongs to"),
}


@pytest.mark.parametrize(("entries", "message"), HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("whiteouts", ["overlay", "plain"])
def test_hostile_archives_are_refused_and_touch_nothing_outside(
    make_tar: Make, unpack: Unpack, tmp_path: Path, entries: Any, message: str, whiteouts: str
) -> None:
    (tmp_path / "secret").write_text("secret")
    entries = [(name, dict(fields)) for name, fields in entries]
    with pytest.raises(LayerError, match=message):
        unpack(make_tar(entries, format=tarfile.PAX_FORMAT), whiteouts=whiteouts)
    assert sorted(os.listdir(tmp_path)) == ["out", "secret"]
    assert (tmp_path / "secret").stat().st_nlink == 1


CONFINED: dict[str, tuple[list[tuple[str, dict[str, Any]]], str]] = {
    "absolute name": ([("/etc/motd", file())], "etc/motd"),
    "dots and slashes": ([(".//etc/./x/../motd", file())], "etc/motd"),
    "through an absolute link": ([("l", sym("/usr/lib")), ("l/f", file())], "usr/lib/f"),
    "through a relative link": ([("a/l", sym("../b")), ("a/l/f", file())], "b/f"),
    "through a link that leads above the root": ([("a/l", sym("../../../../x")), ("a/l/f", file())], "x/f"),
    "through a link to the root": ([("l", sym("/")), ("l/f", file())], "f"),
    "through a chain of links": ([("a", sym("b")), ("b", sym("c/d")), ("a/f", file())], "c/d/f"),
    "a directory replaced by a link": (
        [("d/", {**DIR}), ("d/x", file()), ("d", sym("/e")), ("d/f", file())],
        "e/f",
    ),
    "a link replaced by a directory": ([("d", sym("/e")), ("d/", {**DIR}), ("d/f", file())], "d/f"),
    "a link replaced by a file": ([("f", sym("/e/g")), ("f", file())], "f"),
    "a directory replaced by a file": ([("d/", {**DIR}), ("d/x/", {**DIR}), ("d", file())], "d"),
}


@pytest.mark.parametrize(("entries", "expected"), CONFINED.values(), ids=CONFINED.keys())
@pytest.mark.parametrize("whiteouts", ["overlay", "plain"])
def test_links_and_odd_names_stay_inside(
    make_tar: Make, unpack: Unpack, tmp_path: Path, entries: Any, expected: str, whiteouts: str
) -> None:
    entries = [(name, dict(fields)) for name, fields in entries]
    out, _ = unpack(make_tar(entries), whiteouts=whiteouts)
    assert stat.S_ISREG((out / expected).lstat().st_mode)
    assert os.path.realpath(out / expected) == os.fspath(out / expected)
    assert os.listdir(tmp_path) == ["out"]


def test_a_link_itself_may_point_anywhere(make_tar: Make, unpack: Unpack) -> None:
    out, _ = unpack(make_tar([("l", sym("../../../etc/passwd"))]))
    assert os.readlink(out / "l") == "../../../etc/passwd"


def test_more_directories_than_handles_are_kept(make_tar: Make, unpack: Unpack) -> None:
    entries = [(f"d{n % 200}/e{n}/f", file(b"%d" % n)) for n in range(600)]
    out, result = unpack(make_tar(entries))
    assert all((out / name).read_bytes() == b"%d" % n for n, (name, _) in enumerate(entries))
    assert len(result.implied) == 800


def test_archives_that_are_cut_short_or_corrupt_are_refused(make_tar: Make, unpack: Unpack) -> None:
    data = make_tar([("f", file(os.urandom(3_000_000)))])
    for bad in (data[:2_000_000], gzip.compress(data)[:-500], gzip.compress(data) + b"garbage"):
        with pytest.raises(LayerError):
            unpack(bad)


def test_a_digest_covers_what_follows_the_end_mark(make_tar: Make, unpack: Unpack) -> None:
    data = make_tar([("f", file())]) + bytes(20_000) + b"anything"
    _, result = unpack(data)
    assert result.diff_id == "sha256:" + hashlib.sha256(data).hexdigest()
    assert result.size == len(data)


def test_cancellation_stops_unpacking(make_tar: Make, tmp_path: Path) -> None:
    token = CancelToken()
    data = make_tar([(f"f{n}", file()) for n in range(500)])
    options = UnpackOptions(ignore_chown_errors=True)
    with pytest.raises(Cancelled):
        unpack_layer(
            io.BytesIO(data),
            tmp_path / "out",
            options=options,
            cancel=token,
            progress=lambda _: token.cancel(),
        )


@pytest.mark.needs("user")
def test_an_owner_that_cannot_be_given_is_an_error_unless_ignored(make_tar: Make, unpack: Unpack) -> None:
    data = make_tar([("f", file(uid=12345))])
    with pytest.raises(StoreError, match="owner 12345:0 does not exist"):
        unpack(data, ignore_chown_errors=False)
    out, _ = unpack(data, ignore_chown_errors=True)
    assert (out / "f").stat().st_uid == os.getuid()


# ADD of archives


def add(data: bytes, dest: Path, **options: Any) -> Any:
    options.setdefault("ignore_chown_errors", os.geteuid() != 0)
    return extract_archive(io.BytesIO(data), dest, cancel=CancelToken(), **options)


def test_adding_merges_directories_and_replaces_everything_else(make_tar: Make, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "kept").touch()
    (tmp_path / "dir" / "old").write_text("old")
    (tmp_path / "full" / "of").mkdir(parents=True)
    (tmp_path / "link").symlink_to("dir")
    add(
        make_tar(
            [
                ("dir/", {**DIR, "mode": 0o700}),
                ("dir/old", file(b"new")),
                ("dir/.wh.kept", file(b"just a name")),
                ("full", file(b"file now")),
                ("link", file(b"no link")),
            ]
        ),
        tmp_path,
    )
    assert tree(tmp_path) == {
        "dir": "d",
        "dir/kept": "-",
        "dir/old": "-",
        "dir/.wh.kept": "-",
        "full": "-",
        "link": "-",
    }
    assert (tmp_path / "dir/old").read_text() == "new"
    assert (tmp_path / "dir").stat().st_mode & 0o7777 == 0o700


def test_adding_through_a_link_of_the_image_stays_in_the_image(make_tar: Make, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "usr/lib").mkdir(parents=True)
    (root / "lib").symlink_to("/usr/lib")
    handle = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        add(make_tar([("lib/x", file())]), type(root)(f"/proc/self/fd/{handle}"))
    finally:
        os.close(handle)
    assert (root / "usr/lib/x").is_file()


def test_a_hard_link_onto_itself_keeps_the_file(make_tar: Make, tmp_path: Path) -> None:
    add(make_tar([("a", file(b"data")), ("b", lnk("a")), ("b", lnk("a"))]), tmp_path)
    assert (tmp_path / "b").read_bytes() == b"data"


@pytest.mark.needs("root")
def test_adding_with_an_owner_and_mode(make_tar: Make, tmp_path: Path) -> None:
    data = make_tar([("d/", {**DIR}), ("d/f", file(uid=5, mode=0o600)), ("d/l", sym("f"))])
    add(data, tmp_path, owner=(1001, 1002), mode=0o750)
    for name in ("d", "d/f", "d/l"):
        status = (tmp_path / name).lstat()
        assert (status.st_uid, status.st_gid) == (1001, 1002)
    assert (tmp_path / "d/f").stat().st_mode & 0o7777 == 0o750


def test_archives_are_recognised_by_content(make_tar: Make) -> None:
    data = make_tar([("f", file())])
    for good in (data, gzip.compress(data), data[:512]):
        assert is_archive(io.BytesIO(good))
    for bad in (
        b"",
        b"#!/bin/sh\n",
        gzip.compress(b"text"),
        gzip.compress(data)[:20],
        bytes(2048),
        b"x" * 5000,
    ):
        assert not is_archive(io.BytesIO(bad))


# anything at all

words = st.sampled_from(["a", "b", "c", "..", ".", "", ".wh.a", ".wh..wh..opq", "secret"])
paths = st.lists(words, min_size=1, max_size=4).map("/".join)
kinds = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, SYM, LNK, tarfile.FIFOTYPE, tarfile.CHRTYPE])


@given(
    st.lists(st.tuples(paths, kinds, st.one_of(paths, paths.map(lambda p: "/" + p))), max_size=10),
    st.sampled_from(["overlay", "apply", "plain"]),
)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_sequence_of_entries_leaves_the_directory(
    tmp_path_factory: pytest.TempPathFactory, make_tar: Make, entries: Any, whiteouts: str
) -> None:
    base = tmp_path_factory.mktemp("any")
    (base / "secret").write_text("secret")
    (base / "a").mkdir()
    before = {path: os.lstat(base / path) for path in ("secret", "a")}
    out = base / "out"
    if whiteouts != "overlay":  # those two meet what is there already
        (out / "b").mkdir(parents=True)
        (out / "c").symlink_to("../a")
        (out / "b" / "a").symlink_to(base)
    data = make_tar([(name, {"type": kind, "linkname": target}) for name, kind, target in entries])
    options = UnpackOptions(whiteouts=whiteouts, ignore_chown_errors=os.geteuid() != 0)
    try:
        unpack_layer(io.BytesIO(data), out, options=options, cancel=CancelToken())
    except LayerError as exc:
        assert exc.summary  # noqa: PT017  refusing is as good as unpacking
    except StoreError:
        # Outside a user namespace an ordinary user is kept out of directories that an archive closed.
        if os.geteuid() == 0:
            raise
    assert sorted(os.listdir(base)) == ["a", "out", "secret"]
    assert os.listdir(base / "a") == []
    assert (base / "secret").read_text() == "secret"
    for path, old in before.items():
        new = os.lstat(base / path)
        kept = ("st_mode", "st_nlink", "st_uid", "st_mtime_ns", "st_ctime_ns")
        assert [getattr(new, field) for field in kept] == [getattr(old, field) for field in kept]


# round trips

component = st.text(
    st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=12
).filter(lambda s: s not in (".", "..") and not s.startswith(".wh."))
contents = st.one_of(
    st.binary(max_size=2000).map(lambda data: ("file", data)),
    component.map(lambda target: ("link", target)),
    st.just(("whiteout", b"")),
    st.just(("opaque", b"")),
)


@given(
    st.dictionaries(st.tuples(component, component), contents, max_size=12), st.sampled_from(["gzip", "zstd"])
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_written_unpacks_to_the_same_layer(
    tmp_path_factory: pytest.TempPathFactory, entries: Any, kind: str
) -> None:
    base = tmp_path_factory.mktemp("trip")
    root = base / "in"
    root.mkdir()
    for (folder, name), (what, value) in entries.items():
        (root / folder).mkdir(exist_ok=True)
        path = root / folder / name
        if what == "file":
            path.write_bytes(value)
        elif what == "link":
            path.symlink_to(value)
        elif what == "whiteout":
            os.mknod(path, stat.S_IFCHR, 0)
        else:
            path.mkdir()
            os.setxattr(path, "user.overlay.opaque", b"y")
    cancel = CancelToken()
    packed = io.BytesIO()
    first = write_layer(root, packed, compression=Compression(kind), cancel=cancel)
    options = UnpackOptions(ignore_chown_errors=os.geteuid() != 0)
    packed.seek(0)
    result = unpack_layer(packed, base / "out", options=options, cancel=cancel)
    assert result.diff_id == first.diff_id
    again = write_layer(base / "out", io.BytesIO(), compression=Compression(kind), cancel=cancel)
    assert again == first
