"""Session service ``Upload``: a stream of the client's, such as a tar context on stdin.

Spec: moby/buildkit ``session/upload``; the daemon fetches ``http://buildkit-session/<id>``.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, BinaryIO

from crossdock.buildkit.proto import upload_pb2
from crossdock.buildkit.rpc.status import NOT_FOUND, RpcError
from crossdock.buildkit.session.server import new_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossdock.buildkit.rpc.serve import Handler, ServerCall

__all__ = ["Upload"]

_CHUNK = 1 << 20


class Upload:
    """Streams that can each be pulled once."""

    def __init__(self) -> None:
        # Guards _streams.
        self._lock = threading.Lock()
        self._streams: dict[str, BinaryIO] = {}

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The service's method."""
        return {"/moby.upload.v1.Upload/Pull": self._pull}

    def add(self, stream: BinaryIO) -> str:
        """Offer a stream, closed after it was read; returns the URL to give as context."""
        name = new_id()
        with self._lock:
            self._streams[name] = stream
        return f"http://buildkit-session/{name}"

    def _pull(self, call: ServerCall) -> None:
        """Send one stream to its end."""
        name = next(iter(call.metadata("urlpath")), "").rpartition("/")[2]
        with self._lock:
            stream = self._streams.pop(name, None)
        if stream is None:
            raise RpcError(NOT_FOUND, f"no upload named {name}")
        with stream:
            while data := stream.read(_CHUNK):
                call.send(upload_pb2.BytesMessage(data=data).SerializeToString())
