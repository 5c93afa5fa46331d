"""An HTTP relay on loopback before a real registry: sees every request, and may wait, answer itself, or change answers."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from support.scripted import Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_HOP_BY_HOP = frozenset({"connection", "transfer-encoding", "keep-alive", "content-length"})


@dataclass(frozen=True)
class Seen:
    """A request: ``number`` counts those of this method and path, from 1."""

    server: str
    method: str
    path: str
    headers: Mapping[str, str]
    number: int


@dataclass(frozen=True)
class Answer:
    """What the registry says."""

    status: int
    headers: dict[str, str]
    body: bytes


class HttpRelay:
    """Relays to ``target`` (``host:port``). Close it.

    ``before`` is called with each request; what ``answer`` returns is sent instead of asking the registry, ``None`` asks it;
    ``change`` makes another answer of the registry's. ``conditions`` honours ``If-Match``, which the registry ignores;
    with ``never_matches`` it recognises no entity tag.
    """

    def __init__(
        self,
        target: str,
        *,
        before: Callable[[Seen], None] | None = None,
        answer: Callable[[Seen], Reply | None] | None = None,
        change: Callable[[Seen, Answer], Answer | Reply] | None = None,
        conditions: bool = False,
        never_matches: bool = False,
    ) -> None:
        self.target = target
        self.before = before
        self.answer = answer
        self.change = change
        self.conditions = conditions
        self.never_matches = never_matches
        #: all answers
        self.statuses: list[int] = []
        #: all requests
        self.seen: list[Seen] = []
        self.errors: list[BaseException] = []
        #: only one conditional write at a time
        self.writing = threading.Lock()
        self._counts: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.relay = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def host(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stop. Raises what went wrong in a hook."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        if self.errors:
            raise self.errors[0]

    def note(self, method: str, path: str, headers: Mapping[str, str]) -> Seen:
        """Count a request."""
        with self._lock:
            number = self._counts[method, path] = self._counts.get((method, path), 0) + 1
            seen = Seen(self.host, method, path, headers, number)
            self.seen.append(seen)
        return seen

    def ask(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Ask the registry."""
        connection = http.client.HTTPConnection(self.target, timeout=60)
        try:
            connection.request(method, target, body, dict(headers))
            response = connection.getresponse()
            data = response.read()
            kept = {k.lower(): v for k, v in response.getheaders()}
            return Answer(response.status, kept, data)
        finally:
            connection.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # a client that goes away is no news
    relay: HttpRelay

    def handle_error(self, request: Any, client_address: Any) -> None:
        del request, client_address


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server  # type: ignore[mutable-override]  # nobody else makes one

    def log_message(self, format: str, *args: object) -> None:
        del format, args

    def _relay(self) -> None:
        relay = self.server.relay
        body = self._body()
        headers = {k.lower(): v for k, v in self.headers.items()}
        seen = relay.note(self.command, self.path.partition("?")[0], headers)
        try:
            if relay.before is not None:
                relay.before(seen)
            reply = relay.answer(seen) if relay.answer is not None else None
            if reply is not None:
                self._send_reply(reply)
                return
            self._send(seen, self._ask(seen, headers, body))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        except BaseException as exc:
            relay.errors.append(exc)
            raise

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _ask(self, seen: Seen, headers: dict[str, str], body: bytes) -> Answer:
        relay = self.server.relay
        passed = {k: v for k, v in headers.items() if k not in _HOP_BY_HOP}
        wanted = passed.pop("if-match", None)
        if not relay.conditions or seen.method != "PUT" or wanted is None:
            return relay.ask(seen.method, self.path, passed, body)
        with relay.writing:
            now = relay.ask("GET", self.path, {"host": relay.target, "accept": "*/*"}, b"")
            if relay.never_matches or now.headers.get("etag") != wanted:
                return Answer(412, {"content-type": "application/json"}, b"{}")
            return relay.ask(seen.method, self.path, passed, body)

    def _send(self, seen: Seen, answer: Answer) -> None:
        relay = self.server.relay
        if relay.change is not None:
            changed = relay.change(seen, answer)
            if isinstance(changed, Reply):
                self._send_reply(changed)
                return
            answer = changed
        relay.statuses.append(answer.status)
        self.send_response(answer.status)
        for key, value in answer.headers.items():
            if key not in _HOP_BY_HOP:
                self.send_header(key, value)
        length = answer.headers.get("content-length") if self.command == "HEAD" else None
        self.send_header("content-length", length or str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def _send_reply(self, reply: Reply) -> None:
        self.server.relay.statuses.append(reply.status)
        threading.Event().wait(reply.delay_s)
        if not reply.reset:
            self.wfile.write(reply.encoded(self.command))
            self.wfile.flush()
        if reply.reset or reply.cut_after is not None or reply.close:
            self.close_connection = True
        if reply.reset or reply.cut_after is not None:
            with contextlib.suppress(OSError):
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


for _method in ("GET", "HEAD", "PUT", "POST", "PATCH", "DELETE"):
    setattr(_Handler, f"do_{_method}", _Handler._relay)
