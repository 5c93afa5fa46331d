"""Session service ``FileSend``: outputs that the daemon writes on the client.

Tar-like exporters (``tar``, ``oci``, ``docker``) send one byte stream; ``local`` sends a directory over the diff-copy
protocol. The same method serves both, so messages are read raw and decoded by what the output is.

Spec: moby/buildkit ``session/filesync``, metadata ``buildkit-attachable-exporter-id``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.buildkit.proto import filesync_pb2
from crossdock.buildkit.rpc.messages import prefixed
from crossdock.buildkit.rpc.status import FAILED_PRECONDITION, NOT_FOUND, RpcError
from crossdock.buildkit.session.receive import Receiver
from crossdock.buildkit.session.targets import DirectoryTarget, StreamTarget
from crossdock.errors import CrossdockError, ExportError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from crossdock.buildkit.rpc.serve import Handler, ServerCall

__all__ = ["FileSend"]


class FileSend:
    """Receives outputs; keys are exporter numbers in the order of the request."""

    def __init__(
        self,
        targets: Mapping[int, DirectoryTarget | StreamTarget],
        *,
        on_error: Callable[[CrossdockError], None] | None = None,
    ) -> None:
        self._targets = dict(targets)
        self._on_error = on_error

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The service's method."""
        return {"/moby.filesync.v1.FileSend/DiffCopy": self._diff_copy}

    def _diff_copy(self, call: ServerCall) -> None:
        target = self._choose(call)
        try:
            match target:
                case DirectoryTarget():
                    if target.mirror and call.metadata("buildkit-exporter-multi-platform") != ("1",):
                        summary = "local exporter mode=delete needs a newer BuildKit daemon"
                        raise ExportError(summary, hint="use mode=copy, or upgrade BuildKit to v0.31")
                    _directory(target, call)
                case StreamTarget():
                    _stream(target, call)
        except CrossdockError as exc:
            if self._on_error is not None:
                self._on_error(exc)
            raise RpcError(FAILED_PRECONDITION, exc.summary) from exc

    def _choose(self, call: ServerCall) -> DirectoryTarget | StreamTarget:
        # Daemons before multiple exporters name none.
        number = next(iter(call.metadata("buildkit-attachable-exporter-id")), "0")
        target = self._targets.get(int(number)) if number.isdigit() else None
        if target is None:
            raise RpcError(NOT_FOUND, f"exporter {number} not found")
        return target


def _directory(target: DirectoryTarget, call: ServerCall) -> None:
    try:
        target.path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        summary = f"cannot create {target.path}: {exc.strerror}"
        raise ExportError(summary) from exc
    receiver = Receiver(str(target.path), mirror=target.mirror)
    with receiver:
        try:
            for batch in call.batches():
                answers = receiver.take(batch)
                if answers:
                    call.send_raw(b"".join(map(prefixed, answers)))
                if receiver.done:
                    return
        except RpcError as exc:
            summary = f"the connection broke while an output was received: {exc.message}"
            raise ExportError(summary, retryable=True) from exc
        summary = "the connection ended before all files were received"
        raise ExportError(summary, retryable=True)


def _stream(target: StreamTarget, call: ServerCall) -> None:
    prefix = "exporter-md-"
    metadata = {
        name.removeprefix(prefix): call.metadata(name)[-1] for name in call.names if name.startswith(prefix)
    }
    stream = target.open(metadata)
    ok = False
    try:
        for batch in call.batches():
            stream.writelines(filesync_pb2.BytesMessage.FromString(message).data for message in batch)
        ok = True
    except RpcError as exc:
        summary = f"the connection broke while an output was received: {exc.message}"
        raise ExportError(summary, retryable=True) from exc
    except OSError as exc:
        summary = f"cannot write the output: {exc.strerror or exc}"
        raise ExportError(summary, hint="check the free space and permissions of the destination") from exc
    finally:
        target.finish(stream, ok)
