"""Layouts offered to a daemon: what is there is read, what it writes is verified, and nothing outside is touched."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import pytest

from crossdock.buildkit.proto import content_pb2 as pb
from crossdock.buildkit.rpc.serve import Server
from crossdock.buildkit.session.content import ContentStores
from crossdock.buildkit.session.layout import LayoutStore
from crossdock.buildkit.transport import SocketStream
from support.grpcstubs import content_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DATA = b"a blob"
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
METADATA = [("buildkit-attachable-store-id", "export")]


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[content_pb2_grpc.ContentStub]:
    """A client of grpcio of two layouts: `export`, which may be written, and `read`, which has the blob."""
    import socket
    import threading

    stores = {}
    for name, writable in (("export", True), ("read", False)):
        (tmp_path / name / "blobs/sha256").mkdir(parents=True)
        stores[name] = LayoutStore(tmp_path / name, writable=writable)
    (tmp_path / "read/blobs/sha256" / DIGEST.removeprefix("sha256:")).write_bytes(DATA)
    (tmp_path / "outside").write_bytes(b"private")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{tmp_path}/sock")
    listener.listen()
    servers: list[Server] = []

    def accept() -> None:
        with listener:
            near, _ = listener.accept()
        server = Server(SocketStream(near), ContentStores(stores).handlers)
        servers.append(server)
        server.start()

    thread = threading.Thread(target=accept)
    thread.start()
    with grpc.insecure_channel(f"unix:{tmp_path}/sock") as channel:
        yield content_pb2_grpc.ContentStub(channel)
    thread.join()
    for server in servers:
        server.close()


def writes(
    *, data: bytes = DATA, expected: str = DIGEST, offset: int = 0
) -> Iterator[pb.WriteContentRequest]:
    yield pb.WriteContentRequest(
        action=pb.WRITE, ref="r", total=len(data), expected=expected, offset=offset, data=data
    )
    yield pb.WriteContentRequest(
        action=pb.COMMIT, ref="r", total=len(data), expected=expected, offset=offset + len(data)
    )


def code(call: object) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        list(call)  # type: ignore[call-overload]
    return str(caught.value.code().name)


def test_a_blob_is_written_once_and_read_back(stub: content_pb2_grpc.ContentStub, tmp_path: Path) -> None:
    answers = list(stub.Write(writes(), metadata=METADATA))
    assert answers[-1].digest == DIGEST
    path = tmp_path / "export/blobs/sha256" / DIGEST.removeprefix("sha256:")
    assert path.read_bytes() == DATA
    assert code(stub.Write(writes(), metadata=METADATA)) == "ALREADY_EXISTS"
    request = pb.ReadContentRequest(digest=DIGEST, offset=2, size=3)
    assert b"".join(a.data for a in stub.Read(request, metadata=METADATA)) == DATA[2:5]


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"data": b"other"}, "FAILED_PRECONDITION"),
        ({"offset": 3}, "OUT_OF_RANGE"),
        ({"expected": "sha256:../../../outside"}, "FAILED_PRECONDITION"),
    ],
)
def test_what_is_not_what_was_promised_is_not_kept(
    stub: content_pb2_grpc.ContentStub, tmp_path: Path, options: dict[str, object], status: str
) -> None:
    assert code(stub.Write(writes(**options), metadata=METADATA)) == status  # type: ignore[arg-type]
    assert [p for p in (tmp_path / "export").rglob("*") if p.is_file()] == []
    assert (tmp_path / "outside").read_bytes() == b"private"


def test_a_write_that_is_cut_leaves_nothing(stub: content_pb2_grpc.ContentStub, tmp_path: Path) -> None:
    first = [next(writes())]
    list(stub.Write(iter(first), metadata=METADATA))
    assert [p for p in (tmp_path / "export").rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("digest", ["sha256:../../../outside", "../outside", "", "sha256:" + "0" * 64])
def test_digests_that_are_none(stub: content_pb2_grpc.ContentStub, digest: str) -> None:
    for store in ("read", "export"):
        metadata = [("buildkit-attachable-store-id", store)]
        assert code(stub.Read(pb.ReadContentRequest(digest=digest), metadata=metadata)) == "NOT_FOUND"
        with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
            stub.Info(pb.InfoRequest(digest=digest), metadata=metadata)


def test_stores_are_what_they_were_offered_as(stub: content_pb2_grpc.ContentStub) -> None:
    read = [("buildkit-attachable-store-id", "read")]
    other = b"more"
    request = writes(data=other, expected=f"sha256:{hashlib.sha256(other).hexdigest()}")
    assert code(stub.Write(request, metadata=read)) == "PERMISSION_DENIED"
    unknown = [("buildkit-attachable-store-id", "/etc")]
    assert code(stub.List(pb.ListContentRequest(), metadata=unknown)) == "NOT_FOUND"
    assert [
        info.digest for answer in stub.List(pb.ListContentRequest(), metadata=read) for info in answer.info
    ] == [DIGEST]


def test_many_write_at_once_and_the_folder_that_each_removes_when_it_is_empty_is_no_trouble(
    stub: content_pb2_grpc.ContentStub, tmp_path: Path
) -> None:
    blobs = [b"%d" % number for number in range(200)]

    def write(data: bytes) -> str:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        request = pb.WriteContentRequest(
            action=pb.COMMIT, ref=digest, total=len(data), expected=digest, data=data
        )
        answers = list(stub.Write(iter([request]), metadata=METADATA))
        return answers[-1].digest

    with ThreadPoolExecutor(16) as pool:
        digests = list(pool.map(write, blobs))
    stored = {path.name for path in (tmp_path / "export/blobs/sha256").iterdir()}
    assert {digest.removeprefix("sha256:") for digest in digests} == stored
    assert len(stored) == 200
