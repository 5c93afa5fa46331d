"""Blob downloads: a stream that is verified as it flows and goes on after a cut.

Spec: RFC 9110 section 14 (Range); distribution-spec 1.1 "Pulling blobs".
"""

from __future__ import annotations

import io
import re
from contextlib import ExitStack
from typing import TYPE_CHECKING

from crossdock.errors import CrossdockError, DigestMismatch, RegistryError
from crossdock.hashing import new
from crossdock.registry.failures import digest_mismatch, protocol_error

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from crossdock.cancel import CancelToken
    from crossdock.image.descriptor import Descriptor
    from crossdock.registry.http1 import Response
    from crossdock.registry.session import Request, Session

__all__ = ["BlobReader"]

_ATTEMPTS = 5
_SKIP = 256 * 1024
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(?:\d+|\*)\Z")


class BlobReader(io.RawIOBase):
    """The bytes of one blob; the last of them are given out only when the digest fits.

    For one thread. ``read(n)`` gives exactly ``n`` bytes except at the end.
    Raises on reading: DigestMismatch; RegistryError after five failures in a row without a byte between
    them; the token's cause when cancelled.
    """

    def __init__(
        self, session: Session, request: Request, blob: Descriptor, *, insecure: bool, cancel: CancelToken
    ) -> None:
        """Send the request.

        Raises: NotFoundError, AuthError, RegistryError; the token's cause.
        """
        super().__init__()
        self._session = session
        self._request = request
        self._blob = blob
        self._insecure = insecure
        self._cancel = cancel
        self._hash = new(blob.digest.partition(":")[0])
        self._offset = 0
        self._failures = 0
        self._done = False
        self._response: Response | None = None
        self._broken: CrossdockError | None = None
        with ExitStack() as stack:
            stack.enter_context(session.transfer_slot(request.endpoint, "pull", cancel))
            self._connect()
            self._held = stack.pop_all()

    @property
    def size(self) -> int:
        """Size of the whole blob in bytes."""
        return self._blob.size

    def readable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return how many bytes were received."""
        return self._offset

    def read(self, size: int = -1, /) -> bytes:
        """Read exactly ``size`` bytes, or fewer at the end; all of them when negative."""
        left = self._blob.size - self._offset
        buffer = bytearray(left if size < 0 else min(size, left))
        n = self.readinto(buffer)
        if n == 0:
            return b""
        return bytes(buffer) if n == len(buffer) else bytes(buffer[:n])

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill ``buffer``; less only at the end of the blob."""
        if self._broken is not None:
            raise self._broken
        view = memoryview(buffer).cast("B")
        got = 0
        while got < len(view) and self._offset < self._blob.size:
            n = self._receive(view[got:])
            self._hash.update(view[got : got + n])
            self._offset += n
            got += n
        if self._offset == self._blob.size and not self._done:
            self._verify()
        return got

    def close(self) -> None:
        """Give back connection and transfer slot; idempotent. A download not read to its end is given up."""
        if not self.closed:
            response, self._response = self._response, None
            if response is not None:
                response.close()
            held = getattr(self, "_held", None)
            if held is not None:
                held.close()
        super().close()

    def _receive(self, view: memoryview) -> int:
        """Read at least one byte, connecting again when the stream breaks."""
        while True:
            self._cancel.check()
            try:
                if self._response is None:
                    self._connect()
                if self._response is not None:
                    want = min(len(view), self._blob.size - self._offset)
                    n = self._response.readinto(view[:want])
                    if n:
                        self._failures = 0
                        return n
                    reason = "it ended too early"
                else:
                    reason = "no answer"
            except OSError as exc:
                reason = exc.strerror or str(exc)
            self._cut(reason)

    def _cut(self, reason: str) -> None:
        """Note a broken stream; raise when it has broken too often."""
        self._cancel.check()
        if self._response is not None:
            self._response.close()
            self._response = None
        self._failures += 1
        if self._failures >= _ATTEMPTS:
            asked = self._session.asked(self._request)
            error = RegistryError(
                f"{asked.subject}: the download from {asked.endpoint.address} broke at "
                f"{self._offset} of {self._blob.size} bytes: {reason}",
                host=asked.host,
                method="GET",
                hint="the registry keeps breaking off; try again later",
                retryable=True,
            )
            self._broken = error
            raise error
        self._cancel.sleep(self._session.exchange.retry.pause(self._failures))

    def _connect(self) -> None:
        """Ask for the rest of the blob."""
        request = self._request
        if self._offset:
            request = request._replace(headers={**request.headers, "Range": f"bytes={self._offset}-"})
        response = self._session.send(request, (200, 206, 416), insecure=self._insecure, cancel=self._cancel)
        try:
            self._align(response)
        except BaseException:
            response.close()
            raise
        self._response = response

    def _align(self, response: Response) -> None:
        """Check that an answer has the right length, and bring it to the current offset."""
        length, size = response.content_length, self._blob.size
        if response.status == 416:
            # Registries differ in whether the end of a blob can be asked for; the offset is below its size.
            self._mismatch(f"fewer than {self._offset + 1} bytes")
        if response.status == 206:
            match = _CONTENT_RANGE.match(response.header("content-range"))
            if match is None or int(match[1]) != self._offset:
                why = "answered a request for a part of a blob with another part"
                raise protocol_error(self._session.asked(self._request), why, status=206)
            return
        if length is not None and length != size:
            self._mismatch(f"{length} bytes")
        skip = memoryview(bytearray(min(_SKIP, self._offset)))
        left = self._offset
        while left:
            n = response.readinto(skip[: min(left, len(skip))])
            if n == 0:
                self._mismatch(f"fewer than {self._offset + 1} bytes")
            left -= n

    def _verify(self) -> None:
        self._done = True
        actual = f"{self._blob.digest.partition(':')[0]}:{self._hash.hexdigest()}"
        if actual != self._blob.digest:
            self._mismatch(actual)
        response = self._response
        if response is None:
            return
        try:
            more = response.readinto(memoryview(bytearray(1)))
        except OSError:
            more = 0  # all that was wanted is here and verified
        if more:
            self._mismatch(f"more than {self._blob.size} bytes")
        response.close()
        self._response = None

    def _mismatch(self, actual: str) -> None:
        expected = self._blob.digest if ":" in actual else f"{self._blob.size} bytes"
        error: DigestMismatch = digest_mismatch(
            self._request.subject, self._request.endpoint.address, expected=expected, actual=actual
        )
        self._broken = error
        raise error
