"""Directories received again and again, each time with what the last time left: nothing that changed may be missed."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdock.buildkit.session.tree import walk_tree
from crossdock.cancel import CancelToken
from crossdock.engine.cache.checksum import content_digest
from crossdock.engine.cache.listed import ListedTree
from crossdock.engine.cache.localview import LocalView
from crossdock.engine.cache.select import Selector, walk
from crossdock.engine.cache.view import untouched
from crossdock.errors import ContextError
from crossdock.server.lefttree import LeftTree, TreeMemory
from crossdock.server.receive import ContextReceiver
from support.changes import replace, rewrite
from support.diffcopy import Packet, Sender, encoded
from support.diffcopy import packets as split

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from crossdock.buildkit.proto import stat_pb2

Change = "Callable[[Path], object]"


class Mirror:
    """A client's directory, the server's copy of it, and what the server remembers."""

    def __init__(self, folder: Path) -> None:
        self.client, self.server = folder / "client", folder / "server"
        self.client.mkdir()
        self.server.mkdir()
        self.left: LeftTree | None = None

    def entries(self) -> list[stat_pb2.Stat]:
        found = list(walk_tree(str(self.client)))
        for record in found:
            record.uid = record.gid = 0
        return found

    def transfer(self, **options: Any) -> list[str]:
        """Send everything; returns what was asked for."""
        entries = self.entries()
        contents = {
            e.path: (self.client / e.path).read_bytes() for e in entries if (self.client / e.path).is_file()
        }
        receiver = ContextReceiver(self.server, owners=False, left=self.left, **options)
        self.left = None
        sender = Sender(entries, contents)
        sender.run(receiver)
        self.left = receiver.left
        return sender.asked

    @property
    def tree(self) -> ListedTree:
        assert self.left is not None
        return self.left.tree

    def settle(self) -> None:
        """Transfer when all is so old that a later change shows."""
        while time.time_ns() <= self.tree.old_enough_ns:
            time.sleep(0.01)
        self.transfer()
        assert self.tree.checksums is not None

    def tick(self) -> None:
        """Wait until the kernel's clock has moved on: what happens now has another time than what was."""
        while time.time_ns() <= self.tree.old_enough_ns - 70_000_000:
            time.sleep(0.002)

    def check(self) -> None:
        """The copy is what the client has, and the tree handed over is the copy."""
        assert state(self.server) == state(self.client)
        assert digest(self.server, self.tree) == digest(self.server)
        own = LocalView(self.server, None, None)
        handed = LocalView(self.server, None, None, self.tree)
        try:
            listed = dict(walk(own, own.root(), None))
            found = dict(walk(handed, handed.root(), None))
            assert list(found) == list(listed)
            for path, node in found.items():
                where = self.server / path
                assert untouched(node.st, where.lstat()), path
            assert self.tree.entries == len(found) - 1
        finally:
            own.close()
            handed.close()


def state(root: Path) -> dict[str, tuple[object, ...]]:
    """What a build can see of a directory."""
    out: dict[str, tuple[object, ...]] = {}
    for record in walk_tree(str(root)):
        is_file = not record.linkname and stat.S_ISREG(os.lstat(root / record.path).st_mode)
        content = (root / record.path).read_bytes() if is_file else b""
        out[record.path] = (record.mode, record.modTime, record.linkname, content)
    return out


def digest(root: Path, tree: ListedTree | None = None) -> str:
    view = LocalView(root, None, None, tree)
    try:
        return content_digest(view, (Selector(),), CancelToken())
    finally:
        view.close()


@pytest.fixture
def mirror(tmp_path: Path) -> Mirror:
    """A tree with something of everything."""
    made = Mirror(tmp_path)
    for name in ("a", "b/c/deep", "b/other", "b.c", "empty/kept", "z"):
        path = made.client / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name * 3)
    (made.client / "link").symlink_to("b/other")
    (made.client / "void").mkdir()
    (made.client / "z").chmod(0o755)
    for number, path in enumerate(sorted(made.client.rglob("*"), reverse=True)):
        os.utime(path, ns=(0, 10**18 + number), follow_symlinks=False)
    return made


def as_directory(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_text("in")


CHANGES: dict[str, Callable[[Path], object]] = {
    "content and time": lambda r: (r / "b/c/deep").write_text("another"),
    "time alone": lambda r: os.utime(r / "a", ns=(5, 5)),
    "a file gets another mode": lambda r: (r / "b/other").chmod(0o600),
    "a file gets set-id": lambda r: (r / "z").chmod(0o4755),
    "a file is removed": lambda r: (r / "b/other").unlink(),
    "the last file of a directory is removed": lambda r: (r / "empty/kept").unlink(),
    "a directory is removed": lambda r: shutil.rmtree(r / "b"),
    "a file is added first": lambda r: (r / "0").write_text("0"),
    "a file is added deep": lambda r: (r / "b/c/more").write_text("m"),
    "an empty directory is added": lambda r: (r / "b/new").mkdir(),
    "a directory gets another mode": lambda r: (r / "b/c").chmod(0o711),
    "a directory gets another time": lambda r: os.utime(r / "void", ns=(7, 7)),
    "a link leads elsewhere": replace("link", lambda p: p.symlink_to("a")),
    "a file becomes a directory": replace("b.c", as_directory),
    "a file becomes a link": replace("b/other", lambda p: p.symlink_to("/etc/passwd")),
    "a file becomes a pipe": replace("a", os.mkfifo),
    "a link becomes a file": replace("link", lambda p: p.write_text("b/other")),
    "a link becomes a directory": replace("link", as_directory),
    "a directory becomes a file": replace("b", lambda p: p.write_text("b")),
    "a directory becomes a link": replace("b", lambda p: p.symlink_to("empty")),
    "a file is renamed": lambda r: (r / "a").rename(r / "b/a"),
    "two files change places": lambda r: [
        (r / "a").rename(r / "t"),
        (r / "z").rename(r / "a"),
        (r / "t").rename(r / "z"),
    ],
}


@pytest.mark.parametrize("settled", [True, False], ids=["old", "young"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_whatever_the_client_changes_arrives(
    mirror: Mirror, change: Callable[[Path], object], settled: bool
) -> None:
    mirror.transfer()
    if settled:
        mirror.settle()
        digest(mirror.server, mirror.tree)
    before = mirror.tree
    change(mirror.client)
    mirror.transfer()
    mirror.check()
    assert mirror.tree is not before
    # And so it is the next time, when all is known again.
    known = mirror.tree
    assert mirror.transfer() == []
    mirror.check()
    assert mirror.tree is known


def written_through(root: Path) -> None:
    os.link(root / "a", root.parent / "outside")
    rewrite("outside")(root.parent)


def a_socket(root: Path) -> None:
    folder = os.open(root, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"/proc/self/fd/{folder}/socket")  # a short path
    os.close(folder)


TAMPERINGS: dict[str, Callable[[Path], object]] = {
    "other content, same size and time": rewrite("b/c/deep"),
    "a mode": lambda r: (r / "a").chmod(0o777),
    "a file is gone": lambda r: (r / "b/other").unlink(),
    "everything is gone": lambda r: [replace("b")(r), replace("empty")(r)],
    "a file too many": lambda r: (r / "b/c/evil").write_text("evil"),
    "a directory too many": lambda r: as_directory(r / "void/evil"),
    "a file for another": lambda r: os.replace(r / "a", r / "z"),
    "a link leads elsewhere": replace("link", lambda p: p.symlink_to("a")),
    "a link for a file": replace("a", lambda p: p.symlink_to("b/other")),
    "a directory for a file": replace("a", as_directory),
    "a file for a directory": replace("void", lambda p: p.write_text("v")),
    "a directory's mode": lambda r: (r / "b").chmod(0o700),
    "a directory that cannot be entered": lambda r: (r / "b").chmod(0),
    "a directory's time": lambda r: os.utime(r / "b/c", ns=(1, 1)),
    "another name of a file, written through": written_through,
    "a socket": a_socket,
}


@pytest.mark.parametrize("settled", [True, False], ids=["old", "young"])
@pytest.mark.parametrize("tamper", TAMPERINGS.values(), ids=TAMPERINGS.keys())
def test_whatever_another_process_changes_here_is_put_right(
    mirror: Mirror, tamper: Callable[[Path], object], settled: bool
) -> None:
    mirror.transfer()
    if settled:
        mirror.settle()
    else:
        mirror.tick()
    wanted = digest(mirror.server, mirror.tree)
    tamper(mirror.server)
    mirror.transfer()
    mirror.check()
    assert digest(mirror.server, mirror.tree) == wanted


def test_a_directory_that_became_a_link_leads_nowhere(mirror: Mirror, tmp_path: Path) -> None:
    mirror.transfer()
    mirror.settle()
    outside = tmp_path / "outside"
    shutil.copytree(mirror.server / "b", outside)
    shutil.rmtree(mirror.server / "b")
    (mirror.server / "b").symlink_to(outside)
    before = state(outside)
    mirror.transfer()
    mirror.check()
    assert state(outside) == before


def test_what_did_not_change_is_neither_asked_for_nor_made_anew(mirror: Mirror) -> None:
    assert sorted(mirror.transfer()) == ["a", "b.c", "b/c/deep", "b/other", "empty/kept", "z"]
    first = mirror.tree
    assert mirror.transfer() == []
    assert mirror.tree is first
    mirror.settle()
    assert mirror.tree is first
    known = digest(mirror.server, first)
    assert first.checksums == {(Selector(),): known}
    mirror.transfer()
    assert mirror.tree is first
    mirror.check()


def test_digests_of_a_young_tree_are_not_remembered(mirror: Mirror) -> None:
    mirror.transfer()
    digest(mirror.server, mirror.tree)
    assert mirror.tree.checksums is None


def test_a_digest_that_is_known_reads_nothing(mirror: Mirror) -> None:
    mirror.transfer()
    mirror.settle()
    known = digest(mirror.server, mirror.tree)
    for name in ("a", "b", "empty", "z"):
        replace(name)(mirror.server)
    assert digest(mirror.server, mirror.tree) == known


def test_without_what_was_left_everything_is_compared_and_nothing_sent(mirror: Mirror) -> None:
    mirror.transfer()
    mirror.left = None
    assert mirror.transfer() == []
    mirror.check()


def test_a_clock_that_was_set_back_makes_nothing_believed(mirror: Mirror) -> None:
    mirror.transfer()
    mirror.settle()
    first = mirror.tree
    assert mirror.left is not None
    mirror.left.looked_ns += 10**15
    mirror.transfer()
    assert mirror.tree is not first
    mirror.check()


def test_attributes_count_and_are_not_sent_for_twice(mirror: Mirror) -> None:
    entries = mirror.entries()
    entries[0].xattrs["user.a"] = b"1"
    content = {e.path: (mirror.client / e.path).read_bytes() for e in entries if e.size and not e.linkname}

    def received(left: LeftTree | None) -> tuple[list[str], LeftTree | None]:
        receiver = ContextReceiver(mirror.server, owners=False, left=left)
        sender = Sender(entries, content)
        sender.run(receiver)
        return sender.asked, receiver.left

    _, left = received(None)
    asked, left = received(left)
    assert asked == []
    entries[0].xattrs["user.a"] = b"2"
    assert received(left)[0] == ["a"]


def test_without_comparison_everything_is_asked_for_again(mirror: Mirror) -> None:
    everything = sorted(mirror.transfer())
    mirror.settle()
    assert sorted(mirror.transfer(compare=False)) == everything
    mirror.check()


def test_nothing_is_left_of_a_transfer_of_metadata(mirror: Mirror) -> None:
    mirror.transfer(wants_data="a".__eq__)
    assert mirror.left is None


@pytest.mark.parametrize("stop_after", range(0, 9, 2))
@pytest.mark.parametrize("remembered", [True, False])
def test_a_transfer_that_broke_off_spoils_nothing(mirror: Mirror, stop_after: int, remembered: bool) -> None:
    mirror.transfer()
    mirror.settle()
    left = mirror.left
    for name in ("a", "b/c/deep", "z"):
        (mirror.client / name).write_text("changed: " + name)
    (mirror.client / "b/other").unlink()
    packets = [encoded(Packet(type=Packet.PACKET_STAT, stat=e)) for e in mirror.entries()]
    receiver = ContextReceiver(mirror.server, owners=False, left=left)
    batches = [[p] for p in packets[:stop_after]]

    def answer() -> None:
        for asked in receiver.run(iter(batches)):
            # what is asked for comes in part
            parts = [Packet(type=Packet.PACKET_DATA, ID=request.ID, data=b"chan") for request in split(asked)]
            batches.append([encoded(part) for part in parts])

    with pytest.raises(ContextError, match="ended before"):
        answer()
    assert receiver.left is None
    # The server forgets then; were it not to, it would still find what is there.
    mirror.left = left if remembered else None
    mirror.transfer()
    mirror.check()


def test_names_of_one_file_stay_names_of_one_file(mirror: Mirror) -> None:
    mirror.transfer()
    mirror.settle()
    os.link(mirror.client / "a", mirror.client / "b/same")
    for _ in range(3):
        mirror.transfer()
        assert (mirror.server / "a").samefile(mirror.server / "b/same")
        mirror.check()
    (mirror.client / "b/same").unlink()
    mirror.transfer()
    mirror.check()
    mirror.settle()
    mirror.check()


@pytest.mark.parametrize("kept", [0, 1, 2], ids=["nothing", "the parent", "the link"])
def test_an_entry_known_from_before_still_needs_its_directory(mirror: Mirror, kept: int) -> None:
    mirror.transfer()
    mirror.settle()
    entries = {e.path: e for e in mirror.entries()}
    sent = [[entries["b/other"]], [entries["b/other"], entries["b"]], [entries["link"], entries["b/other"]]][
        kept
    ]
    with pytest.raises(ContextError, match=r"without its directory|out of order"):
        Sender(sent, {}).run(ContextReceiver(mirror.server, owners=False, left=mirror.left))


def test_an_entry_known_from_before_comes_once(mirror: Mirror) -> None:
    mirror.transfer()
    mirror.settle()
    entry = next(e for e in mirror.entries() if e.path == "a")
    with pytest.raises(ContextError, match="out of order"):
        Sender([entry, entry], {}).run(ContextReceiver(mirror.server, owners=False, left=mirror.left))


def test_an_entry_known_from_before_does_not_come_after_the_end(mirror: Mirror) -> None:
    mirror.transfer()
    (mirror.client / "a").write_text("asked for")
    mirror.transfer()
    packets = [encoded(Packet(type=Packet.PACKET_STAT, stat=e)) for e in mirror.entries()]
    (mirror.server / "z").unlink()  # so that the transfer goes on after the list
    end = encoded(Packet(type=Packet.PACKET_STAT))
    with pytest.raises(ContextError, match="after the end"):
        list(
            ContextReceiver(mirror.server, owners=False, left=mirror.left).run(
                iter([packets, [end, packets[0]]])
            )
        )


NAMES = ("a", "b", "b/c", "b/d", "b.", "c", "c/e", "c/e/f")
TREES = st.dictionaries(
    st.sampled_from(NAMES),
    st.tuples(st.sampled_from("fld"), st.integers(0, 2), st.sampled_from((0o644, 0o755))),
)


def build(root: Path, tree: dict[str, tuple[str, int, int]]) -> None:
    """Make the client's directory anew, with times that only content decides."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for name in sorted(tree):
        kind, number, mode = tree[name]
        path = root / name
        if not path.parent.is_dir() or path.parent.is_symlink():
            continue
        if kind == "d":
            path.mkdir(mode | 0o100)
        elif kind == "l":
            path.symlink_to(f"to{number}")
        else:
            path.write_text(str(number))
            path.chmod(mode)
    for path in sorted(root.rglob("*"), reverse=True):
        _, number, _ = tree[path.relative_to(root).as_posix()]
        os.utime(path, ns=(9, 1_000 + number), follow_symlinks=False)


@settings(max_examples=60, deadline=None)
@given(st.lists(TREES, min_size=2, max_size=4))
def test_any_sequence_of_trees_arrives(tmp_path_factory: pytest.TempPathFactory, trees: list[Any]) -> None:
    mirror = Mirror(tmp_path_factory.mktemp("mirror"))
    for tree in trees:
        build(mirror.client, tree)
        mirror.transfer()
        mirror.check()


class TestMemory:
    def left(self, count: int) -> LeftTree:
        known: dict[bytes, Any] = {b"%d" % n: None for n in range(count)}
        return LeftTree(ListedTree(None, count, 0), known, 0)  # type: ignore[arg-type]

    def test_what_is_taken_is_forgotten(self, tmp_path: Path) -> None:
        memory, left = TreeMemory(), self.left(1)
        memory.keep(tmp_path, left)
        assert memory.take(tmp_path) is left
        assert memory.take(tmp_path) is None

    def test_those_not_used_for_longest_go_first(self, tmp_path: Path) -> None:
        memory = TreeMemory(max_entries=50)
        for name in "abc":
            memory.keep(tmp_path / name, self.left(5))
        memory.keep(tmp_path / "a", self.left(6))
        memory.keep(tmp_path / "d", self.left(5))
        assert [name for name in "abcd" if memory.take(tmp_path / name)] == ["a", "c", "d"]

    def test_one_that_is_too_large_is_not_kept(self, tmp_path: Path) -> None:
        memory = TreeMemory(max_entries=50)
        memory.keep(tmp_path / "a", self.left(3))
        memory.keep(tmp_path / "b", self.left(41))
        assert memory.take(tmp_path / "b") is None
