"""Send mounted results into a directory of the client, as the sender of the diff-copy protocol.

Spec: tonistiigi/fsutil ``send.go``; moby/buildkit ``session/filesync`` (FileSend), ``exporter/local``.
"""

from __future__ import annotations

import os
import posixpath
import queue
from typing import TYPE_CHECKING, Any

import grpc

from crossdock.buildkit.proto import stat_pb2, wire_pb2
from crossdock.buildkit.session.tree import GO_TYPE_MASK, go_mode, walk_tree
from crossdock.errors import ExportError
from crossdock.server.streams import session_failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from crossdock.cancel import CancelToken
    from crossdock.server.sessions import ClientSession

__all__ = ["send_tree"]

_METHOD = "/moby.filesync.v1.FileSend/DiffCopy"
_CHUNK = 1 << 20
_DIRECTORY_MODE = 0o40755
_STAT, _REQ, _DATA, _FIN, _ERR = (
    wire_pb2.Packet.PACKET_STAT,
    wire_pb2.Packet.PACKET_REQ,
    wire_pb2.Packet.PACKET_DATA,
    wire_pb2.Packet.PACKET_FIN,
    wire_pb2.Packet.PACKET_ERR,
)


def send_tree(
    session: ClientSession,
    number: int,
    roots: Sequence[tuple[str, Path]],
    *,
    fixed_ns: int | None,
    on_bytes: Callable[[int], None],
    cancel: CancelToken,
) -> None:
    """Send directories, each below its folder (``""``: none), to exporter ``number`` of the client.

    ``fixed_ns`` is the latest time a file may have.
    Raises: ExportError with the client's words; SessionLost; the token's cause.
    """
    if not session.supports(_METHOD):
        summary = "the client takes no files: it offers no FileSend service"
        raise ExportError(summary)
    stub: Any = session.channel.stream_stream(
        _METHOD,
        request_serializer=wire_pb2.Packet.SerializeToString,
        response_deserializer=wire_pb2.Packet.FromString,
    )
    sender = _Sender(roots, fixed_ns, on_bytes)
    metadata = (
        ("buildkit-attachable-exporter-id", str(number)),
        # All platforms come in one transfer, which a client that mirrors must know.
        ("buildkit-exporter-multi-platform", "1"),
    )
    try:
        call = stub(sender.packets(), metadata=metadata)
    except ValueError as exc:
        lost = session.lost("sending files")
        raise lost from exc
    try:
        with cancel.waking(call.cancel):
            for packet in call:
                sender.take(packet)
    except grpc.RpcError as exc:
        cancel.check()
        if sender.failure is not None:
            raise sender.failure from exc
        error = session_failure(session, exc, "sending files to the client")
        raise ExportError(error.summary) from exc
    finally:
        sender.stop()
        call.cancel()
    if sender.failure is not None:
        raise sender.failure


class _Sender:
    """Yields packets in gRPC's sending thread; what the client says comes from the calling thread."""

    def __init__(
        self, roots: Sequence[tuple[str, Path]], fixed_ns: int | None, on_bytes: Callable[[int], None]
    ) -> None:
        self._roots = roots
        self._fixed_ns = fixed_ns
        self._on_bytes = on_bytes
        self._requests: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        #: id -> path of files not yet asked for
        self._files: dict[int, str] = {}
        self.failure: ExportError | None = None

    def take(self, packet: wire_pb2.Packet) -> None:
        """Note what the client wants. Raises: ExportError when it gives up."""
        if packet.type == _REQ:
            self._requests.put(packet.ID)
        elif packet.type == _FIN:
            self._requests.put(None)
        elif packet.type == _ERR:
            summary = f"the client failed while receiving files: {packet.data.decode(errors='replace')}"
            self.failure = ExportError(summary)
            raise self.failure

    def stop(self) -> None:
        """End the sending thread."""
        self._requests.put(None)

    def packets(self) -> Iterator[wire_pb2.Packet]:
        """Yield everything to send."""
        try:
            for number, (stat, path) in enumerate(self._entries()):
                if not stat.mode & GO_TYPE_MASK and not stat.linkname:
                    self._files[number] = path
                yield wire_pb2.Packet(type=_STAT, stat=stat)
                while not self._requests.empty() and (wanted := self._requests.get()) is not None:
                    yield from self._file(wanted)
            yield wire_pb2.Packet(type=_STAT)
            while (wanted := self._requests.get()) is not None:
                yield from self._file(wanted)
            yield wire_pb2.Packet(type=_FIN)
        except (OSError, ExportError) as exc:
            self.failure = exc if isinstance(exc, ExportError) else ExportError(f"cannot send files: {exc}")
            yield wire_pb2.Packet(type=_ERR, data=str(self.failure).encode())

    def _entries(self) -> Iterator[tuple[stat_pb2.Stat, str]]:
        for folder, root in sorted(self._roots):
            if folder:
                mtime_ns = self._fixed_ns or 0
                yield stat_pb2.Stat(path=folder, mode=go_mode(_DIRECTORY_MODE), modTime=mtime_ns), ""
            for stat in walk_tree(str(root), keep_owner=True):
                path = os.path.join(root, stat.path)
                if self._fixed_ns is not None:
                    stat.modTime = min(stat.modTime, self._fixed_ns)
                if folder:
                    stat.path = posixpath.join(folder, stat.path)
                    if stat.linkname and not stat.mode & GO_TYPE_MASK:
                        stat.linkname = posixpath.join(folder, stat.linkname)
                yield stat, path

    def _file(self, number: int) -> Iterator[wire_pb2.Packet]:
        path = self._files.pop(number, None)
        if path is None:
            summary = f"the client asked for file {number}, which it was not offered"
            raise ExportError(summary)
        with open(path, "rb", buffering=0) as file:
            while data := file.read(_CHUNK):
                yield wire_pb2.Packet(type=_DATA, ID=number, data=data)
                self._on_bytes(len(data))
        yield wire_pb2.Packet(type=_DATA, ID=number)
