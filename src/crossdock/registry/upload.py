"""Blob uploads: existence check, mount from another repository, or sending the bytes.

Bytes go in one ``PUT``. When that breaks, the registry is asked how far it got: one that answers gets the rest,
one that does not (distribution drops a session that broke) gets a new upload.

Spec: distribution-spec 1.1 "Pushing blobs", "Mounting a blob from another repository".
"""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING

from crossdock.errors import DigestMismatch, InternalError, RegistryError
from crossdock.registry.exchange import RedirectRefused
from crossdock.registry.failures import protocol_error
from crossdock.registry.http1 import StreamBody
from crossdock.registry.session import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import BinaryIO

    from crossdock.cancel import CancelToken
    from crossdock.image.descriptor import Descriptor
    from crossdock.image.reference import Reference
    from crossdock.registry.config import Endpoint
    from crossdock.registry.http1 import Response
    from crossdock.registry.session import Session

__all__ = ["PushOutcome", "Upload"]

_ATTEMPTS = 5
_BLOCK = 1024 * 1024
_MOUNTS_TRIED = 3
#: seconds a registry may take to store a blob once it has all of it
_COMMIT_IDLE_S = 300.0
_RANGE = r"(?:bytes=)?0-(\d+)\Z"


class PushOutcome(enum.Enum):
    """How a blob came to be in the repository."""

    EXISTS = "exists"
    MOUNTED = "mounted"
    UPLOADED = "uploaded"


class Upload:
    """One blob's way into a repository. Used once, by one thread."""

    def __init__(
        self,
        session: Session,
        endpoint: Endpoint,
        ref: Reference,
        blob: Descriptor,
        open_at: Callable[[int], BinaryIO],
        *,
        insecure: bool,
        cancel: CancelToken,
    ) -> None:
        self._session = session
        self._endpoint = endpoint
        self._ref = ref
        self._blob = blob
        self._open_at = open_at
        self._insecure = insecure
        self._cancel = cancel
        self._progress: Callable[[int], None] | None = None
        self._scopes: tuple[str, ...] = (f"repository:{ref.path}:pull,push",)

    def run(
        self, mount_from: Sequence[str], progress: Callable[[int], None] | None, *, ask: bool
    ) -> PushOutcome:
        """Do it; see ``RegistryClient.push_blob``."""
        self._progress = progress
        base = f"{self._endpoint.prefix}/{self._ref.path}/blobs"
        if ask:
            head = self._send("HEAD", f"{base}/{self._blob.digest}", (200, 404))
            head.discard()
            if head.status == 200:
                return PushOutcome.EXISTS
        location = self._mount(base, mount_from)
        if location is None:
            return PushOutcome.MOUNTED
        with self._session.transfer_slot(self._endpoint, "push", self._cancel):
            self._upload(base, location)
        return PushOutcome.UPLOADED

    def _mount(self, base: str, mount_from: Sequence[str]) -> str | None:
        """Try to mount; returns the location of the upload begun instead, ``""`` without one, ``None`` if mounted."""
        location = ""
        for source in list(filter(None, map(self._own_path, mount_from)))[:_MOUNTS_TRIED]:
            if location:
                self._abandon(location)
            target = f"{base}/uploads/?mount={self._blob.digest}&from={source}"
            scopes = (*self._scopes, f"repository:{source}:pull")
            try:
                response = self._send("POST", target, (201, 202), scopes=scopes)
            except RegistryError as exc:
                if exc.status is None or exc.status == 429 or exc.status >= 500:
                    raise
                location = ""  # not allowed to read there, or the registry has no mounts: send the bytes
                continue
            response.discard()
            if response.status == 201:
                return None
            location = self._location(response)
        return location

    def _upload(self, base: str, location: str) -> None:
        offset, failures, furthest = 0, 0, 0
        while True:
            if not location:
                location, offset = self._begin(base), 0
            try:
                self._finish(location, offset)
            except RegistryError as exc:
                failures += 1
                self._judge(exc, failures)
                self._cancel.sleep(self._session.exchange.retry.pause(failures))
            else:
                return
            location, offset = self._where(location)
            if offset > furthest:
                furthest, failures = offset, 0

    def _judge(self, exc: RegistryError, failures: int) -> None:
        """Re-raise the error of a failed attempt when another one cannot mend it."""
        lost = exc.status in (404, 416) or (exc.status == 400 and "BLOB_UPLOAD_INVALID" in exc.codes)
        if "DIGEST_INVALID" in exc.codes:
            summary = f"blob {self._blob.digest}: {self._endpoint.domain} received something else"
            raise DigestMismatch(
                summary,
                detail=exc.detail,
                hint="the content was damaged on its way or in the local store: `crossdock prune` and build again",
            ) from exc
        broken = exc.status is None or exc.status in (408, 429, 499) or exc.status >= 500
        if failures >= _ATTEMPTS or not (broken or lost) or (exc.status is None and not exc.retryable):
            raise exc

    def _begin(self, base: str) -> str:
        response = self._send("POST", f"{base}/uploads/", (202,))
        response.discard()
        return self._location(response)

    def _finish(self, location: str, offset: int) -> None:
        """Send what is missing and close the upload."""
        size = self._blob.size
        if 0 < offset < size:
            # The specification's way to go on: a chunk that says where it belongs, then the closing PUT.
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Range": f"{offset}-{size - 1}",
            }
            response = self._stream("PATCH", location, offset, headers, (202, 204))
            location, offset = self._location(response), size
        target = location + ("&" if "?" in location else "?") + f"digest={self._blob.digest}"
        headers = {"Content-Type": "application/octet-stream"}
        if offset >= size > 0:
            response = self._send("PUT", target, (201, 204), repeatable=False, idle_s=_COMMIT_IDLE_S)
        else:
            response = self._stream("PUT", target, 0, headers, (201, 204))
        response.discard()
        stored = response.header("docker-content-digest")
        if stored and stored != self._blob.digest:
            summary = f"blob {self._blob.digest}: {self._endpoint.domain} stored {stored} instead"
            raise DigestMismatch(summary, hint="a proxy on the way may change requests; push again")

    def _stream(
        self, method: str, target: str, offset: int, headers: dict[str, str], wanted: tuple[int, ...]
    ) -> Response:
        request = Request(
            method,
            self._endpoint,
            target,
            self._subject,
            self._scopes,
            headers,
            lambda: StreamBody(self._blob.size - offset, self._blocks(offset)),
            "push",
            repeatable=False,
            idle_s=_COMMIT_IDLE_S,
        )
        return self._session.send(request, wanted, insecure=self._insecure, cancel=self._cancel)

    def _blocks(self, offset: int) -> Iterator[memoryview]:
        at = offset
        buffer = bytearray(min(_BLOCK, max(1, self._blob.size - offset)))
        view = memoryview(buffer)
        with self._open_at(offset) as stream:
            while at < self._blob.size:
                n = _read_into(stream, view[: min(len(view), self._blob.size - at)])
                if n == 0:
                    summary = f"blob {self._blob.digest} ends at {at} of {self._blob.size} bytes"
                    raise InternalError(
                        summary, hint="the local store is damaged: `crossdock prune` and build again"
                    )
                yield view[:n]
                at += n
                if self._progress is not None:
                    self._progress(at)

    def _where(self, location: str) -> tuple[str, int]:
        """Ask how much of a broken upload arrived; no location when it cannot be gone on with."""
        try:
            response = self._send("GET", location, (200, 204))
        except RegistryError as exc:
            if exc.status is None and not exc.retryable:
                raise
            return "", 0
        response.discard()
        match = re.match(_RANGE, response.header("range"))
        offset = int(match[1]) + 1 if match else 0
        if offset > self._blob.size or not response.header("location"):
            self._abandon(location)
            return "", 0
        # "0-0" is said both of one byte and of none; beginning anew costs nothing then.
        if offset <= 1:
            self._abandon(location)
            return "", 0
        return self._location(response), offset

    def _abandon(self, location: str) -> None:
        """Tell the registry that an upload will not be finished, if it cares to know."""
        try:
            self._send("DELETE", location, (200, 202, 204, 404, 405), repeatable=False).discard()
        except RegistryError:
            return  # it will time the upload out by itself

    def _location(self, response: Response) -> str:
        location = response.header("location")
        if not location:
            request = self._request("POST", response.url, self._scopes)
            raise protocol_error(self._session.asked(request), "began an upload without saying where")
        try:
            return self._session.exchange.relative(self._endpoint, location, response.url)
        except RedirectRefused as exc:
            request = self._request("POST", response.url, self._scopes)
            raise protocol_error(self._session.asked(request), f"began an upload nowhere: {exc}") from exc

    def _own_path(self, repository: str) -> str:
        """Return the path of a repository of the same registry, ``""`` for others and the target itself."""
        domain, slash, path = repository.partition("/")
        if slash and domain == self._ref.domain:
            repository = path
        elif slash and ("." in domain or ":" in domain or domain == "localhost"):
            return ""
        return "" if repository == self._ref.path else repository

    @property
    def _subject(self) -> str:
        return f"blob {self._blob.digest} to {self._ref.repository}"

    def _request(self, method: str, target: str, scopes: tuple[str, ...]) -> Request:
        return Request(method, self._endpoint, target, self._subject, scopes, action="push")

    def _send(
        self,
        method: str,
        target: str,
        wanted: tuple[int, ...],
        *,
        scopes: tuple[str, ...] | None = None,
        repeatable: bool = True,
        idle_s: float | None = None,
    ) -> Response:
        request = self._request(method, target, self._scopes if scopes is None else scopes)
        request = request._replace(repeatable=repeatable, idle_s=idle_s)
        return self._session.send(request, wanted, insecure=self._insecure, cancel=self._cancel)


def _read_into(stream: BinaryIO, view: memoryview) -> int:
    readinto = getattr(stream, "readinto", None)
    if readinto is not None:
        return int(readinto(view) or 0)
    data = stream.read(len(view))
    view[: len(data)] = data
    return len(data)
