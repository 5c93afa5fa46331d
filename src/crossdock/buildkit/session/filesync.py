"""Session service ``FileSync``: local directories sent to the daemon, only what it lacks.

The sender walks the tree and sends one STAT per entry; the daemon compares them with what it has from earlier builds
and asks for the files that differ; their bytes follow as DATA packets.

Spec: tonistiigi/fsutil ``receive.go`` (protocol), moby/buildkit ``session/filesync``.
"""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote_plus

import grpc

from crossdock.buildkit.proto import filesync_pb2_grpc, wire_pb2
from crossdock.buildkit.session.tree import GO_TYPE_MASK, walk_tree
from crossdock.errors import ContextError, CrossdockError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["FileSync", "LocalDir"]

#: bytes of one DATA packet; the daemon takes messages up to 4 MiB
_CHUNK = 1 << 20
_STAT, _REQ, _DATA, _FIN, _ERR = (
    wire_pb2.Packet.PACKET_STAT,
    wire_pb2.Packet.PACKET_REQ,
    wire_pb2.Packet.PACKET_DATA,
    wire_pb2.Packet.PACKET_FIN,
    wire_pb2.Packet.PACKET_ERR,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalDir:
    """A directory offered under a name."""

    path: Path
    #: patterns left out whatever the daemon asks for
    exclude: tuple[str, ...] = ()
    keep_owner: bool = False


class FileSync(filesync_pb2_grpc.FileSyncServicer):
    """Offers directories by name (``context``, ``dockerfile``, named contexts)."""

    methods = ("/moby.filesync.v1.FileSync/DiffCopy",)

    def __init__(
        self,
        dirs: Mapping[str, LocalDir],
        *,
        on_bytes: Callable[[str, int], None] | None = None,
        on_error: Callable[[CrossdockError], None] | None = None,
    ) -> None:
        """``on_bytes(name, count)`` is told of data sent; ``on_error`` of failures, which the daemon only quotes."""
        self._dirs = dict(dirs)
        self._on_bytes = on_bytes
        self._on_error = on_error

    def register(self, server: grpc.Server, /) -> None:
        """Add the handlers."""
        filesync_pb2_grpc.add_FileSyncServicer_to_server(self, server)

    def DiffCopy(  # noqa: N802 - the protocol's name
        self, request_iterator: Iterator[wire_pb2.Packet], context: grpc.ServicerContext
    ) -> Iterator[wire_pb2.Packet]:
        """Send one directory."""
        options = _options(context)
        name = next(iter(options.get("dir-name", ())), "")
        directory = self._dirs.get(name)
        if directory is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no access allowed to dir {name!r}")
        sender = _Sender(directory, options, name, self._on_bytes)
        try:
            yield from sender.run(request_iterator)
        except CrossdockError as exc:
            if self._on_error is not None:
                self._on_error(exc)
            yield wire_pb2.Packet(type=_ERR, data=exc.summary.encode())
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, exc.summary)


def _options(context: grpc.ServicerContext) -> dict[str, tuple[str, ...]]:
    """Read the request's metadata, undoing the escapes of non-ASCII values."""
    out: dict[str, tuple[str, ...]] = {}
    for key, value in context.invocation_metadata():
        text = value.decode() if isinstance(value, bytes) else value
        out[key] = (*out.get(key, ()), text)
    for key in [k for k in out if k.endswith("-encoded")]:
        plain = key.removesuffix("-encoded")
        if out[key][0] in ("1", "true", "t", "T", "TRUE", "True") and plain in out:
            out[plain] = tuple(map(unquote_plus, out[plain]))
    return out


class _Sender:
    def __init__(
        self,
        directory: LocalDir,
        options: Mapping[str, Sequence[str]],
        name: str,
        on_bytes: Callable[[str, int], None] | None,
    ) -> None:
        self._root = str(directory.path)
        self._entries = walk_tree(
            self._root,
            include=options.get("include-patterns", ()),
            exclude=(*directory.exclude, *options.get("exclude-patterns", ())),
            follow=options.get("followpaths", ()),
            keep_owner=directory.keep_owner,
        )
        self._name = name
        self._on_bytes = on_bytes
        #: id -> (path, size) of files not yet asked for
        self._files: dict[int, tuple[str, int]] = {}
        self._requests: queue.SimpleQueue[int | CrossdockError | None] = queue.SimpleQueue()

    def run(self, packets: Iterator[wire_pb2.Packet]) -> Iterator[wire_pb2.Packet]:
        threading.Thread(target=self._listen, args=(packets,), daemon=True, name="filesync-requests").start()
        for number, stat in enumerate(self._entries):
            if not stat.mode & GO_TYPE_MASK:
                self._files[number] = (stat.path, stat.size)
            yield wire_pb2.Packet(type=_STAT, stat=stat)
            # Data flows while the walk goes on, so that a large tree does not wait for its last entry.
            while not self._requests.empty():
                yield from self._answer(self._requests.get())
        yield wire_pb2.Packet(type=_STAT)
        while (request := self._requests.get()) is not None:
            yield from self._answer(request)
        yield wire_pb2.Packet(type=_FIN)

    def _listen(self, packets: Iterator[wire_pb2.Packet]) -> None:
        try:
            for packet in packets:
                if packet.type == _REQ:
                    self._requests.put(packet.ID)
                elif packet.type == _FIN:
                    break
                elif packet.type == _ERR:
                    summary = (
                        f"the daemon stopped reading the context: {packet.data.decode(errors='replace')}"
                    )
                    self._requests.put(ContextError(summary))
                    return
        except grpc.RpcError as exc:
            summary = "the connection broke while the context was sent"
            error = ContextError(summary, retryable=True)
            error.__cause__ = exc
            self._requests.put(error)
            return
        self._requests.put(None)

    def _answer(self, request: int | CrossdockError | None) -> Iterator[wire_pb2.Packet]:
        if isinstance(request, CrossdockError):
            raise request
        if request is None or request not in self._files:
            summary = f"the daemon asked for file {request}, which it was not offered"
            raise ContextError(summary)
        path, size = self._files.pop(request)
        sent = 0
        try:
            with open(f"{self._root}/{path}", "rb", buffering=0) as file:
                while data := file.read(_CHUNK):
                    sent += len(data)
                    yield wire_pb2.Packet(type=_DATA, ID=request, data=data)
                    if self._on_bytes is not None:
                        self._on_bytes(self._name, len(data))
        except OSError as exc:
            summary = f"{path}: {exc.strerror} while the context was sent"
            raise ContextError(summary, hint="build again when nothing changes the directory") from exc
        if sent != size:
            summary = f"{path} changed from {size} to {sent} bytes while the context was sent"
            raise ContextError(summary, hint="build again when nothing changes the directory")
        yield wire_pb2.Packet(type=_DATA, ID=request)
