"""The registry client: manifests and blobs of any registry, by reference.

One client serves a whole process: connections, tokens and what is known of hosts are shared by its
:meth:`~RegistryClient.scoped` views.

Spec: distribution-spec 1.1; docker registry HTTP API V2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from crossdock.errors import ConfigError, DigestMismatch, NotFoundError, RegistryError
from crossdock.hashing import new
from crossdock.image.descriptor import Descriptor
from crossdock.image.digest import Digest, parse_digest
from crossdock.image.mediatypes import DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from crossdock.record import NamedTuple
from crossdock.registry.exchange import Exchange
from crossdock.registry.http1 import BodyTooLarge
from crossdock.registry.session import Request, Session
from crossdock.registry.transport import Transport

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from typing import BinaryIO

    from crossdock.cancel import CancelToken
    from crossdock.image.reference import Reference
    from crossdock.registry.config import Endpoint, RegistryConfig
    from crossdock.registry.credentials import Credentials
    from crossdock.registry.download import BlobReader
    from crossdock.registry.exchange import RetryPolicy
    from crossdock.registry.http1 import Response
    from crossdock.registry.listing import Referrers
    from crossdock.registry.transport import Timeouts
    from crossdock.registry.upload import PushOutcome

__all__ = ["MAX_MANIFEST", "RegistryClient", "Tagged"]

#: bytes; what docker and containerd accept at most
MAX_MANIFEST = 4 * 1024 * 1024
_MANIFEST_ACCEPT = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST, "*/*"))

_READ_ATTEMPTS = 3

_T = TypeVar("_T")


class Tagged(NamedTuple):
    """A manifest as a registry gave it."""

    descriptor: Descriptor
    raw: bytes
    #: the entity tag, ``""`` when the registry gave none
    etag: str


class RegistryClient:
    """Talks to registries. Cheap to construct, safe from any thread."""

    def __init__(
        self,
        *,
        config: RegistryConfig,
        credentials: Credentials,
        cancel: CancelToken,
        insecure: bool = False,
        timeouts: Timeouts | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        """``insecure``: certificates are not verified and plain HTTP is accepted (``registry.insecure``)."""
        self._session = Session(Exchange(Transport(timeouts=timeouts), config, retry=retry), credentials)
        self._config = config
        self._cancel = cancel
        self._insecure = insecure

    def scoped(self, *, insecure: bool | None = None, cancel: CancelToken | None = None) -> RegistryClient:
        """Return a view with other settings that shares connections, tokens and limits."""
        view = object.__new__(RegistryClient)
        view._session = self._session
        view._config = self._config
        view._cancel = self._cancel if cancel is None else cancel
        view._insecure = self._insecure if insecure is None else insecure
        return view

    def close(self) -> None:
        """Close idle connections; the client stays usable."""
        self._session.exchange.transport.close()

    # -- manifests ---------------------------------------------------------------------------------

    def head_manifest(self, ref: Reference) -> Descriptor | None:
        """Return what ``ref`` names now, by one request; ``None`` when nothing, or when HEAD does not tell.

        Asks the registry itself, never a mirror: made for finding out whether a push is needed.
        Raises: AuthError, RegistryError; the token's cause.
        """
        endpoint = self._config.endpoints(ref.domain, pull=False, insecure=self._insecure)[-1]
        response = self._send(self._manifest("HEAD", endpoint, ref), (200, 404, 405))
        response.discard()
        return _described(response, ref) if response.status == 200 else None

    def resolve(self, ref: Reference) -> Descriptor:
        """Return the descriptor of the manifest or index that ``ref`` names (tag ``latest`` by default).

        Raises: NotFoundError, AuthError, RegistryError; DigestMismatch; the token's cause.
        """
        return self._from_first(ref, lambda endpoint: self._resolve_at(endpoint, ref))

    def fetch_manifest(self, ref: Reference) -> tuple[Descriptor, bytes]:
        """Return a manifest or index with its descriptor; verified when the reference has a digest.

        Raises: NotFoundError, AuthError, RegistryError; DigestMismatch; the token's cause.
        """
        return self._from_first(ref, lambda endpoint: self._fetch_at(endpoint, ref))

    def read_tag(self, ref: Reference) -> Tagged | None:
        """Return what ``ref`` leads to in the registry itself, never a mirror; ``None`` when nothing does.

        Made for replacing it: see ``instead_of`` of :meth:`push_manifest`.
        Raises: AuthError, RegistryError; DigestMismatch; the token's cause.
        """
        endpoint = self._config.endpoints(ref.domain, pull=False, insecure=self._insecure)[-1]
        try:
            return self._read_at(endpoint, ref)
        except NotFoundError:
            return None

    def push_manifest(
        self, ref: Reference, descriptor: Descriptor, raw: bytes, *, instead_of: Tagged | None = None
    ) -> None:
        """Store a manifest under the reference's digest, else its tag.

        ``instead_of`` asks the registry to store it only if the tag still leads there (``If-Match``); one that does not
        know conditions stores it anyway, one that does fails with status 412.
        The error of a registry that lacks a part has code ``MANIFEST_BLOB_UNKNOWN`` or ``MANIFEST_UNKNOWN``.
        Raises: AuthError, NotFoundError, RegistryError; DigestMismatch; the token's cause.
        """
        endpoint = self._config.endpoints(ref.domain, pull=False, insecure=self._insecure)[-1]
        condition = {"If-Match": instead_of.etag} if instead_of is not None and instead_of.etag else {}
        request = self._manifest("PUT", endpoint, ref)._replace(
            headers={"Content-Type": descriptor.media_type, **condition},
            body=raw,
            scopes=(_scope(ref.path, "pull,push"),),
            action="push",
        )
        response = self._send(request, (200, 201, 202))
        response.discard()
        stored = response.header("docker-content-digest")
        if stored and stored != descriptor.digest:
            summary = f"{ref}: {ref.domain} stored something else than was sent"
            raise DigestMismatch(
                summary,
                detail=f"sent:   {descriptor.digest}\nstored: {stored}",
                hint="a proxy on the way may change requests; push again",
            )

    def delete_manifest(self, ref: Reference) -> None:
        """Delete the manifest with the reference's digest, or its tag where the registry allows that.

        Raises: NotFoundError, AuthError, RegistryError; the token's cause.
        """
        endpoint = self._config.endpoints(ref.domain, pull=False, insecure=self._insecure)[-1]
        request = self._manifest("DELETE", endpoint, ref)._replace(
            scopes=(_scope(ref.path, "delete,pull,push"),), action="delete"
        )
        self._send(request, (200, 202)).discard()

    # -- blobs -------------------------------------------------------------------------------------

    def open_blob(self, ref: Reference, blob: Descriptor) -> BlobReader:
        """Start a download; the reader verifies size and digest, and goes on after a cut.

        Holds one of the registry's four transfer slots until it is closed. Close it.
        Raises: NotFoundError, AuthError, RegistryError; the token's cause.
        """
        from crossdock.registry.download import BlobReader  # a cached build reads no blob

        def start(endpoint: Endpoint) -> BlobReader:
            request = self._blob("GET", endpoint, ref, blob.digest)
            return BlobReader(self._session, request, blob, insecure=self._insecure, cancel=self._cancel)

        return self._from_first(ref, start)

    def fetch_blob(self, ref: Reference, blob: Descriptor, *, limit: int = MAX_MANIFEST) -> bytes:
        """Return a small blob whole, such as an image config; ``limit`` in bytes.

        Raises: as :meth:`open_blob`; DigestMismatch.
        """
        if blob.size > limit:
            msg = (
                f"{blob.digest} of {ref.repository} is {blob.size} bytes long, more than the {limit} allowed"
            )
            raise RegistryError(msg, host=ref.domain, hint="the image is malformed: push it anew")
        with self.open_blob(ref, blob) as reader:
            return reader.read()

    def blob_exists(self, ref: Reference, digest: Digest) -> bool:
        """Whether the repository has a blob; asks the registry itself, never a mirror.

        Raises: AuthError, RegistryError; the token's cause.
        """
        return self.blob_size(ref, digest) is not None

    def blob_size(self, ref: Reference, digest: Digest) -> int | None:
        """Return the bytes of a blob, 0 when the registry does not tell, ``None`` when the repository has it not.

        Raises: AuthError, RegistryError; the token's cause.
        """
        endpoint = self._config.endpoints(ref.domain, pull=False, insecure=self._insecure)[-1]
        response = self._send(self._blob("HEAD", endpoint, ref, digest), (200, 404))
        response.discard()
        length = response.header("content-length")
        if response.status != 200:
            return None
        return int(length) if length.isdecimal() else 0

    def push_blob(
        self,
        ref: Reference,
        blob: Descriptor,
        open_at: Callable[[int], BinaryIO],
        *,
        mount_from: Sequence[str] = (),
        ask: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> PushOutcome:
        """Have the repository hold a blob, sending it only when there is no other way.

        ``open_at(offset)`` gives the content from an offset on, and may be called again after a failure; what
        it returns is closed. ``mount_from`` are repositories (``path`` or ``domain/path``) likely to have the
        blob; those of other registries are ignored. Without ``ask`` it is not asked first whether the registry has the
        blob: for what is new and small. ``progress`` gets the bytes sent so far; it may step back.
        Raises: AuthError, NotFoundError, RegistryError; DigestMismatch; the token's cause.
        """
        from crossdock.registry.upload import Upload  # a cached build sends no blob

        endpoint = self._config.endpoints(ref.domain, pull=False, insecure=self._insecure)[-1]
        upload = Upload(
            self._session, endpoint, ref, blob, open_at, insecure=self._insecure, cancel=self._cancel
        )
        return upload.run(mount_from, progress, ask=ask)

    # -- lists -------------------------------------------------------------------------------------

    def list_tags(self, ref: Reference) -> list[str]:
        """Return the tags of the reference's repository, in the registry's order.

        Raises: NotFoundError, AuthError, RegistryError; the token's cause.
        """
        from crossdock.registry.listing import list_tags  # cold path

        return self._from_first(ref, lambda endpoint: list_tags(self._send, endpoint, ref))

    def referrers(self, ref: Reference, *, artifact_type: str = "") -> Referrers:
        """Return the manifests that refer to the reference's digest (attestations, signatures).

        Raises: AuthError, RegistryError; the token's cause.
        """
        from crossdock.registry.listing import list_referrers  # cold path

        return self._from_first(
            ref, lambda endpoint: list_referrers(self._send, self._fetch_at, endpoint, ref, artifact_type)
        )

    # -- inside ------------------------------------------------------------------------------------

    def _send(self, request: Request, wanted: Collection[int]) -> Response:
        return self._session.send(request, wanted, insecure=self._insecure, cancel=self._cancel)

    def _from_first(self, ref: Reference, ask: Callable[[Endpoint], _T]) -> _T:
        """Ask the mirrors in order, then the registry; the registry's own error is the one reported."""
        *mirrors, origin = self._config.endpoints(ref.domain, pull=True, insecure=self._insecure)
        failed: list[str] = []
        for endpoint in mirrors:
            try:
                return ask(endpoint)
            except (RegistryError, DigestMismatch, ConfigError) as exc:
                failed.append(f"mirror {endpoint.address}: {exc.summary}")
        try:
            return ask(origin)
        except RegistryError as exc:
            if failed:
                exc.detail = "\n".join(filter(None, (exc.detail, *failed)))
            raise

    def _manifest(self, method: str, endpoint: Endpoint, ref: Reference) -> Request:
        # The digest's colon stays as it is, as every client writes it.
        target = f"{endpoint.prefix}/{ref.path}/manifests/{quote(ref.object, safe=':')}"
        subject = str(ref if ref.tag or ref.digest else ref.with_default_tag())
        headers: Mapping[str, str] = {"Accept": _MANIFEST_ACCEPT}
        return Request(method, endpoint, target, subject, (_scope(ref.path, "pull"),), headers)

    def _blob(self, method: str, endpoint: Endpoint, ref: Reference, digest: Digest) -> Request:
        target = f"{endpoint.prefix}/{ref.path}/blobs/{digest}"
        subject = f"blob {digest} of {ref.repository}"
        return Request(method, endpoint, target, subject, (_scope(ref.path, "pull"),))

    def _resolve_at(self, endpoint: Endpoint, ref: Reference) -> Descriptor:
        response = self._send(self._manifest("HEAD", endpoint, ref), (200, 400, 404, 405, 406))
        response.discard()
        found = _described(response, ref) if response.status == 200 else None
        # A HEAD may tell nothing, or fail without the body that says why.
        return found if found is not None else self._fetch_at(endpoint, ref)[0]

    def _fetch_at(self, endpoint: Endpoint, ref: Reference) -> tuple[Descriptor, bytes]:
        found = self._read_at(endpoint, ref)
        return found.descriptor, found.raw

    def _read_at(self, endpoint: Endpoint, ref: Reference) -> Tagged:
        request = self._manifest("GET", endpoint, ref)
        raw, response = self._read_manifest(request)
        announced = response.header("docker-content-digest")
        expected = ref.digest or (parse_digest(announced) if announced else None)
        algorithm = expected.partition(":")[0] if expected else "sha256"
        hasher = new(algorithm)
        hasher.update(raw)
        digest = Digest(f"{algorithm}:{hasher.hexdigest()}")
        if expected is not None and digest != expected:
            from crossdock.registry.failures import digest_mismatch  # cold path

            raise digest_mismatch(request.subject, endpoint.address, expected=expected, actual=digest)
        if not raw:
            raise self._broken(request, "sent an empty manifest")
        media_type = response.header("content-type").partition(";")[0].strip()
        etag = response.header("etag")
        # A weak one never matches.
        return Tagged(Descriptor(media_type, digest, len(raw)), raw, etag if etag.startswith('"') else "")

    def _read_manifest(self, request: Request) -> tuple[bytes, Response]:
        """Read a manifest; one that is cut off is asked for again."""
        attempt = 0
        while True:
            response = self._send(request, (200,))
            attempt += 1
            try:
                return response.read_all(MAX_MANIFEST), response
            except BodyTooLarge as exc:
                raise self._broken(request, f"sent a manifest of more than {MAX_MANIFEST} bytes") from exc
            except OSError as exc:
                self._cancel.check()
                if attempt == _READ_ATTEMPTS:
                    raise self._broken(request, f"broke off its answer: {exc}") from exc
                self._cancel.sleep(self._session.exchange.retry.pause(attempt))

    def _broken(self, request: Request, why: str) -> RegistryError:
        from crossdock.registry.failures import protocol_error  # cold path

        return protocol_error(self._session.asked(request), why, status=200)


def _scope(repository: str, actions: str) -> str:
    return f"repository:{repository}:{actions}"


def _described(response: Response, ref: Reference) -> Descriptor | None:
    """Read a descriptor from the headers of a HEAD; ``None`` when they do not hold one."""
    announced, size = response.header("docker-content-digest"), response.content_length
    media_type = response.header("content-type").partition(";")[0].strip()
    if not announced or not size or not media_type:
        return None
    digest = parse_digest(announced)
    if ref.digest is not None and digest != ref.digest:
        from crossdock.registry.failures import digest_mismatch  # cold path

        raise digest_mismatch(str(ref), ref.domain, expected=ref.digest, actual=digest)
    return Descriptor(media_type, digest, size)
