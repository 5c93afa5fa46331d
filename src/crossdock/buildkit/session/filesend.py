"""Session service ``FileSend``: outputs that the daemon writes on the client.

Tar-like exporters (``tar``, ``oci``, ``docker``) send one byte stream; ``local`` sends a directory over the diff-copy
protocol. The same method serves both, so messages are read raw and decoded by what the output is.

Spec: moby/buildkit ``session/filesync``, metadata ``buildkit-attachable-exporter-id``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import grpc

from crossdock.buildkit.proto import filesync_pb2, wire_pb2
from crossdock.buildkit.session.receive import Receiver
from crossdock.errors import CrossdockError, ExportError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

__all__ = ["DirectoryTarget", "FileSend", "StreamTarget"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryTarget:
    """A directory to fill; ``mirror`` removes what is not sent."""

    path: Path
    mirror: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamTarget:
    """A byte stream to write; ``finish(ok)`` closes it, and removes it again when not ``ok``."""

    open: Callable[[Mapping[str, str]], BinaryIO]
    finish: Callable[[BinaryIO, bool], None]


class FileSend:
    """Receives outputs; keys are exporter numbers in the order of the request."""

    methods = ("/moby.filesync.v1.FileSend/DiffCopy",)

    def __init__(
        self,
        targets: Mapping[int, DirectoryTarget | StreamTarget],
        *,
        on_error: Callable[[CrossdockError], None] | None = None,
    ) -> None:
        self._targets = dict(targets)
        self._on_error = on_error

    def register(self, server: grpc.Server, /) -> None:
        """Add the handlers, which take and give raw messages."""
        handler = grpc.stream_stream_rpc_method_handler(self._diff_copy)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("moby.filesync.v1.FileSend", {"DiffCopy": handler}),)
        )

    def _diff_copy(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        metadata = {k: v.decode() if isinstance(v, bytes) else v for k, v in context.invocation_metadata()}
        target = self._choose(metadata, context)
        try:
            match target:
                case DirectoryTarget():
                    if target.mirror and metadata.get("buildkit-exporter-multi-platform") != "1":
                        summary = "local exporter mode=delete needs a newer BuildKit daemon"
                        raise ExportError(summary, hint="use mode=copy, or upgrade BuildKit to v0.31")
                    yield from _directory(target, messages)
                case StreamTarget():
                    _stream(target, messages, metadata)
        except CrossdockError as exc:
            if self._on_error is not None:
                self._on_error(exc)
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, exc.summary)

    def _choose(
        self, metadata: Mapping[str, str], context: grpc.ServicerContext
    ) -> DirectoryTarget | StreamTarget:
        # Daemons before multiple exporters name none.
        number = metadata.get("buildkit-attachable-exporter-id", "0")
        target = self._targets.get(int(number)) if number.isdigit() else None
        if target is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"exporter {number} not found")
        return target


def _directory(target: DirectoryTarget, messages: Iterator[bytes]) -> Iterator[bytes]:
    try:
        target.path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        summary = f"cannot create {target.path}: {exc.strerror}"
        raise ExportError(summary) from exc
    packets = map(wire_pb2.Packet.FromString, messages)
    for packet in Receiver(str(target.path), mirror=target.mirror).run(packets):
        yield packet.SerializeToString()


def _stream(target: StreamTarget, messages: Iterator[bytes], metadata: Mapping[str, str]) -> None:
    prefix = "exporter-md-"
    stream = target.open({k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)})
    ok = False
    try:
        for message in messages:
            stream.write(filesync_pb2.BytesMessage.FromString(message).data)
        ok = True
    except grpc.RpcError as exc:
        summary = "the connection broke while an output was received"
        raise ExportError(summary, retryable=True) from exc
    except OSError as exc:
        summary = f"cannot write the output: {exc.strerror or exc}"
        raise ExportError(summary, hint="check the free space and permissions of the destination") from exc
    finally:
        target.finish(stream, ok)
