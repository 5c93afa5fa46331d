from __future__ import annotations

import errno
import hashlib
import io
import os
import socket
import stat
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest
import zstandard

from crossdock.cancel import CancelToken
from crossdock.errors import Cancelled, LayerError, StoreFull
from crossdock.layers import Compression, decompressor, write_layer, write_tree
from crossdock.layers.walk import capability_v2

if TYPE_CHECKING:
    from pathlib import Path

PLAIN = Compression("uncompressed")
SECOND = 1_000_000_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "layer"
    folder.mkdir()
    return folder


def write(root: Path, *, clamp_s: int | None = None, compression: Compression = PLAIN) -> bytes:
    out = io.BytesIO()
    clamp_ns = None if clamp_s is None else clamp_s * SECOND
    result = write_layer(root, out, compression=compression, clamp_ns=clamp_ns, cancel=CancelToken())
    data = out.getvalue()
    assert result.size == len(data)
    assert result.digest == "sha256:" + hashlib.sha256(data).hexdigest()
    return data


def members(data: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.getmembers()


def names(data: bytes) -> list[str]:
    return [m.name + ("/" if m.isdir() else "") for m in members(data)]


def whiteout(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))


def test_an_empty_layer_is_two_zero_blocks(root: Path) -> None:
    assert write(root) == bytes(1024)


def test_names_are_sorted_bytewise_in_each_directory_and_the_root_is_left_out(root: Path) -> None:
    for name in ("b", "a.txt", "a", "Z", "é"):
        (root / name).mkdir()
        (root / name / "x").touch()
    (root / os.fsdecode(b"\xff")).touch()
    expected = ["Z/", "Z/x", "a/", "a/x", "a.txt/", "a.txt/x", "b/", "b/x", "é/", "é/x", os.fsdecode(b"\xff")]
    assert names(write(root)) == expected


def test_a_file_keeps_content_mode_owner_and_whole_seconds(root: Path) -> None:
    (root / "f").write_bytes(b"hello")
    (root / "f").chmod(0o4711)
    os.utime(root / "f", ns=(0, 1_700_000_000_999_999_999))
    data = write(root)
    (entry,) = members(data)
    assert (entry.mode, entry.size, entry.mtime) == (0o4711, 5, 1_700_000_000)
    assert (entry.uid, entry.gid, entry.uname, entry.gname) == (os.getuid(), os.getgid(), "", "")
    assert data[512:517] == b"hello"
    assert entry.pax_headers == {}


def test_times_before_1970_round_down(root: Path) -> None:
    (root / "f").touch()
    os.utime(root / "f", ns=(0, -1_500_000_000))
    assert members(write(root))[0].mtime == -2


def test_later_times_are_clamped_and_earlier_ones_kept(root: Path) -> None:
    for name, mtime in (("early", 1000), ("late", 9000)):
        (root / name).touch()
        os.utime(root / name, (mtime, mtime))
    assert [m.mtime for m in members(write(root, clamp_s=5000))] == [1000, 5000]


def test_a_second_name_of_a_file_is_a_hard_link_to_the_first(root: Path) -> None:
    (root / "z").write_bytes(b"data")
    (root / "dir").mkdir()
    os.link(root / "z", root / "dir" / "a")
    first, second = [m for m in members(write(root)) if not m.isdir()]
    assert (first.name, first.size, first.type) == ("dir/a", 4, tarfile.REGTYPE)
    assert (second.name, second.linkname, second.type, second.size) == ("z", "dir/a", tarfile.LNKTYPE, 0)


def test_links_and_pipes(root: Path) -> None:
    (root / "link").symlink_to("../there/" + "x" * 200)
    os.mkfifo(root / "pipe", 0o640)
    link, pipe = members(write(root))
    assert (link.type, link.linkname, link.mode) == (tarfile.SYMTYPE, "../there/" + "x" * 200, 0o777)
    assert pipe.type == tarfile.FIFOTYPE


@pytest.mark.needs("root")
def test_devices_keep_their_numbers(root: Path) -> None:
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "loop", stat.S_IFBLK | 0o660, os.makedev(7, 200))
    loop, null = members(write(root))
    assert (null.type, null.devmajor, null.devminor) == (tarfile.CHRTYPE, 1, 3)
    assert (loop.type, loop.devmajor, loop.devminor) == (tarfile.BLKTYPE, 7, 200)


def test_sockets_are_left_out_and_reported(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("sock")
        result = write_layer(root, io.BytesIO(), compression=PLAIN, cancel=CancelToken())
    assert (result.skipped, result.entries) == (("sock",), 0)


def test_a_whiteout_device_becomes_a_dated_1970_mark_in_its_place(root: Path) -> None:
    (root / "etc").mkdir()
    whiteout(root / "etc" / "passwd")
    (root / "etc" / "shadow").touch()
    data = write(root)
    assert names(data) == ["etc/", "etc/.wh.passwd", "etc/shadow"]
    mark = members(data)[1]
    assert (mark.size, mark.mode, mark.mtime, mark.uid) == (0, 0, 0, 0)


def test_a_whiteout_attribute_counts_too(root: Path) -> None:
    (root / "gone").touch()
    os.setxattr(root, "user.overlay.opaque", b"x")
    os.setxattr(root / "gone", "user.overlay.whiteout", b"y")
    assert names(write(root)) == [".wh.gone"]


def test_an_opaque_directory_gets_its_mark_first(root: Path) -> None:
    (root / "d").mkdir()
    (root / "d" / "-").touch()
    os.setxattr(root / "d", "user.overlay.opaque", b"y")
    assert names(write(root)) == ["d/", "d/.wh..wh..opq", "d/-"]


def test_an_opaque_root_gets_its_mark(root: Path) -> None:
    os.setxattr(root, "user.overlay.opaque", b"y")
    assert names(write(root)) == [".wh..wh..opq"]


def test_attributes_of_users_are_kept_and_those_of_overlayfs_dropped(root: Path) -> None:
    (root / "f").touch()
    os.setxattr(root / "f", "user.note", b"\x00\n=")
    os.setxattr(root / "f", "user.overlay.origin", b"")
    (root / "d").mkdir()
    os.setxattr(root / "d", "user.overlay.impure", b"y")
    directory, file = members(write(root))
    assert {k: v for k, v in file.pax_headers.items() if "xattr" in k} == {
        "SCHILY.xattr.user.note": "\x00\n="
    }
    assert directory.pax_headers == {}


@pytest.mark.needs("root")
def test_capabilities_are_kept(root: Path) -> None:
    (root / "ping").touch()
    value = bytes.fromhex("0100000200200000000000000000000000000000")
    os.setxattr(root / "ping", "security.capability", value)
    assert b"SCHILY.xattr.security.capability=" + value in write(root)


def test_capabilities_of_a_namespace_lose_its_root_id() -> None:
    version_3 = bytes.fromhex("0100000300200000000000000000000000000000e8030000")
    assert capability_v2(version_3) == bytes.fromhex("0100000200200000000000000000000000000000")


def test_a_file_named_like_a_whiteout_is_an_error_that_names_it(root: Path) -> None:
    (root / "d").mkdir()
    (root / "d" / ".wh.x").touch()
    with pytest.raises(LayerError, match=r"d/\.wh\.x"):
        write(root)


def test_a_redirected_directory_is_an_error(root: Path) -> None:
    (root / "d").mkdir()
    os.setxattr(root / "d", "user.overlay.redirect", b"/elsewhere")
    with pytest.raises(LayerError, match=r"d/: .*redirect"):
        write(root)


class Meddling:
    """Output that changes the layer while it is written."""

    def __init__(self, change: object) -> None:
        self._change = change

    def write(self, data: bytes) -> int:
        change, self._change = self._change, None
        if callable(change):
            change()
        return len(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), "z vanished"),
        (lambda path: (path.unlink(), path.symlink_to("/etc/passwd")), "z vanished or changed its type"),
        (lambda path: path.write_bytes(b"longer than before"), r"z changed .*1 bytes, then 18"),
        (lambda path: path.write_bytes(b""), r"z changed .*1 bytes, then 0"),
    ],
    ids=["vanishes", "becomes a link", "grows", "shrinks"],
)
def test_what_changes_during_the_walk_is_an_error_that_names_it(
    root: Path, monkeypatch: pytest.MonkeyPatch, change: object, message: str
) -> None:
    assert callable(change)
    (root / "a").write_bytes(b"x")
    (root / "z").write_bytes(b"x")
    real_open = os.open

    def opening(path: str, *args: int, dir_fd: int | None = None) -> int:
        # Between the directory's listing and the file's opening is the only window there is.
        if path == "z":
            change(root / "z")
        return real_open(path, *args, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", opening)
    with pytest.raises(LayerError, match=message):
        write(root)


def test_a_full_disk_is_an_error_of_its_own(root: Path) -> None:
    (root / "big").write_bytes(bytes(5 << 20))

    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for compression in (PLAIN, Compression("zstd")):
        with pytest.raises(StoreFull):
            write_layer(root, Full(), compression=compression, cancel=CancelToken())


def test_cancellation_stops_in_the_middle_and_ends_the_threads(root: Path) -> None:
    (root / "big").write_bytes(bytes(32 << 20))
    token = CancelToken()

    class Cancelling:
        def write(self, data: bytes) -> int:
            token.cancel()
            return len(data)

    with pytest.raises(Cancelled):
        write_layer(root, Cancelling(), compression=Compression("zstd"), cancel=token)


@pytest.mark.parametrize(
    "compression",
    [
        Compression("uncompressed"),
        Compression("gzip"),
        Compression("gzip", 0),
        Compression("gzip", 1),
        Compression("gzip", 4),
        Compression("gzip", 9),
        Compression("zstd"),
        Compression("zstd", 0),
        Compression("zstd", 12),
    ],
    ids=str,
)
def test_bytes_depend_on_neither_threads_nor_time(root: Path, compression: Compression) -> None:
    block = b"".join(hashlib.sha256(bytes([i & 255, i >> 8])).hexdigest().encode() for i in range(20000))
    for number in range(7):
        (root / f"f{number}").write_bytes(block[: 1_000_003 + number] + bytes(number))
    results = []
    for threads in (1, 2, 5, None):
        out = io.BytesIO()
        result = write_layer(root, out, compression=compression, cancel=CancelToken(), threads=threads)
        results.append((result, out.getvalue()))
    assert all(result == results[0] for result in results[1:])
    result, data = results[0]
    plain = decompressor(io.BytesIO(data)).read()
    assert result.diff_id == "sha256:" + hashlib.sha256(plain).hexdigest()
    assert result.uncompressed_size == len(plain)


@pytest.mark.parametrize(
    "size", [0, 1, 511, 512, 513, (1 << 20) - 2048, (1 << 20) - 1536, 1 << 20, (1 << 22) + 1]
)
def test_sizes_at_the_edges_of_blocks(root: Path, size: int) -> None:
    (root / "f").write_bytes(os.urandom(size))
    for kind in ("uncompressed", "gzip", "zstd"):
        plain = decompressor(io.BytesIO(write(root, compression=Compression(kind)))).read()
        with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
            content = archive.extractfile("f")
            assert content is not None
            assert content.read() == (root / "f").read_bytes()
        assert len(plain) % 512 == 0


def test_other_tools_read_the_compressed_forms(root: Path, tmp_path: Path) -> None:
    (root / "f").write_bytes(b"content" * 500_000)
    plain = write(root)
    gzipped = write(root, compression=Compression("gzip"))
    done = subprocess.run(["gzip", "-dc"], input=gzipped, capture_output=True, check=True)
    assert done.stdout == plain
    assert gzipped[:10] == b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
    frames = zstandard.ZstdDecompressor().stream_reader(
        io.BytesIO(write(root, compression=Compression("zstd"))), read_across_frames=True
    )
    assert frames.read() == plain
    archive = tmp_path / "l.tar.gz"
    archive.write_bytes(gzipped)
    listing = subprocess.run(["tar", "tzf", archive], capture_output=True, text=True, check=True)
    assert (listing.stdout, listing.stderr) == ("f\n", "")


def test_higher_levels_are_smaller(root: Path) -> None:
    (root / "f").write_bytes(
        subprocess.run(["man", "--help"], capture_output=True, check=False).stdout * 3 + b"%d" % 1
    )
    (root / "g").write_bytes(b"".join(b"%d %d;" % (i, i * i) for i in range(60_000)))
    sizes = [len(write(root, compression=Compression("gzip", level))) for level in (0, 1, 9)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > len(write(root))


def test_directories_deeper_than_python_recurses(root: Path) -> None:
    handle = os.open(root, os.O_DIRECTORY)
    try:
        for _ in range(300):
            os.mkdir("d", dir_fd=handle)
            below = os.open("d", os.O_DIRECTORY, dir_fd=handle)
            os.close(handle)
            handle = below
    finally:
        os.close(handle)
    assert names(write(root))[-1] == "d/" * 300


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LayerError, match="nowhere"):
        write(tmp_path / "nowhere")


def test_plain_trees_go_below_folders_with_one_time_and_no_whiteouts(root: Path) -> None:
    (root / "f").write_bytes(b"1")
    (root / ".wh.kept").touch()
    whiteout(root / "gone")
    out = io.BytesIO()
    write_tree(
        [("linux_amd64", root), ("linux_arm64", root)], out, fixed_ns=77 * SECOND, cancel=CancelToken()
    )
    found = members(out.getvalue())
    assert [m.name for m in found] == [
        "linux_amd64",
        "linux_amd64/.wh.kept",
        "linux_amd64/f",
        "linux_arm64",
        "linux_arm64/.wh.kept",
        "linux_arm64/f",
    ]
    assert {m.mtime for m in found} == {77}
