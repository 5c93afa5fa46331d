"""Session service ``FileSync``: local directories sent to the daemon, only what it lacks.

The sender walks the tree and sends one STAT per entry; the daemon compares them with what it has from earlier builds
and asks for the files that differ; their bytes follow as DATA packets. Packets are sent many at a time: of 12,000 small
files, what is done per packet is most of the time.

Spec: tonistiigi/fsutil ``receive.go`` (protocol), moby/buildkit ``session/filesync``.
"""

from __future__ import annotations

import os
import queue
import stat as st
import threading
from typing import TYPE_CHECKING

from crossdock.buildkit.proto import wire_pb2
from crossdock.buildkit.rpc.messages import prefixed, varint
from crossdock.buildkit.rpc.status import FAILED_PRECONDITION, NOT_FOUND, RpcError
from crossdock.buildkit.session.tree import GO_TYPE_MASK, walk_tree
from crossdock.errors import ContextError, CrossdockError
from crossdock.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from crossdock.buildkit.rpc.serve import Handler, ServerCall

__all__ = ["FileSync", "LocalDir"]

#: bytes of one DATA packet; the daemon takes messages up to 4 MiB
_CHUNK = 1 << 20
#: bytes of packets sent at once
_BATCH = 128 * 1024
_STAT, _REQ, _DATA, _FIN, _ERR = (
    wire_pb2.Packet.PACKET_STAT,
    wire_pb2.Packet.PACKET_REQ,
    wire_pb2.Packet.PACKET_DATA,
    wire_pb2.Packet.PACKET_FIN,
    wire_pb2.Packet.PACKET_ERR,
)


class LocalDir(Record):
    """A directory offered under a name."""

    path: Path
    #: patterns left out whatever the daemon asks for
    exclude: tuple[str, ...] = ()
    keep_owner: bool = False


class FileSync:
    """Offers directories by name (``context``, ``dockerfile``, named contexts)."""

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

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The service's method."""
        return {"/moby.filesync.v1.FileSync/DiffCopy": self._diff_copy}

    def _diff_copy(self, call: ServerCall) -> None:
        """Send one directory."""
        name = next(iter(_option(call, "dir-name")), "")
        directory = self._dirs.get(name)
        if directory is None:
            raise RpcError(NOT_FOUND, f"no access allowed to dir {name!r}")
        sender = _Sender(directory, call, name, self._on_bytes)
        try:
            sender.run()
        except CrossdockError as exc:
            if self._on_error is not None:
                self._on_error(exc)
            call.send(
                wire_pb2.Packet(type=_ERR, data=exc.summary.encode(errors="replace")).SerializeToString()
            )
            raise RpcError(FAILED_PRECONDITION, exc.summary) from exc


def _option(call: ServerCall, name: str) -> tuple[str, ...]:
    """Read one of the request's headers, undoing the escapes of non-ASCII values."""
    values = call.metadata(name)
    if next(iter(call.metadata(f"{name}-encoded")), "") in ("1", "true", "t", "T", "TRUE", "True"):
        from urllib.parse import unquote_plus

        return tuple(map(unquote_plus, values))
    return values


class _Sender:
    def __init__(
        self, directory: LocalDir, call: ServerCall, name: str, on_bytes: Callable[[str, int], None] | None
    ) -> None:
        self._root = str(directory.path)
        self._entries = walk_tree(
            self._root,
            include=_option(call, "include-patterns"),
            exclude=(*directory.exclude, *_option(call, "exclude-patterns")),
            follow=_option(call, "followpaths"),
            keep_owner=directory.keep_owner,
        )
        self._call = call
        self._name = name
        self._on_bytes = on_bytes
        #: id -> (path, size) of files not yet asked for
        self._files: dict[int, tuple[str, int]] = {}
        self._requests: queue.SimpleQueue[int | Exception | None] = queue.SimpleQueue()
        #: packets made and not yet sent
        self._out = bytearray()

    def run(self) -> None:
        threading.Thread(target=self._listen, daemon=True, name="filesync-requests").start()
        out, packet = self._out, wire_pb2.Packet
        for number, stat in enumerate(self._entries):
            if not stat.mode & GO_TYPE_MASK:
                self._files[number] = (stat.path, stat.size)
            out += prefixed(packet(type=_STAT, stat=stat).SerializeToString())
            if len(out) >= _BATCH:
                self._flush()
                # Data flows while the walk goes on, so that a large tree does not wait for its last entry.
                while not self._requests.empty():
                    self._answer(self._requests.get())
        out += prefixed(packet(type=_STAT).SerializeToString())
        while True:
            if self._requests.empty():
                self._flush()
            request = self._requests.get()
            if request is None:
                break
            self._answer(request)
        out += prefixed(packet(type=_FIN).SerializeToString())
        self._flush()

    def _flush(self) -> None:
        if self._out:
            self._call.send_raw(self._out)
            self._out.clear()

    def _listen(self) -> None:
        try:
            for raw in self._call.messages():
                packet = wire_pb2.Packet.FromString(raw)
                if packet.type == _REQ:
                    self._requests.put(packet.ID)
                elif packet.type == _FIN:
                    break
                elif packet.type == _ERR:
                    text = packet.data.decode(errors="replace")
                    self._requests.put(ContextError(f"the daemon stopped reading the context: {text}"))
                    return
        except RpcError as exc:
            summary = f"the connection broke while the context was sent: {exc.message}"
            error = ContextError(summary, retryable=True)
            error.__cause__ = exc
            # What the peer gave up on purpose is its own business, and reported by it.
            self._requests.put(exc if exc.code == "CANCELLED" else error)
            return
        self._requests.put(None)

    def _answer(self, request: int | Exception | None) -> None:
        if isinstance(request, Exception):
            raise request
        if request is None or request not in self._files:
            summary = f"the daemon asked for file {request}, which it was not offered"
            raise ContextError(summary)
        path, size = self._files.pop(request)
        head = b"\x08\x02\x18" + varint(request)
        sent = 0
        try:
            for data in _pieces(f"{self._root}/{path}", size):
                sent += len(data)
                field = head + b"\x22" + varint(len(data))
                self._out += b"\0" + (len(field) + len(data)).to_bytes(4, "big")
                self._out += field
                self._out += data
                if len(self._out) >= _BATCH:
                    self._flush()
        except OSError as exc:
            summary = f"{path}: {exc.strerror} while the context was sent"
            raise ContextError(summary, hint="build again when nothing changes the directory") from exc
        if sent != size:
            summary = f"{path} changed from {size} to {sent} bytes while the context was sent"
            raise ContextError(summary, hint="build again when nothing changes the directory")
        self._out += b"\0" + len(head).to_bytes(4, "big") + head
        if self._on_bytes is not None:
            self._on_bytes(self._name, sent)


def _pieces(path: str, size: int) -> Iterator[bytes]:
    """Yield a file's data, at most a byte more than ``size``; what is no regular file (a socket) has none.

    Raises: OSError.
    """
    # Not to be kept waiting by what became a pipe meanwhile, nor led away by what became a link.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        if size == 0 and not st.S_ISREG(os.lstat(path).st_mode):
            return
        raise
    try:
        left = size + 1
        while left > 0 and (data := os.read(fd, min(left, _CHUNK))):
            left -= len(data)
            yield data
    finally:
        os.close(fd)
