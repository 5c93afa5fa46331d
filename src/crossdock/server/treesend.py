"""Send mounted results into a directory of the client, as the sender of the diff-copy protocol.

Spec: tonistiigi/fsutil ``send.go``; moby/buildkit ``session/filesync`` (FileSend), ``exporter/local``.
"""

from __future__ import annotations

import os
import posixpath
import queue
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from crossdock.buildkit.proto import stat_pb2, wire_pb2
from crossdock.buildkit.rpc.messages import prefixed
from crossdock.buildkit.rpc.serve import parsed
from crossdock.buildkit.rpc.status import RpcError
from crossdock.buildkit.session.tree import GO_TYPE_MASK, go_mode, walk_tree
from crossdock.errors import CrossdockError, ExportError
from crossdock.server.streams import session_failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from crossdock.buildkit.rpc.channel import Call
    from crossdock.cancel import CancelToken
    from crossdock.server.sessions import ClientSession

__all__ = ["send_tree"]

_METHOD = "/moby.filesync.v1.FileSend/DiffCopy"
_CHUNK = 1 << 20
#: bytes of packets sent together
_BATCH = 128 * 1024
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
    metadata = (
        ("buildkit-attachable-exporter-id", str(number)),
        # All platforms come in one transfer, which a client that mirrors must know.
        ("buildkit-exporter-multi-platform", "1"),
    )
    call = session.start(_METHOD, metadata)
    sender = _Sender(call, roots, fixed_ns, on_bytes)
    thread = threading.Thread(target=sender.run, name="tree-send", daemon=True)
    thread.start()
    try:
        with cancel.waking(call.cancel):
            for message in call.messages():
                sender.take(parsed(wire_pb2.Packet, message))
    except RpcError as exc:
        cancel.check()
        if sender.failure is not None:
            raise sender.failure from exc
        error = session_failure(session, exc, "sending files to the client")
        raise ExportError(error.summary) from exc
    finally:
        sender.stop()
        call.cancel()
        thread.join()
    if sender.failure is not None:
        raise sender.failure


class _Sender:
    """Sends packets from a thread of its own; what the client says comes from the calling thread."""

    def __init__(
        self,
        call: Call,
        roots: Sequence[tuple[str, Path]],
        fixed_ns: int | None,
        on_bytes: Callable[[int], None],
    ) -> None:
        self._call = call
        self._roots = roots
        self._fixed_ns = fixed_ns
        self._on_bytes = on_bytes
        self._requests: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        #: id -> path of files not yet asked for
        self._files: dict[int, str] = {}
        #: packets to be sent together
        self._batch = bytearray()
        self.failure: CrossdockError | None = None

    def take(self, packet: wire_pb2.Packet) -> None:
        """Note what the client wants. Raises: ExportError when it gives up."""
        if packet.type == _REQ:
            self._requests.put(packet.ID)
        elif packet.type == _FIN:
            self._requests.put(None)
        elif packet.type == _ERR:
            summary = f"the client failed while receiving files: {packet.data.decode(errors='replace')}"
            raise ExportError(summary)

    def stop(self) -> None:
        """End the sending thread."""
        self._requests.put(None)

    def run(self) -> None:
        """Send everything; what goes wrong here is kept in :attr:`failure`."""
        try:
            self._send_all()
        except (OSError, CrossdockError) as exc:
            self.failure = (
                exc if isinstance(exc, CrossdockError) else ExportError(f"cannot send files: {exc}")
            )
            with suppress(RpcError):
                self._put(wire_pb2.Packet(type=_ERR, data=str(self.failure).encode()))
                self._flush()
                self._call.end()
        except RpcError:
            return  # the reading side learns how the call ended

    def _send_all(self) -> None:
        for number, (stat, path) in enumerate(self._entries()):
            if not stat.mode & GO_TYPE_MASK and not stat.linkname:
                self._files[number] = path
            self._put(wire_pb2.Packet(type=_STAT, stat=stat))
            while not self._requests.empty() and (wanted := self._requests.get()) is not None:
                self._file(wanted)
        self._put(wire_pb2.Packet(type=_STAT))
        self._flush()
        while (wanted := self._requests.get()) is not None:
            self._file(wanted)
            if self._requests.empty():
                self._flush()
        self._put(wire_pb2.Packet(type=_FIN))
        self._flush()
        self._call.end()

    def _put(self, packet: wire_pb2.Packet) -> None:
        self._batch += prefixed(packet.SerializeToString())
        if len(self._batch) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        batch, self._batch = self._batch, bytearray()
        if batch:
            self._call.send_raw(batch)

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

    def _file(self, number: int) -> None:
        path = self._files.pop(number, None)
        if path is None:
            summary = f"the client asked for file {number}, which it was not offered"
            raise ExportError(summary)
        with open(path, "rb", buffering=0) as file:
            while data := file.read(_CHUNK):
                self._put(wire_pb2.Packet(type=_DATA, ID=number, data=data))
                self._on_bytes(len(data))
        self._put(wire_pb2.Packet(type=_DATA, ID=number))
