"""A stand-in for the cache service of GitHub Actions, written from its public protocol.

Not GitHub's software: it does what actions/toolkit and go-actions-cache show of the twirp API (version 2), the REST API
(version 1) and the blob store behind them: entries are written once, found by the longest-lived prefix, newest first.
"""

from __future__ import annotations

import base64
import http.server
import json
import re
import threading
import time
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from types import TracebackType

SECRET = "signed-query-that-must-not-leak"


def runtime_token(*scopes: tuple[str, int]) -> str:
    """A token with the given branches and permissions (1 read, 2 write), unsigned."""

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    access = json.dumps([{"Scope": name, "Permission": bits} for name, bits in scopes])
    claims = {"ac": access, "nbf": 0, "exp": int(time.time_ns() // 10**9) + 3600}
    return f"{part({'alg': 'none'})}.{part(claims)}.x"


class ActionsCacheServer:
    """``with ActionsCacheServer() as server``: ``server.url`` for both versions."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        #: key -> content; ``None`` while reserved
        self.entries: dict[str, bytes | None] = {}
        self.order: list[str] = []
        self.blocks: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []
        #: answers that fail before one succeeds, by path prefix
        self.failures: dict[str, list[int]] = {}
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_args: object) -> None:
                pass

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, answer = outer.answer(self.command, self.path, dict(self.headers), body)
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_PATCH = handle_any  # noqa: N815

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    # --- what it does ---

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        with self.lock:
            self.requests.append(f"{method} {path}")
            parts = urlsplit(path)
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            for prefix, statuses in self.failures.items():
                if parts.path.startswith(prefix) and statuses:
                    return statuses.pop(0), {}
            if parts.path.startswith("/blob/"):
                if query.get("sig") != SECRET:
                    return 403, {}
                return self._blob(method, parts.path[6:], query, body)
            if not headers.get("Authorization", "").startswith("Bearer "):
                return 401, {}
            if parts.path.startswith("/twirp/"):
                return self._twirp(parts.path.rpartition("/")[2], json.loads(body))
            return self._rest(method, parts.path, query, headers, body)

    def _find(self, prefix: str) -> str | None:
        return next(
            (key for key in reversed(self.order) if key.startswith(prefix) and self.entries[key] is not None),
            None,
        )

    def _reserve(self, key: str) -> bool:
        if key in self.entries:
            return False
        self.entries[key] = None
        self.order.append(key)
        return True

    def _signed(self, key: str) -> str:
        name = base64.urlsafe_b64encode(key.encode()).decode()
        return f"{self.url}blob/{name}?sig={SECRET}"

    def _twirp(self, name: str, body: dict[str, Any]) -> tuple[int, Any]:
        key = body["key"]
        if name == "GetCacheEntryDownloadURL":
            found = self._find(key)
            if found is None:
                return 200, {"ok": False}
            return 200, {"ok": True, "signed_download_url": self._signed(found), "matched_key": found}
        if name == "CreateCacheEntry":
            if not self._reserve(key):
                return 409, {"code": "already_exists", "msg": "cache entry already exists"}
            return 200, {"ok": True, "signed_upload_url": self._signed(key)}
        assert name == "FinalizeCacheEntryUpload"
        content = self.entries[key]
        assert content is not None
        return 200, {"ok": len(content) == int(body["size_bytes"]), "entry_id": "1"}

    def _blob(self, method: str, name: str, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        key = base64.urlsafe_b64decode(name).decode()
        if method == "GET":
            content = self.entries[key]
            return (404, {}) if content is None else (200, content)
        if query["comp"] == "block":
            self.blocks.setdefault(key, {})[query["blockid"]] = body
        else:
            names = re.findall(r"<Latest>([^<]+)</Latest>", body.decode())
            self.entries[key] = b"".join(self.blocks.get(key, {})[name] for name in names)
        return 201, b""

    def _rest(
        self, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes
    ) -> tuple[int, Any]:
        rest = path.removeprefix("/_apis/artifactcache/")
        if method == "GET":
            found = self._find(query["keys"])
            if found is None:
                return 204, b""
            return 200, {"cacheKey": found, "scope": "x", "archiveLocation": self._signed(found)}
        if method == "POST" and rest == "caches":
            key = json.loads(body)["key"]
            if not self._reserve(key):
                return 409, {
                    "typeKey": "ArtifactCacheItemAlreadyExistsException",
                    "message": "already exists",
                }
            return 201, {"cacheId": self.order.index(key) + 1}
        key = self.order[int(rest.rpartition("/")[2]) - 1]
        if method == "PATCH":
            start = int(headers["Content-Range"].split()[1].partition("-")[0])
            self.blocks.setdefault(key, {})[f"{start:020d}"] = body
            return 204, b""
        parts = self.blocks.get(key, {})
        self.entries[key] = b"".join(parts[name] for name in sorted(parts))
        return 204, b""
