"""Show traces in a browser: one page of our own, served on this machine until interrupted.

Spec: docker/buildx ``commands/history/trace.go`` for addresses and behaviour; the page is not Jaeger's.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from crossdock.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossdock.cancel import CancelToken

__all__ = ["TraceViewer"]

_API = "/api/traces/"


class TraceViewer:
    """Serves traces, Jaeger's JSON by trace id; a context manager that listens from its start to its end."""

    def __init__(self, address: str, traces: Mapping[str, Mapping[str, Any]]) -> None:
        """``address`` is ``HOST:PORT``, port 0 for any. Raises: UsageError when it cannot be listened at."""
        host, colon, port = address.rpartition(":")
        if not colon or not port.isdigit():
            summary = f"invalid address {address!r}"
            raise UsageError(summary, hint="write HOST:PORT, such as 127.0.0.1:0")
        page = files("crossdock.cli").joinpath("traceviewer.html").read_bytes()
        bodies = {f"{_API}{name}": json.dumps(trace).encode() for name, trace in traces.items()}
        pages = {f"/trace/{name}" for name in traces}
        if len(traces) == 2:
            pages.add(f"/trace/{'...'.join(traces)}")
        try:
            self._server = ThreadingHTTPServer(
                (host.strip("[]") or "127.0.0.1", int(port)), _handler(page, bodies, pages)
            )
        except (OSError, OverflowError) as exc:
            summary = f"cannot listen at {address}: {exc}"
            raise UsageError(summary, hint="choose another with --addr") from exc
        self._server.daemon_threads = True
        bound = self._server.server_address
        name = "...".join(traces)
        #: the page that shows the traces
        self.url = f"http://{host or '127.0.0.1'}:{bound[1]}/trace/{name}"

    def serve(self, cancel: CancelToken) -> None:
        """Serve until cancelled; the cancellation is the normal end."""
        thread = threading.Thread(target=self._server.serve_forever, daemon=True, name="trace-viewer")
        thread.start()
        try:
            cancel.wait()
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()


def _handler(page: bytes, bodies: Mapping[str, bytes], pages: set[str]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path in bodies:
                self._answer(bodies[self.path], "application/json")
            elif self.path in pages:
                self._answer(page, "text/html; charset=utf-8")
            else:
                self.send_error(404)

        def _answer(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            # Nothing from elsewhere: what is shown comes from a daemon.
            self.send_header("Content-Security-Policy", "default-src 'self' 'unsafe-inline'")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing: the terminal shows the address only."""

    return Handler
