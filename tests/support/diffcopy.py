"""The client's side of a transfer, as fsutil plays it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crossdock.buildkit.proto import stat_pb2, wire_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crossdock.server.receive import ContextReceiver

Packet = wire_pb2.Packet
DIR = 1 << 31 | 0o755
LINK = 1 << 27 | 0o777


class Sender:
    """A client that answers as fsutil does; ``asked`` is what the receiver wanted."""

    def __init__(self, entries: list[stat_pb2.Stat], contents: dict[str, bytes]) -> None:
        self._entries = entries
        self._contents = contents
        self.asked: list[str] = []
        self._answers: list[bytes] = []

    def run(self, receiver: ContextReceiver) -> None:
        for data in receiver.run(self._batches()):
            self._answers.append(data)

    def _batches(self) -> Iterator[list[bytes]]:
        yield [encoded(Packet(type=Packet.PACKET_STAT, stat=entry)) for entry in self._entries]
        yield [encoded(Packet(type=Packet.PACKET_STAT))]
        while True:
            wanted = [p for data in self._answers for p in packets(data)]
            self._answers.clear()
            if any(p.type == Packet.PACKET_FIN for p in wanted):
                yield [encoded(Packet(type=Packet.PACKET_FIN))]
                return
            out = []
            for request in wanted:
                path = self._entries[request.ID].path
                self.asked.append(path)
                if content := self._contents[path]:
                    out.append(encoded(Packet(type=Packet.PACKET_DATA, ID=request.ID, data=content)))
                out.append(encoded(Packet(type=Packet.PACKET_DATA, ID=request.ID)))
            yield out


def encoded(packet: Any) -> bytes:
    return bytes(packet.SerializeToString())


def packets(data: bytes) -> list[Any]:
    """Read framed messages."""
    out, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at + 1 : at + 5], "big")
        out.append(Packet.FromString(data[at + 5 : at + 5 + size]))
        at += 5 + size
    return out


def file(path: str, content: bytes, mtime: int = 1_000_000_007, mode: int = 0o644) -> stat_pb2.Stat:
    return stat_pb2.Stat(path=path, mode=mode, size=len(content), modTime=mtime)
