"""Directories over the diff-copy protocol: our sender against our receiver, and both against bad peers."""

from __future__ import annotations

import os
import queue
import socket
import stat
import threading
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

import crossdock.buildkit.session.receive as receiving
from crossdock.buildkit.proto import stat_pb2, wire_pb2
from crossdock.buildkit.rpc.serve import Server
from crossdock.buildkit.session.filesync import FileSync, LocalDir
from crossdock.buildkit.session.receive import Receiver
from crossdock.buildkit.session.tree import go_mode, posix_mode, walk_tree
from crossdock.buildkit.transport import SocketStream
from crossdock.errors import ContextError, CrossdockError, ExportError
from support.grpcstubs import filesync_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from typing import TypeAlias

    from crossdock.buildkit.session.server import Attachable

    Serve: TypeAlias = Callable[[Attachable], grpc.Channel]

Packet = wire_pb2.Packet


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Attachable], grpc.Channel]]:
    """Serve attachables on a private socket; gives a function that returns a channel of grpcio, an independent peer."""
    closing: list[Callable[[], object]] = []

    def start(attachable: Attachable) -> grpc.Channel:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{tmp_path}/sock")
        listener.listen()

        def accept() -> None:
            with listener:
                connection, _ = listener.accept()
            server = Server(SocketStream(connection), attachable.handlers)
            server.start()
            closing.append(server.close)

        thread = threading.Thread(target=accept)
        thread.start()
        channel = grpc.insecure_channel(
            f"unix:{tmp_path}/sock", options=[("grpc.default_authority", "localhost")]
        )
        closing.extend([channel.close, thread.join])
        return channel

    yield start
    for close in reversed(closing):
        close()


def receive(receiver: Receiver, packets: Iterable[wire_pb2.Packet], send: Callable[[bytes], object]) -> None:
    with receiver:
        for packet in packets:
            for answer in receiver.take([packet.SerializeToString()]):
                send(answer)
            if receiver.done:
                return
    raise ExportError("ended before all files were received")


def sync(channel: grpc.Channel, name: str, dest: Path, metadata: list[tuple[str, str]] | None = None) -> None:
    """Receive one directory into ``dest``."""
    outgoing: queue.Queue[wire_pb2.Packet | None] = queue.Queue()
    stub: Any = filesync_pb2_grpc.FileSyncStub(channel)  # the generated stub has no types
    call = stub.DiffCopy(iter(outgoing.get, None), metadata=[("dir-name", name), *(metadata or [])])
    try:
        receive(Receiver(str(dest)), call, lambda raw: outgoing.put(Packet.FromString(raw)))
    finally:
        outgoing.put(None)
        call.cancel()


def make_tree(root: Path) -> None:
    (root / "a/b").mkdir(parents=True)
    (root / "a/b/big").write_bytes(os.urandom(3_000_000))
    (root / "a/empty").touch()
    (root / "a.txt").write_text("sorts after a/")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o4755)
    (root / "link").symlink_to("a/b/big")
    os.link(root / "a.txt", root / "hard")
    (root / "ünï").write_text("x")
    (root / "node_modules").mkdir()
    (root / "node_modules/junk").write_text("junk")
    os.utime(root / "a.txt", ns=(1_600_000_000_123_456_789, 1_600_000_000_123_456_789))


def describe(root: Path) -> dict[str, tuple[object, ...]]:
    out: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        body = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        mode = None if path.is_symlink() else stat.S_IMODE(info.st_mode)
        out[str(path.relative_to(root))] = (mode, body, info.st_mtime_ns if path.is_file() else None)
    return out


def test_a_tree_arrives_whole(tmp_path: Path, serve: Serve) -> None:
    source, dest = tmp_path / "src", tmp_path / "dest"
    source.mkdir()
    dest.mkdir()
    make_tree(source)
    sync(serve(FileSync({"context": LocalDir(path=source)})), "context", dest)
    expected = describe(source)
    got = describe(dest)
    del expected["link"], got["link"]
    assert got == expected
    assert os.readlink(dest / "link") == "a/b/big"
    assert (dest / "hard").stat().st_ino == (dest / "a.txt").stat().st_ino


def test_patterns_of_the_daemon_and_of_the_client_both_hold(tmp_path: Path, serve: Serve) -> None:
    source, dest = tmp_path / "src", tmp_path / "dest"
    source.mkdir()
    dest.mkdir()
    make_tree(source)
    service = FileSync({"context": LocalDir(path=source, exclude=("node_modules",))})
    metadata = [
        ("exclude-patterns", "*.sh"),
        ("followpaths", "link"),
        ("followpaths", "node_modules"),
        ("followpaths", "run.sh"),
    ]
    sync(serve(service), "context", dest, metadata)
    assert sorted(describe(dest)) == ["a", "a/b", "a/b/big", "link"]


def test_escaped_patterns_are_read(tmp_path: Path, serve: Serve) -> None:
    source, dest = tmp_path / "src", tmp_path / "dest"
    source.mkdir()
    dest.mkdir()
    make_tree(source)
    metadata = [("include-patterns", "%C3%BCn%C3%AF"), ("include-patterns-encoded", "1")]
    sync(serve(FileSync({"d": LocalDir(path=source)})), "d", dest, metadata)
    assert list(describe(dest)) == ["ünï"]


def test_an_unknown_directory_is_refused(tmp_path: Path, serve: Serve) -> None:
    channel = serve(FileSync({}))
    with pytest.raises(grpc.RpcError) as caught:
        sync(channel, "etc", tmp_path)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_file_that_shrinks_while_sent_is_named(tmp_path: Path, serve: Serve) -> None:
    source, dest = tmp_path / "src", tmp_path / "dest"
    source.mkdir()
    dest.mkdir()
    (source / "a").write_text("sent first")
    (source / "f").write_bytes(b"x" * 50_000)
    seen: list[CrossdockError] = []
    service = FileSync(
        {"d": LocalDir(path=source)},
        on_bytes=lambda _name, _count: os.truncate(source / "f", 10),
        on_error=seen.append,
    )
    with pytest.raises(ExportError, match="f changed from 50000"):
        sync(serve(service), "d", dest)
    assert isinstance(seen[0], ContextError)
    assert {p.name for p in dest.iterdir()} <= {"a"}


@pytest.mark.parametrize("what", ["gone", "replaced by a directory", "replaced by a pipe"])
def test_a_file_that_is_not_there_any_more_when_asked_for(tmp_path: Path, serve: Serve, what: str) -> None:
    source, dest = tmp_path / "src", tmp_path / "dest"
    source.mkdir()
    dest.mkdir()
    (source / "a").write_text("sent first")
    (source / "f").write_text("listed")

    def change(_name: str, _count: int) -> None:
        (source / "f").unlink()
        if what.endswith("directory"):
            (source / "f").mkdir()
        elif what.endswith("pipe"):
            os.mkfifo(source / "f")

    service = FileSync({"d": LocalDir(path=source)}, on_bytes=change)
    with pytest.raises(ExportError, match=r"f(:|changed).* while the context was sent|f changed from 6"):
        sync(serve(service), "d", dest)
    assert {p.name for p in dest.iterdir()} <= {"a"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_named(tmp_path: Path, serve: Serve) -> None:
    source, dest = tmp_path / "src", tmp_path / "dest"
    source.mkdir()
    dest.mkdir()
    (source / "secret").write_text("x")
    (source / "secret").chmod(0)
    with pytest.raises(ExportError, match=r"secret: Permission denied while the context was sent"):
        sync(serve(FileSync({"d": LocalDir(path=source)})), "d", dest)


def test_a_vanished_directory_is_an_error_not_a_shorter_tree(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    walk = walk_tree(str(tmp_path))
    assert next(walk).path == "a"
    (tmp_path / "b").rmdir()
    with pytest.raises(ContextError, match=r"b vanished"):
        list(walk)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir(mode=0)
    with pytest.raises(ContextError, match=r"cannot read .*secret"):
        list(walk_tree(str(tmp_path)))


def test_names_that_are_not_utf8_are_refused_by_name(tmp_path: Path) -> None:
    os.close(os.open(os.fsencode(tmp_path) + b"/\xff", os.O_CREAT))
    with pytest.raises(ContextError, match=r"\\xff.*not UTF-8"):
        list(walk_tree(str(tmp_path)))


def test_a_socket_travels_as_an_empty_file_type(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
        (record,) = walk_tree(str(tmp_path))
    assert record.mode & ~0o777 == 0


@pytest.mark.parametrize("mode", [0o100644, 0o104755, 0o102711, 0o41777, 0o120777, 0o10600])
def test_modes_survive_go(mode: int) -> None:
    assert posix_mode(go_mode(mode)) == stat.S_IMODE(mode)


def stat_packet(path: str, mode: int = 0o644, linkname: str = "") -> wire_pb2.Packet:
    return Packet(type=Packet.PACKET_STAT, stat=stat_pb2.Stat(path=path, mode=mode, linkname=linkname))


DIR = 1 << 31 | 0o755
LINK = 1 << 27 | 0o777


@pytest.mark.parametrize(
    ("packets", "text"),
    [
        ([stat_packet("../x", DIR)], "leave the output"),
        ([stat_packet("/etc/x", DIR)], "leave the output"),
        ([stat_packet("a/../../x", DIR)], "leave the output"),
        ([stat_packet("..", DIR)], "leave the output"),
        ([stat_packet("b", DIR), stat_packet("a", DIR)], "out of order"),
        ([stat_packet("a", DIR), stat_packet("a", DIR)], "out of order"),
        ([stat_packet("l", LINK, "/tmp"), stat_packet("l/x", DIR)], "cannot write"),
        ([stat_packet("h", 0o644, "/etc/passwd"), Packet(type=Packet.PACKET_STAT)], "did not send"),
        ([Packet(type=Packet.PACKET_DATA, ID=7, data=b"x")], "not asked for"),
        ([stat_packet("f")], "ended before"),
        ([Packet(type=Packet.PACKET_ERR, data=b"boom")], "boom"),
    ],
)
def test_a_hostile_sender_writes_nothing_outside(
    tmp_path: Path, packets: list[wire_pb2.Packet], text: str
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(ExportError, match=text):
        receive(Receiver(str(root)), packets, lambda _raw: None)
    assert [p.name for p in tmp_path.iterdir()] == ["root"]


def test_a_cut_transfer_leaves_no_partial_file(tmp_path: Path) -> None:
    packets = [stat_packet("f"), Packet(type=Packet.PACKET_DATA, ID=0, data=b"half")]
    with pytest.raises(ExportError, match="ended before"):
        receive(Receiver(str(tmp_path)), packets, lambda _raw: None)
    assert list(tmp_path.iterdir()) == []


def test_mirror_removes_what_was_not_sent_and_plain_does_not(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old/x").touch()
    packets = [stat_packet("new", DIR), Packet(type=Packet.PACKET_STAT), Packet(type=Packet.PACKET_FIN)]
    receive(Receiver(str(tmp_path)), packets, lambda _raw: None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "old"]
    receive(Receiver(str(tmp_path), mirror=True), packets, lambda _raw: None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new"]


def test_threads_end_with_the_stream(tmp_path: Path, serve: Serve) -> None:
    source, dest = tmp_path / "src", tmp_path / "dest"
    source.mkdir()
    dest.mkdir()
    (source / "f").write_text("x")
    sync(serve(FileSync({"d": LocalDir(path=source)})), "d", dest)
    names = [t.name for t in threading.enumerate()]
    assert "filesync-requests" not in names or names.count("filesync-requests") <= 1


@given(
    st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=6)), max_size=12),
)
def test_data_in_a_row_is_written_at_once_and_whole(pieces: list[tuple[int, bytes]]) -> None:
    messages = [
        Packet(type=Packet.PACKET_DATA, ID=number, data=data).SerializeToString() for number, data in pieces
    ]
    found = [(number, b"".join(parts)) for number, parts, _ in receiving._packets(messages)]
    wanted: list[tuple[int, bytes]] = []
    for number, data in pieces:
        if data and wanted and wanted[-1][0] == number and wanted[-1][1]:
            wanted[-1] = (number, wanted[-1][1] + data)
        else:
            wanted.append((number, data))
    assert found == wanted


@given(st.binary(max_size=30))
def test_a_malformed_packet_is_one_to_the_general_reader_too(tail: bytes) -> None:
    raw = b"\x08\x02" + tail
    found = receiving._data_of(raw)
    if found is not None:
        packet = Packet.FromString(raw)
        assert (packet.ID, packet.data) == (found[0] & 0xFFFFFFFF, bytes(found[1]))
