"""Receiving directories: what is kept, what is asked for, what is refused."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdock.buildkit.proto import stat_pb2
from crossdock.errors import ContextError
from crossdock.server.receive import ContextReceiver
from support.diffcopy import DIR, LINK, Packet, Sender, encoded, file

if TYPE_CHECKING:
    from pathlib import Path


def received(
    folder: Path, entries: list[stat_pb2.Stat], contents: dict[str, bytes], **options: Any
) -> list[str]:
    """Receive once; returns what was asked for."""
    root = folder / "root"
    root.mkdir(exist_ok=True)
    # Nobody but root can give files away.
    options.setdefault("owners", False)
    sender = Sender(entries, contents)
    sender.run(ContextReceiver(root, **options))
    return sender.asked


def test_a_tree_arrives_with_modes_times_and_links(tmp_path: Path) -> None:
    entries = [
        stat_pb2.Stat(path="a", mode=DIR, modTime=5_000_000_000),
        file("a/run", b"#!", mode=0o755),
        stat_pb2.Stat(path="a/same", mode=0o755, linkname="a/run", size=2),
        stat_pb2.Stat(path="link", mode=LINK, linkname="a/run", modTime=7),
    ]
    assert received(tmp_path, entries, {"a/run": b"#!"}) == ["a/run"]
    root = tmp_path / "root"
    assert (root / "a/run").read_bytes() == b"#!"
    assert stat.S_IMODE((root / "a/run").stat().st_mode) == 0o755
    assert (root / "a/run").stat().st_mtime_ns == 1_000_000_007
    assert (root / "a").stat().st_mtime_ns == 5_000_000_000
    assert (root / "a/same").stat().st_ino == (root / "a/run").stat().st_ino
    assert (root / "link").readlink().as_posix() == "a/run"


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ({}, []),
        ({"mtime": 9}, ["f"]),
        ({"content": b"other"}, ["f"]),
        ({"mode": 0o600}, ["f"]),
    ],
)
def test_only_what_changed_is_asked_for(tmp_path: Path, change: dict[str, Any], asked: list[str]) -> None:
    received(tmp_path, [file("f", b"text"), file("g", b"g")], {"f": b"text", "g": b"g"})
    content = change.pop("content", b"text")
    assert received(tmp_path, [file("f", content, **change), file("g", b"g")], {"f": content}) == asked
    assert (tmp_path / "root/f").read_bytes() == content


def test_without_comparison_everything_is_asked_for(tmp_path: Path) -> None:
    entries = [file("f", b"x")]
    for _ in range(2):
        assert received(tmp_path, entries, {"f": b"x"}, compare=False) == ["f"]


def test_what_is_not_sent_goes_and_kinds_may_change(tmp_path: Path) -> None:
    first = [stat_pb2.Stat(path="a", mode=DIR), file("a/x", b"x"), file("b", b"b"), file("gone", b"g")]
    received(tmp_path, first, {"a/x": b"x", "b": b"b", "gone": b"g"})
    second = [file("a", b"now a file"), stat_pb2.Stat(path="b", mode=DIR), file("b/y", b"y")]
    received(tmp_path, second, {"a": b"now a file", "b/y": b"y"})
    assert sorted(os.listdir(tmp_path / "root")) == ["a", "b"]
    assert (tmp_path / "root/b/y").read_bytes() == b"y"


def test_a_link_that_was_a_directory_leads_nowhere(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_text("precious")
    received(tmp_path, [stat_pb2.Stat(path="a", mode=LINK, linkname=str(outside))], {})
    # The same name becomes a directory: what is written below must not follow the old link.
    received(tmp_path, [stat_pb2.Stat(path="a", mode=DIR), file("a/f", b"mine")], {"a/f": b"mine"})
    assert (outside / "f").read_text() == "precious"
    assert (tmp_path / "root/a/f").read_bytes() == b"mine"


def test_only_wanted_bytes_come_in_a_transfer_of_metadata(tmp_path: Path) -> None:
    entries = [file("a", b"aa"), file("b", b"bb")]
    assert received(tmp_path, entries, {"a": b"aa", "b": b"bb"}, wants_data="a".__eq__) == ["a"]


@pytest.mark.parametrize("path", ["..", "../x", "/x", "a/../b", "a//b", ".", "", "a/.", "\0", "a\0b"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(ContextError, match="not one below"):
        received(tmp_path, [stat_pb2.Stat(path="a", mode=DIR), file(path, b"")][path[:1] != "a" :], {})


def test_a_sender_that_stops_leaves_no_half_file(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    receiver = ContextReceiver(tmp_path / "root")
    batches = [
        [encoded(Packet(type=Packet.PACKET_STAT, stat=file("f", b"12345")))],
        [encoded(Packet(type=Packet.PACKET_DATA, ID=0, data=b"123"))],
    ]
    with pytest.raises(ContextError, match="ended before"):
        list(receiver.run(iter(batches)))
    assert not os.listdir(tmp_path / "root")


def test_a_file_cut_short_by_a_crash_is_asked_for_again(tmp_path: Path) -> None:
    received(tmp_path, [file("f", b"12345")], {"f": b"12345"})
    # What the kernel leaves of a receiver that was killed in the middle: right size or not, it has its own time.
    (tmp_path / "root/f").write_bytes(b"123xx")
    assert received(tmp_path, [file("f", b"12345")], {"f": b"12345"}) == ["f"]
    assert (tmp_path / "root/f").read_bytes() == b"12345"


def test_another_name_of_a_file_keeps_its_content(tmp_path: Path) -> None:
    entries = [file("a", b"old"), stat_pb2.Stat(path="b", mode=0o644, linkname="a", size=3)]
    received(tmp_path, entries, {"a": b"old"})
    os.link(tmp_path / "root/a", tmp_path / "kept")
    received(tmp_path, [file("a", b"new")], {"a": b"new"})
    assert (tmp_path / "kept").read_bytes() == b"old"


NAMES = st.lists(
    st.text("ab.", min_size=1, max_size=3).filter(lambda n: n.strip(".")), min_size=1, max_size=3
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(NAMES.map("/".join), st.binary(max_size=8), max_size=6))
def test_any_tree_arrives_as_it_is(tmp_path_factory: pytest.TempPathFactory, tree: dict[str, bytes]) -> None:
    folder = tmp_path_factory.mktemp("tree")
    files: dict[str, bytes] = {}
    for path, content in tree.items():
        parents = {"/".join(path.split("/")[:n]) for n in range(1, path.count("/") + 1)}
        if not parents & files.keys() and not any(f == path or f.startswith(path + "/") for f in files):
            files[path] = content
    directories = {"/".join(p.split("/")[:n]) for p in files for n in range(1, p.count("/") + 1)}
    entries = sorted(
        [stat_pb2.Stat(path=d, mode=DIR) for d in directories] + [file(p, c) for p, c in files.items()],
        key=lambda e: e.path.split("/"),
    )
    received(folder, entries, files)
    found = {p.relative_to(folder / "root").as_posix() for p in (folder / "root").rglob("*") if p.is_file()}
    assert found == set(files)
    assert received(folder, entries, files) == []


@pytest.mark.needs("root")
def test_owners_are_kept_and_one_that_changed_is_asked_for_again(tmp_path: Path) -> None:
    def entries(uid: int) -> list[stat_pb2.Stat]:
        listed = [
            stat_pb2.Stat(path="d", mode=DIR),
            file("d/f", b"x"),
            stat_pb2.Stat(path="l", mode=LINK, linkname="d"),
        ]
        for entry in listed:
            entry.uid, entry.gid = uid, uid + 1
        return listed

    assert received(tmp_path, entries(1234), {"d/f": b"x"}, owners=True) == ["d/f"]
    assert received(tmp_path, entries(1234), {"d/f": b"x"}, owners=True) == []
    owners = {os.lstat(tmp_path / "root" / name)[4:6] for name in ("d", "d/f", "l")}
    assert owners == {(1234, 1235)}
    assert received(tmp_path, entries(77), {"d/f": b"x"}, owners=True) == ["d/f"]
    assert {os.lstat(tmp_path / "root" / name)[4:6] for name in ("d", "d/f", "l")} == {(77, 78)}
