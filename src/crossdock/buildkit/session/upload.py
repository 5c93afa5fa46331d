"""Session service ``Upload``: a stream of the client's, such as a tar context on stdin.

Spec: moby/buildkit ``session/upload``; the daemon fetches ``http://buildkit-session/<id>``.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, BinaryIO

import grpc

from crossdock.buildkit.proto import upload_pb2, upload_pb2_grpc
from crossdock.buildkit.session.server import new_id

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Upload"]

_CHUNK = 1 << 20


class Upload(upload_pb2_grpc.UploadServicer):
    """Streams that can each be pulled once."""

    methods = ("/moby.upload.v1.Upload/Pull",)

    def __init__(self) -> None:
        # Guards _streams.
        self._lock = threading.Lock()
        self._streams: dict[str, BinaryIO] = {}

    def register(self, server: grpc.Server, /) -> None:
        """Add the handlers."""
        upload_pb2_grpc.add_UploadServicer_to_server(self, server)

    def add(self, stream: BinaryIO) -> str:
        """Offer a stream, closed after it was read; returns the URL to give as context."""
        name = new_id()
        with self._lock:
            self._streams[name] = stream
        return f"http://buildkit-session/{name}"

    def Pull(  # noqa: N802 - the protocol's name
        self, request_iterator: Iterator[upload_pb2.BytesMessage], context: grpc.ServicerContext
    ) -> Iterator[upload_pb2.BytesMessage]:
        """Send one stream to its end."""
        del request_iterator
        path = dict(context.invocation_metadata()).get("urlpath", "")
        name = (path.decode() if isinstance(path, bytes) else path).rpartition("/")[2]
        with self._lock:
            stream = self._streams.pop(name, None)
        if stream is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no upload named {name}")
        with stream:
            while data := stream.read(_CHUNK):
                yield upload_pb2.BytesMessage(data=data)
