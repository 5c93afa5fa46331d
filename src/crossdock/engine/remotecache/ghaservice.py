"""The cache service of GitHub Actions, both versions: named blobs that are written once.

Spec: tonistiigi/go-actions-cache (``cache.go``, ``cache_v2.go``, ``api.md``); actions/toolkit ``packages/cache``.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from crossdock.errors import CacheError
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import BinaryIO

    from crossdock.cancel import CancelToken

__all__ = ["ActionsCache", "Entry", "Scope", "scopes_of"]

#: names the form of entries; entries of other versions are not seen
_VERSION = hashlib.sha256(b"|go-actionscache-1.0").hexdigest()
_CHUNK = 32 << 20
_BLOCK_ID_DIGITS = 8
_TRIES = 4
_READ, _WRITE = 1, 2


class Scope(NamedTuple):
    """A branch whose entries may be read, or written."""

    name: str
    readable: bool
    writable: bool


class Entry(NamedTuple):
    """A blob found: its whole key, and where to get it."""

    key: str
    url: str


def scopes_of(token: str) -> list[Scope]:
    """Return what a runtime token allows. Raises: CacheError when it is no such token."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        found = json.loads(claims["ac"])
        return [
            Scope(str(s["Scope"]), bool(s["Permission"] & _READ), bool(s["Permission"] & _WRITE))
            for s in found
        ]
    except (IndexError, ValueError, KeyError, TypeError) as exc:
        summary = "the token of the GitHub Actions cache is not a runtime token"
        raise CacheError(
            summary, hint="pass ACTIONS_RUNTIME_TOKEN on, as crazy-max/ghaction-github-runtime does"
        ) from exc


class ActionsCache:
    """Talks to the service. Methods raise CacheError and the token's cause."""

    def __init__(self, url: str, token: str, *, v2: bool, timeout_s: float) -> None:
        self._url = url.rstrip("/")
        self._token = token
        self._v2 = v2
        self._timeout_s = timeout_s
        self._pool: Any = None

    # --- entries ---

    def find(self, key: str, cancel: CancelToken) -> Entry | None:
        """Return the newest entry whose key begins with ``key``."""
        if self._v2:
            body = {"key": key, "restore_keys": [key], "version": _VERSION}
            answer = self._twirp("GetCacheEntryDownloadURL", body, cancel)
            if not answer.get("ok"):
                return None
            return Entry(str(answer.get("matched_key", "")), str(answer.get("signed_download_url", "")))
        query = urlencode({"keys": key, "version": _VERSION})
        answer = self._v1("GET", f"cache?{query}", None, cancel)
        if not answer.get("cacheKey"):
            return None
        return Entry(str(answer["cacheKey"]), str(answer.get("archiveLocation", "")))

    def save(self, key: str, source: BinaryIO, size_bytes: int, cancel: CancelToken) -> bool:
        """Write an entry; False when there is one of that key."""
        if self._v2:
            answer = self._twirp("CreateCacheEntry", {"key": key, "version": _VERSION}, cancel)
            if not answer.get("ok"):
                return False
            self._put_blocks(str(answer["signed_upload_url"]), source, cancel)
            done = {"key": key, "size_bytes": str(size_bytes), "version": _VERSION}
            if not self._twirp("FinalizeCacheEntryUpload", done, cancel).get("ok"):
                summary = f"GitHub Actions cache: it did not take {key}"
                raise CacheError(summary, retryable=True)
            return True
        answer = self._v1("POST", "caches", {"key": key, "version": _VERSION}, cancel)
        number = answer.get("cacheId") or answer.get("cacheID")
        if not number:
            return False
        offset = 0
        while data := source.read(_CHUNK):
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Range": f"bytes {offset}-{offset + len(data) - 1}/*",
            }
            self._v1("PATCH", f"caches/{number}", data, cancel, headers)
            offset += len(data)
        self._v1("POST", f"caches/{number}", {"size": size_bytes}, cancel)
        return True

    def read(self, entry: Entry, limit: int, cancel: CancelToken) -> bytes:
        """Return a small blob whole."""
        stream, close = self.open(entry, cancel)
        try:
            data = bytearray()
            while len(data) <= limit and (block := stream.read(1 << 16)):
                data += block
        finally:
            close()
        if len(data) > limit:
            summary = f"GitHub Actions cache: {entry.key} is too large for an index"
            raise CacheError(summary)
        return bytes(data)

    def open(self, entry: Entry, cancel: CancelToken) -> tuple[_Body, Callable[[], object]]:
        """Start reading a blob; its URL is a secret and needs no token."""
        response = self._request("GET", entry.url, None, {}, cancel, stream=True)
        return _Body(response), response.release_conn

    # --- wire ---

    def _twirp(self, method: str, body: Mapping[str, object], cancel: CancelToken) -> dict[str, Any]:
        url = f"{self._url}/twirp/github.actions.results.api.v1.CacheService/{method}"
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        return self._json("POST", url, json.dumps(body).encode(), headers, cancel)

    def _v1(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | bytes | None,
        cancel: CancelToken,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        url = f"{self._url}/_apis/artifactcache/{path}"
        sent = {
            "Authorization": f"Bearer {self._token}",
            "Accept": "application/json;api-version=6.0-preview.1",
            "Content-Type": "application/json",
            **(headers or {}),
        }
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        return self._json(method, url, data, sent, cancel)

    def _put_blocks(self, url: str, source: BinaryIO, cancel: CancelToken) -> None:
        """Send a blob to the store behind the service, in blocks (Azure's Put Block, Put Block List)."""
        joined = url + ("&" if "?" in url else "?")
        blocks: list[str] = []
        while data := source.read(_CHUNK):
            name = base64.b64encode(f"{len(blocks):0{_BLOCK_ID_DIGITS}d}".encode()).decode()
            query = urlencode({"comp": "block", "blockid": name})
            self._request("PUT", joined + query, data, {"x-ms-version": "2021-08-06"}, cancel)
            blocks.append(name)
        listed = "".join(f"<Latest>{name}</Latest>" for name in blocks)
        xml = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{listed}</BlockList>'.encode()
        headers = {"x-ms-version": "2021-08-06", "Content-Type": "application/xml"}
        self._request("PUT", joined + "comp=blocklist", xml, headers, cancel)

    def _json(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], cancel: CancelToken
    ) -> dict[str, Any]:
        response = self._request(method, url, body, headers, cancel)
        if response.status == 204 or not response.data:
            return {}
        try:
            data = json.loads(response.data)
        except ValueError as exc:
            summary = "GitHub Actions cache: the answer is not JSON"
            raise CacheError(summary) from exc
        return data if isinstance(data, dict) else {}

    def _request(
        self,
        method: str,
        url: str,
        body: bytes | None,
        headers: Mapping[str, str],
        cancel: CancelToken,
        *,
        stream: bool = False,
    ) -> Any:
        """Send; too many requests and failures of the server are tried again. An entry that exists is no failure."""
        import urllib3

        pool = self._connections(url)
        pause_s = 0.5
        for attempt in range(_TRIES):
            cancel.check()
            try:
                response = pool.request(
                    method,
                    url,
                    body=body,
                    headers=dict(headers),
                    preload_content=not stream,
                    retries=False,
                    timeout=urllib3.Timeout(connect=15, read=min(60.0, self._timeout_s)),
                )
            except urllib3.exceptions.HTTPError as exc:
                # Not its text: it holds the URL, which may be signed.
                failure = CacheError(f"GitHub Actions cache: {type(exc).__name__}", retryable=True)
            else:
                if response.status < 400:
                    return response
                if stream:
                    response.drain_conn()
                if response.status == 409 or _exists(response):
                    return _Exists()
                failure = CacheError(
                    f"GitHub Actions cache: HTTP status {response.status}",
                    retryable=response.status == 429 or response.status >= 500,
                )
            if not failure.retryable or attempt == _TRIES - 1:
                raise failure
            cancel.sleep(pause_s)
            pause_s *= 2
        raise AssertionError  # the last try returns or raises

    def _connections(self, url: str) -> Any:
        if self._pool is None:
            from urllib.parse import urlsplit
            from urllib.request import getproxies, proxy_bypass

            import urllib3

            parts = urlsplit(url)
            proxy = getproxies().get(parts.scheme)
            if proxy and not proxy_bypass(parts.netloc):
                self._pool = urllib3.ProxyManager(proxy)
            else:
                self._pool = urllib3.PoolManager()
        return self._pool


class _Exists:
    """The answer when an entry exists already."""

    status = 200
    data = b'{"ok": false}'


def _exists(response: Any) -> bool:
    return b"already" in response.data.lower() and b"exist" in response.data.lower()


class _Body:
    """A blob being read."""

    def __init__(self, response: Any) -> None:
        self._response = response

    def read(self, size: int, /) -> bytes:
        """Read up to ``size`` bytes. Raises: CacheError when the transfer breaks off."""
        import urllib3

        try:
            data: bytes = self._response.read(size)
        except (urllib3.exceptions.HTTPError, OSError) as exc:
            summary = f"GitHub Actions cache: a transfer broke off ({type(exc).__name__})"
            raise CacheError(summary, retryable=True) from exc
        return data
