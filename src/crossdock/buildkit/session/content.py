"""Session service ``Content``: OCI layouts read and written by the daemon.

Stores are named by metadata: ``oci:<id>`` for layouts given as contexts, ``local:<dir>`` for local caches, ``export``
for an OCI output directory.

Spec: containerd ``api/services/content/v1/content.proto``; image-spec ``image-layout.md``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import threading
from typing import TYPE_CHECKING, BinaryIO, NoReturn

import grpc

from crossdock.buildkit.proto import content_pb2, content_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["ContentStores", "LayoutStore"]

_CHUNK = 1 << 20
_DIGEST = re.compile(r"(sha256|sha384|sha512):[0-9a-f]{64,128}\Z")


class LayoutStore:
    """The blobs of one OCI layout directory."""

    def __init__(self, root: Path, *, writable: bool = False) -> None:
        self.root = root
        self.writable = writable

    def path(self, digest: str) -> Path | None:
        """Return where a blob lies or would lie; ``None`` for a malformed digest."""
        if not _DIGEST.match(digest):
            return None
        algorithm, _, value = digest.partition(":")
        return self.root / "blobs" / algorithm / value


class _Ingest:
    """One blob being written."""

    def __init__(self, store: LayoutStore) -> None:
        self.dir = store.root / "ingest"
        self.dir.mkdir(parents=True, exist_ok=True)
        self.path = self.dir / secrets.token_hex(8)
        self.file: BinaryIO = self.path.open("wb")
        self.hash = hashlib.sha256()
        self.offset = 0
        self.total = 0

    def write(self, data: bytes) -> None:
        self.file.write(data)
        self.hash.update(data)
        self.offset += len(data)

    def discard(self) -> None:
        self.file.close()
        self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.dir.rmdir()


class ContentStores(content_pb2_grpc.ContentServicer):
    """Serves several layouts by name."""

    methods = tuple(
        f"/containerd.services.content.v1.Content/{m}"
        for m in ("Info", "Update", "List", "Read", "Status", "ListStatuses", "Write")
    )

    def __init__(self, stores: Mapping[str, LayoutStore]) -> None:
        self._stores = dict(stores)
        # Guards _ingests.
        self._lock = threading.Lock()
        self._ingests: dict[tuple[str, str], _Ingest] = {}

    def register(self, server: grpc.Server, /) -> None:
        """Add the handlers."""
        content_pb2_grpc.add_ContentServicer_to_server(self, server)

    def Info(  # noqa: N802 - the protocol's name
        self, request: content_pb2.InfoRequest, context: grpc.ServicerContext
    ) -> content_pb2.InfoResponse:
        """Return size and time of a blob."""
        return content_pb2.InfoResponse(info=self._info(self._store(context)[1], request.digest, context))

    def Update(  # noqa: N802 - the protocol's name
        self, request: content_pb2.UpdateRequest, context: grpc.ServicerContext
    ) -> content_pb2.UpdateResponse:
        """Accept labels, which a layout has no place for."""
        info = self._info(self._store(context)[1], request.info.digest, context)
        info.labels.update(request.info.labels)
        return content_pb2.UpdateResponse(info=info)

    def List(  # noqa: N802 - the protocol's name
        self, request: content_pb2.ListContentRequest, context: grpc.ServicerContext
    ) -> Iterator[content_pb2.ListContentResponse]:
        """List all blobs."""
        del request
        _, store = self._store(context)
        blobs = store.root / "blobs"
        found = [
            self._info(store, f"{path.parent.name}:{path.name}", context)
            for path in sorted(blobs.glob("*/*"))
            if _DIGEST.match(f"{path.parent.name}:{path.name}")
        ]
        if found:
            yield content_pb2.ListContentResponse(info=found)

    def Read(  # noqa: N802 - the protocol's name
        self, request: content_pb2.ReadContentRequest, context: grpc.ServicerContext
    ) -> Iterator[content_pb2.ReadContentResponse]:
        """Stream a blob or a part of it."""
        _, store = self._store(context)
        path = store.path(request.digest)
        if path is None or not path.is_file():
            _abort(context, grpc.StatusCode.NOT_FOUND, f"content {request.digest}: not found")
        with path.open("rb") as file:
            file.seek(request.offset)
            at, left = request.offset, request.size or path.stat().st_size - request.offset
            while left > 0 and (data := file.read(min(_CHUNK, left))):
                yield content_pb2.ReadContentResponse(offset=at, data=data)
                at, left = at + len(data), left - len(data)

    def Status(  # noqa: N802 - the protocol's name
        self, request: content_pb2.StatusRequest, context: grpc.ServicerContext
    ) -> content_pb2.StatusResponse:
        """Return how far a write got."""
        name, _ = self._store(context)
        with self._lock:
            ingest = self._ingests.get((name, request.ref))
        if ingest is None:
            _abort(context, grpc.StatusCode.NOT_FOUND, f"ingest {request.ref}: not found")
        status = content_pb2.Status(ref=request.ref, offset=ingest.offset, total=ingest.total)
        return content_pb2.StatusResponse(status=status)

    def ListStatuses(  # noqa: N802 - the protocol's name
        self, request: content_pb2.ListStatusesRequest, context: grpc.ServicerContext
    ) -> content_pb2.ListStatusesResponse:
        """List writes under way."""
        del request
        name, _ = self._store(context)
        with self._lock:
            found = [
                content_pb2.Status(ref=ref, offset=i.offset, total=i.total)
                for (store, ref), i in self._ingests.items()
                if store == name
            ]
        return content_pb2.ListStatusesResponse(statuses=found)

    def Write(  # noqa: N802 - the protocol's name
        self, request_iterator: Iterator[content_pb2.WriteContentRequest], context: grpc.ServicerContext
    ) -> Iterator[content_pb2.WriteContentResponse]:
        """Write one blob; it appears under its digest only when complete and verified."""
        name, store = self._store(context)
        if not store.writable:
            _abort(context, grpc.StatusCode.PERMISSION_DENIED, f"store {name} is read-only")
        ref, ingest = "", None
        try:
            for request in request_iterator:
                if not ref:
                    ref = request.ref
                    self._refuse_existing(store, request.expected, context)
                    ingest = _Ingest(store)
                    with self._lock:
                        self._ingests[name, ref] = ingest
                if ingest is None:
                    break
                yield self._step(store, ingest, request, context)
                if request.action == content_pb2.COMMIT:
                    ingest = None
                    return
        except OSError as exc:
            _abort(context, grpc.StatusCode.INTERNAL, f"{store.root}: {exc.strerror}")
        finally:
            with self._lock:
                self._ingests.pop((name, ref), None)
            if ingest is not None:
                ingest.discard()

    def _step(
        self,
        store: LayoutStore,
        ingest: _Ingest,
        request: content_pb2.WriteContentRequest,
        context: grpc.ServicerContext,
    ) -> content_pb2.WriteContentResponse:
        ingest.total = request.total or ingest.total
        if request.data:
            if request.offset != ingest.offset:
                _abort(
                    context,
                    grpc.StatusCode.OUT_OF_RANGE,
                    f"write at {request.offset}, expected {ingest.offset}",
                )
            ingest.write(request.data)
        digest = f"sha256:{ingest.hash.hexdigest()}"
        if request.action == content_pb2.COMMIT:
            if (request.expected and request.expected != digest) or (
                request.total and request.total != ingest.offset
            ):
                text = (
                    f"expected {request.expected} of {request.total} bytes, got {digest} of {ingest.offset}"
                )
                _abort(context, grpc.StatusCode.FAILED_PRECONDITION, text)
            _commit(store, ingest, digest)
        return content_pb2.WriteContentResponse(
            action=request.action, offset=ingest.offset, total=ingest.total, digest=digest
        )

    def _refuse_existing(self, store: LayoutStore, expected: str, context: grpc.ServicerContext) -> None:
        path = store.path(expected) if expected else None
        if path is not None and path.exists():
            _abort(context, grpc.StatusCode.ALREADY_EXISTS, f"content {expected}: already exists")

    def _store(self, context: grpc.ServicerContext) -> tuple[str, LayoutStore]:
        metadata = dict(context.invocation_metadata())
        name = metadata.get("buildkit-attachable-store-id", "")
        text = name.decode() if isinstance(name, bytes) else name
        store = self._stores.get(text)
        if store is None:
            _abort(context, grpc.StatusCode.NOT_FOUND, f"unknown store {text}")
        return text, store

    def _info(self, store: LayoutStore, digest: str, context: grpc.ServicerContext) -> content_pb2.Info:
        path = store.path(digest)
        try:
            found = path.stat() if path is not None else None
        except OSError:
            found = None
        if found is None:
            _abort(context, grpc.StatusCode.NOT_FOUND, f"content {digest}: not found")
        info = content_pb2.Info(digest=digest, size=found.st_size)
        info.created_at.FromNanoseconds(found.st_mtime_ns)
        info.updated_at.FromNanoseconds(found.st_mtime_ns)
        return info


def _commit(store: LayoutStore, ingest: _Ingest, digest: str) -> None:
    ingest.file.flush()
    os.fsync(ingest.file.fileno())
    ingest.file.close()
    path = store.path(digest)
    if path is None:
        raise OSError(0, f"bad digest {digest}")
    path.parent.mkdir(parents=True, exist_ok=True)
    ingest.path.rename(path)
    with contextlib.suppress(OSError):
        ingest.dir.rmdir()


def _abort(context: grpc.ServicerContext, code: grpc.StatusCode, text: str) -> NoReturn:
    context.abort(code, text)
