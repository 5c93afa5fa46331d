"""Files from the web as build sources: ``http://`` and ``https://``.

A file is keyed by its content. With a checksum nothing is asked of the server when the content is known; without one, the
server is asked whether what was fetched before is still current (ETag, Last-Modified).

Spec: moby/buildkit ``source/http``; attributes ``http.checksum``, ``http.filename``, ``http.perm``, ``http.uid``,
``http.gid``, ``http.authheadersecret``, ``http.header.*``.
"""

from __future__ import annotations

import email.message
import email.utils
import json
import posixpath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

from crossdock.engine.cache.refs import Ref
from crossdock.engine.ops.base import BaseOp
from crossdock.engine.solver import CacheMap, KeyHasher
from crossdock.engine.sources.onefile import FileShape, file_layer, plain_name, read_shape
from crossdock.engine.sources.transfer import Transfer
from crossdock.errors import NotSupported, SolveError
from crossdock.image.digest import Digest, parse_digest
from crossdock.llb.ops import SourceOp
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from crossdock.engine.ops.env import OpEnv
    from crossdock.engine.solver import OpContext, Result
    from crossdock.llb.graph import Node
    from crossdock.registry.http1 import Response

__all__ = ["UPLOAD_HOST", "HttpFacts", "HttpSolverOp"]

_KNOWN = frozenset(
    f"http.{name}"
    for name in (
        "checksum",
        "filename",
        "perm",
        "uid",
        "gid",
        "authheadersecret",
        "sig.pubkey",
        "sig.signature",
    )
)
#: not a server: who asked for the build uploads what is under this name
UPLOAD_HOST = "buildkit-session"
#: seconds before the first of the further tries
PAUSE_S = 0.3


class HttpFacts(NamedTuple):
    """What is known of a URL's content."""

    digest: Digest
    filename: str
    #: seconds since the epoch; 0 when the server did not say
    modified: int


class HttpSolverOp(BaseOp):
    """One file of the web."""

    __slots__ = ("_attrs", "_fetched", "_url")

    def __init__(self, node: Node, env: OpEnv) -> None:
        super().__init__(node, env)
        if not isinstance(node.op, SourceOp):
            summary = "invalid http source"
            raise SolveError(summary, vertex=self.vertex)
        self._url = node.op.identifier
        self._attrs = node.op.attrs
        self._fetched: HttpFacts | None = None
        for name in self._attrs:
            if name.startswith("http.sig."):
                summary = f"{self.shown_url}: signatures of downloads cannot be verified here"
                raise NotSupported(summary, hint="pin the file with a checksum")
            if name not in _KNOWN and not name.startswith("http.header."):
                msg = f"unknown attribute {name}"
                raise self._error(msg)

    @property
    def shown_url(self) -> str:
        """The URL without user and query, fit for messages."""
        parts = urlsplit(self._url)
        host = parts.hostname or ""
        return urlunsplit((parts.scheme, host + (f":{parts.port}" if parts.port else ""), parts.path, "", ""))

    def cache_map(self, ctx: OpContext) -> CacheMap:
        """Key: the content's digest, and how the file is made of it."""
        checksum, name = self._attrs.get("http.checksum", ""), self._attrs.get("http.filename", "")
        # With both the file will have this content or the build fails: nobody need be asked yet. Its time is unknown
        # then, and so not part of the key.
        known = HttpFacts(parse_digest(checksum), name, 0) if checksum and name else None
        fetched = known or self._fetch(ctx)
        self.env.pins[self.vertex] = fetched.digest
        hasher = KeyHasher("http").text("digest", fetched.digest).text("name", fetched.filename)
        shape = self._shape(fetched.filename)
        hasher.number("mode", shape.mode).number("uid", shape.uid).number("gid", shape.gid)
        hasher.number("modified", fetched.modified)
        return CacheMap(hasher.finish())

    def execute(self, inputs: Sequence[Result], ctx: OpContext) -> Sequence[Result]:  # noqa: ARG002
        """Put the file into a layer of its own."""
        fetched = self._fetched or self._fetch(ctx)
        layer = file_layer(
            self.env,
            fetched.digest,
            self._shape(fetched.filename),
            modified=fetched.modified,
            description=f"http url {self.shown_url}",
            ctx=ctx,
        )
        return [Ref((layer,))]

    def _shape(self, filename: str) -> FileShape:
        try:
            return read_shape(self._attrs, default=filename)
        except ValueError as exc:
            raise self._error(str(exc)) from exc

    def describe(self, ctx: OpContext, *, content: bool) -> HttpFacts:
        """Say what the URL gives; with ``content`` it is in the store afterwards. Raises: SolveError, the token's cause."""
        checksum = self._attrs.get("http.checksum", "")
        if checksum and not content:
            return HttpFacts(parse_digest(checksum), self._filename(""), 0)
        return self._fetch(ctx)

    # fetching

    def _fetch(self, ctx: OpContext) -> HttpFacts:
        if self._fetched is None:
            self._fetched = self._download(ctx)
        return self._fetched

    def _download(self, ctx: OpContext) -> HttpFacts:
        if urlsplit(self._url).hostname == UPLOAD_HOST:
            return self._receive(ctx)
        from crossdock.engine.sources.web import FetchFailed, Web

        known = self._known()
        headers = self._headers()
        if known is not None and (etag := known.get("etag")):
            headers["If-None-Match"] = etag
        elif known is not None and (date := known.get("last-modified")):
            headers["If-Modified-Since"] = date
        found: list[HttpFacts] = []

        def take(response: Response) -> None:
            if response.status == 304 and known is not None:
                response.discard()
                found.append(self._fetched_from(known))
            elif response.status == 200:
                found.append(self._store(response, ctx))
            else:
                response.close()
                msg = f"the server answered {response.status} {response.reason}".rstrip()
                raise self._error(msg)

        web = Web(ctx.cancel, pause_s=PAUSE_S)
        try:
            web.get(self._url, headers, self._authorization(), take)
        except FetchFailed as exc:
            raise self._error(str(exc)) from exc
        finally:
            web.close()
        return found[0]

    def _receive(self, ctx: OpContext) -> HttpFacts:
        """Take what the caller uploads instead of asking a server; nothing is known of it but its content."""
        if self.env.uploads is None:
            msg = "nothing is uploaded in this build"
            raise self._error(msg)

        def store(data: Iterable[bytes]) -> Digest:
            return self._keep(data, 0, ctx)

        digest = self.env.uploads(urlsplit(self._url).path, store, ctx.cancel)
        self._verify(digest)
        return HttpFacts(digest, self._filename(""), 0)

    def _keep(self, blocks: Iterable[bytes | memoryview], total: int, ctx: OpContext) -> Digest:
        """Write a file's content to the store."""
        with (
            Transfer(ctx.sink, self.vertex, "transferring", total=total) as transfer,
            self.env.store.content.writer(self.env.lease) as writer,
        ):
            at = 0
            for data in blocks:
                ctx.cancel.check()
                writer.write(data)
                at += len(data)
                transfer.at(at)
            digest, _ = writer.commit()
        return digest

    def _store(self, response: Response, ctx: OpContext) -> HttpFacts:
        from crossdock.engine.sources.web import blocks

        digest = self._keep(blocks(response), response.content_length or 0, ctx)
        self._verify(digest)
        known = {
            "digest": digest,
            "filename": self._filename(response.header("content-disposition")),
            "etag": response.header("etag"),
            "last-modified": response.header("last-modified"),
        }
        self.env.store.records.link(self._memo_key(), json.dumps(known))
        return self._fetched_from(known)

    def _verify(self, digest: str) -> None:
        wanted = self._attrs.get("http.checksum", "")
        if wanted and wanted != digest:
            msg = f"digest mismatch: the file is {digest}, expected {wanted}"
            raise self._error(msg)

    def _fetched_from(self, known: Mapping[str, str]) -> HttpFacts:
        self._verify(known["digest"])
        name = self._attrs.get("http.filename") or known["filename"]
        return HttpFacts(Digest(known["digest"]), name, _seconds(known.get("last-modified", "")))

    def _known(self) -> dict[str, str] | None:
        """Return what is remembered of the URL, as long as its content is there."""
        text = self.env.store.records.canonical(self._memo_key())
        if text is None:
            return None
        known: dict[str, str] = json.loads(text)
        return known if self.env.store.content.has(known["digest"], self.env.lease) else None

    def _memo_key(self) -> str:
        return KeyHasher("http-memo").text("url", self._url).finish()

    def _headers(self) -> dict[str, str]:
        prefix = "http.header."
        return {k.removeprefix(prefix): v for k, v in self._attrs.items() if k.startswith(prefix)}

    def _authorization(self) -> str | None:
        host = urlsplit(self._url).hostname or ""
        secret = self.env.secrets(self._attrs.get("http.authheadersecret") or f"HTTP_AUTH_HEADER_{host}")
        if secret is not None:
            return secret.reveal_str().strip()
        token = self.env.secrets(f"HTTP_AUTH_TOKEN_{host}")
        return None if token is None else f"Bearer {token.reveal_str().strip()}"

    def _filename(self, disposition: str) -> str:
        """Return a plain name: from the attribute, the server, or the URL; never one that leaves the directory."""
        name = self._attrs.get("http.filename", "")
        if not name and disposition:
            message = email.message.Message()
            message["Content-Disposition"] = disposition
            name = str(message.get_filename() or "")
        name = posixpath.basename(name) or posixpath.basename(unquote(urlsplit(self._url).path))
        return plain_name(name) or "download"

    def _error(self, text: str) -> SolveError:
        return SolveError(
            f"{self.shown_url}: {text}",
            vertex=self.vertex,
            vertex_name=self.node.name,
            source=self.node.source,
        )


def _seconds(text: str) -> int:
    """Read an HTTP date; 0 when there is none or it is malformed."""
    try:
        return max(0, int(email.utils.parsedate_to_datetime(text).timestamp())) if text else 0
    except (ValueError, TypeError):
        return 0
