"""Session service ``Content``: OCI layouts read and written by the daemon.

Stores are named by metadata: ``oci:<id>`` for layouts given as contexts, ``local:<dir>`` for local caches, ``export``
for an OCI output directory.

Spec: containerd ``api/services/content/v1/content.proto``; image-spec ``image-layout.md``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import threading
from typing import TYPE_CHECKING, BinaryIO

from crossdock.buildkit.proto import content_pb2
from crossdock.buildkit.rpc.serve import unary
from crossdock.buildkit.rpc.status import (
    ALREADY_EXISTS,
    FAILED_PRECONDITION,
    INTERNAL,
    NOT_FOUND,
    OUT_OF_RANGE,
    PERMISSION_DENIED,
    RpcError,
)
from crossdock.buildkit.session.layout import DIGEST, LayoutStore

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossdock.buildkit.rpc.serve import Handler, ServerCall

__all__ = ["ContentStores"]

_CHUNK = 1 << 20
_ATTEMPTS = 100


class _Ingest:
    """One blob being written."""

    def __init__(self, store: LayoutStore) -> None:
        self.dir = store.root / "ingest"
        self.path = self.dir / secrets.token_hex(8)
        self.file = self._open()
        self.hash = hashlib.sha256()
        self.offset = 0
        self.total = 0

    def _open(self) -> BinaryIO:
        attempts = 0
        while True:
            try:
                self.dir.mkdir(parents=True, exist_ok=True)
                return self.path.open("wb")
            except (FileNotFoundError, FileExistsError):
                # Another that writes to this layout has removed the empty folder: before the file was made, or
                # between "it exists" and a look at what it is.
                attempts += 1
                if attempts == _ATTEMPTS:
                    raise

    def write(self, data: bytes) -> None:
        self.file.write(data)
        self.hash.update(data)
        self.offset += len(data)

    def discard(self) -> None:
        self.file.close()
        self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.dir.rmdir()


class ContentStores:
    """Serves several layouts by name."""

    def __init__(self, stores: Mapping[str, LayoutStore]) -> None:
        self._stores = dict(stores)
        # Guards _ingests.
        self._lock = threading.Lock()
        self._ingests: dict[tuple[str, str], _Ingest] = {}

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The service's methods; blobs are neither deleted nor are writes aborted from outside."""
        service = "/containerd.services.content.v1.Content/"
        return {
            f"{service}Info": unary(content_pb2.InfoRequest, self._get_info),
            f"{service}Update": unary(content_pb2.UpdateRequest, self._update),
            f"{service}List": self._list,
            f"{service}Read": self._read,
            f"{service}Status": unary(content_pb2.StatusRequest, self._status),
            f"{service}ListStatuses": unary(content_pb2.ListStatusesRequest, self._statuses),
            f"{service}Write": self._write,
        }

    def _get_info(self, request: content_pb2.InfoRequest, call: ServerCall) -> content_pb2.InfoResponse:
        """Return size and time of a blob."""
        return content_pb2.InfoResponse(info=self._info(self._store(call)[1], request.digest))

    def _update(self, request: content_pb2.UpdateRequest, call: ServerCall) -> content_pb2.UpdateResponse:
        """Accept labels, which a layout has no place for."""
        info = self._info(self._store(call)[1], request.info.digest)
        info.labels.update(request.info.labels)
        return content_pb2.UpdateResponse(info=info)

    def _list(self, call: ServerCall) -> None:
        """List all blobs."""
        _, store = self._store(call)
        blobs = store.root / "blobs"
        found = [
            self._info(store, f"{path.parent.name}:{path.name}")
            for path in sorted(blobs.glob("*/*"))
            if DIGEST.match(f"{path.parent.name}:{path.name}")
        ]
        if found:
            call.send(content_pb2.ListContentResponse(info=found).SerializeToString())

    def _read(self, call: ServerCall) -> None:
        """Stream a blob or a part of it."""
        request = content_pb2.ReadContentRequest.FromString(next(call.messages(), b""))
        _, store = self._store(call)
        path = store.path(request.digest)
        if path is None or not path.is_file():
            raise RpcError(NOT_FOUND, f"content {request.digest}: not found")
        with path.open("rb") as file:
            file.seek(request.offset)
            at, left = request.offset, request.size or path.stat().st_size - request.offset
            while left > 0 and (data := file.read(min(_CHUNK, left))):
                call.send(content_pb2.ReadContentResponse(offset=at, data=data).SerializeToString())
                at, left = at + len(data), left - len(data)

    def _status(self, request: content_pb2.StatusRequest, call: ServerCall) -> content_pb2.StatusResponse:
        """Return how far a write got."""
        name, _ = self._store(call)
        with self._lock:
            ingest = self._ingests.get((name, request.ref))
        if ingest is None:
            raise RpcError(NOT_FOUND, f"ingest {request.ref}: not found")
        status = content_pb2.Status(ref=request.ref, offset=ingest.offset, total=ingest.total)
        return content_pb2.StatusResponse(status=status)

    def _statuses(
        self, request: content_pb2.ListStatusesRequest, call: ServerCall
    ) -> content_pb2.ListStatusesResponse:
        """List writes under way."""
        del request
        name, _ = self._store(call)
        with self._lock:
            found = [
                content_pb2.Status(ref=ref, offset=i.offset, total=i.total)
                for (store, ref), i in self._ingests.items()
                if store == name
            ]
        return content_pb2.ListStatusesResponse(statuses=found)

    def _write(self, call: ServerCall) -> None:
        """Write one blob; it appears under its digest only when complete and verified."""
        name, store = self._store(call)
        if not store.writable:
            raise RpcError(PERMISSION_DENIED, f"store {name} is read-only")
        ref, ingest = "", None
        try:
            for raw in call.messages():
                request = content_pb2.WriteContentRequest.FromString(raw)
                if not ref:
                    ref = request.ref
                    self._refuse_existing(store, request.expected)
                    ingest = _Ingest(store)
                    with self._lock:
                        self._ingests[name, ref] = ingest
                if ingest is None:
                    break
                call.send(_step(store, ingest, request).SerializeToString())
                if request.action == content_pb2.COMMIT:
                    ingest = None
                    return
        except OSError as exc:
            raise RpcError(INTERNAL, f"{store.root}: {exc.strerror}") from exc
        finally:
            with self._lock:
                self._ingests.pop((name, ref), None)
            if ingest is not None:
                ingest.discard()

    def _refuse_existing(self, store: LayoutStore, expected: str) -> None:
        path = store.path(expected) if expected else None
        if path is not None and path.exists():
            raise RpcError(ALREADY_EXISTS, f"content {expected}: already exists")

    def _store(self, call: ServerCall) -> tuple[str, LayoutStore]:
        text = next(iter(call.metadata("buildkit-attachable-store-id")), "")
        store = self._stores.get(text)
        if store is None:
            raise RpcError(NOT_FOUND, f"unknown store {text}")
        return text, store

    def _info(self, store: LayoutStore, digest: str) -> content_pb2.Info:
        path = store.path(digest)
        try:
            found = path.stat() if path is not None else None
        except OSError:
            found = None
        if found is None:
            raise RpcError(NOT_FOUND, f"content {digest}: not found")
        info = content_pb2.Info(digest=digest, size=found.st_size)
        info.created_at.FromNanoseconds(found.st_mtime_ns)
        info.updated_at.FromNanoseconds(found.st_mtime_ns)
        return info


def _step(
    store: LayoutStore, ingest: _Ingest, request: content_pb2.WriteContentRequest
) -> content_pb2.WriteContentResponse:
    ingest.total = request.total or ingest.total
    if request.data:
        if request.offset != ingest.offset:
            raise RpcError(
                OUT_OF_RANGE,
                f"write at {request.offset}, expected {ingest.offset}",
            )
        ingest.write(request.data)
    digest = f"sha256:{ingest.hash.hexdigest()}"
    if request.action == content_pb2.COMMIT:
        if (request.expected and request.expected != digest) or (
            request.total and request.total != ingest.offset
        ):
            text = f"expected {request.expected} of {request.total} bytes, got {digest} of {ingest.offset}"
            raise RpcError(FAILED_PRECONDITION, text)
        _commit(store, ingest, digest)
    return content_pb2.WriteContentResponse(
        action=request.action, offset=ingest.offset, total=ingest.total, digest=digest
    )


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
