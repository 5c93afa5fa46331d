"""A stand-in for a Kubernetes API server: conformant in what the kubernetes driver uses of it, and nothing more.

Deployments, StatefulSets, ConfigMaps and pods over HTTP with a bearer token, and exec over a websocket with the channel
protocol v4. The official Python client talks to it; behind exec is a real BuildKit. There is no scheduler: the pods of a
workload are simply there, ``ready_after_s`` later.

Spec: Kubernetes API reference (apps/v1, core/v1); ``k8s.io/apimachinery/pkg/util/remotecommand`` (v4.channel.k8s.io);
RFC 6455.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from socket import socket

    from crossdock.buildkit.transport import ByteStream

TOKEN = "a token of this case"
_PATH = re.compile(
    r"/(?:api/v1|apis/apps/v1)/namespaces/(?P<ns>[^/]+)/(?P<kind>deployments|statefulsets|configmaps|pods)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<sub>exec))?$"
)
_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class KubeApi:
    """A server on loopback; ``dial`` opens the daemon that execs reach."""

    def __init__(self, dial: Callable[[], ByteStream], *, ready_after_s: float = 0.3) -> None:
        self._dial = dial
        self.ready_after_s = ready_after_s
        #: (kind, namespace, name) -> object
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.created: dict[tuple[str, str, str], float] = {}
        #: (pod, container, command) of every exec
        self.execs: list[tuple[str, str, tuple[str, ...]]] = []
        #: pods that are going away
        self.terminating: set[str] = set()
        #: execs that are refused before one works
        self.refuse_execs = 0
        #: HTTP status of every request, when set
        self.refuse_all = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def kubeconfig(self, path: Path, *, namespace: str = "") -> Path:
        """Write a configuration that leads here."""
        context = {"cluster": "c", "user": "u", **({"namespace": namespace} if namespace else {})}
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "x",
                    "clusters": [{"name": "c", "cluster": {"server": self.url}}],
                    "users": [{"name": "u", "user": {"token": TOKEN}}],
                    "contexts": [{"name": "x", "context": context}],
                }
            )
        )
        return path

    def workload(self) -> dict[str, Any]:
        """The only Deployment or StatefulSet."""
        (found,) = [o for (kind, _, _), o in self.objects.items() if kind in ("deployments", "statefulsets")]
        return found

    def pods(self, namespace: str, selector: str) -> list[dict[str, Any]]:
        """Pods of the workloads whose labels match."""
        wanted = dict(item.split("=", 1) for item in selector.split(",") if item)
        out = []
        for key, workload in self.objects.items():
            kind, where, name = key
            if kind not in ("deployments", "statefulsets") or where != namespace or not self._ready(key):
                continue
            labels = workload["spec"]["template"]["metadata"]["labels"]
            if not wanted.items() <= labels.items():
                continue
            for number in range(workload["spec"]["replicas"]):
                pod = f"{name}-{number}"
                metadata: dict[str, Any] = {"name": pod, "namespace": where, "labels": labels}
                if pod in self.terminating:
                    metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
                out.append({"metadata": metadata, "status": {"phase": "Running"}})
        return out

    def _ready(self, key: tuple[str, str, str]) -> bool:
        return time.monotonic() - self.created[key] >= self.ready_after_s

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                api.answer(self, "GET")

            def do_POST(self) -> None:
                api.answer(self, "POST")

            def do_PUT(self) -> None:
                api.answer(self, "PUT")

            def do_DELETE(self) -> None:
                api.answer(self, "DELETE")

        return Handler

    def answer(self, request: BaseHTTPRequestHandler, method: str) -> None:
        """Serve one request."""
        url = urlsplit(request.path)
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        found = _PATH.fullmatch(url.path)
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._status(request, 401, "Unauthorized")
        elif self.refuse_all:
            self._status(request, self.refuse_all, 'pods is forbidden: User "x" cannot do that')
        elif found is None:
            self._status(request, 404, f"no such path: {url.path}")
        elif found["sub"]:
            self._exec(request, found["name"], parse_qs(url.query))
        else:
            key = (found["kind"], found["ns"], found["name"] or "")
            self._object(request, method, key, body, parse_qs(url.query))

    def _object(
        self,
        request: BaseHTTPRequestHandler,
        method: str,
        key: tuple[str, str, str],
        body: bytes,
        query: dict[str, list[str]],
    ) -> None:
        kind, namespace, name = key
        if kind == "pods" and not name:
            items = self.pods(namespace, query.get("labelSelector", [""])[0])
            self._json(request, 200, {"kind": "PodList", "apiVersion": "v1", "items": items})
        elif method == "POST":
            made = json.loads(body)
            key = (kind, namespace, made["metadata"]["name"])
            if key in self.objects:
                self._status(request, 409, f"{kind} {key[2]!r} already exists")
                return
            self.objects[key], self.created[key] = made, time.monotonic()
            self._json(request, 201, made)
        elif key not in self.objects:
            self._status(request, 404, f'{kind} "{name}" not found')
        elif method == "PUT":
            self.objects[key] = json.loads(body)
            self._json(request, 200, self.objects[key])
        elif method == "DELETE":
            del self.objects[key]
            self._json(request, 200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})
        else:
            replicas = self.objects[key].get("spec", {}).get("replicas", 0)
            status = {"replicas": replicas, "readyReplicas": replicas if self._ready(key) else None}
            self._json(request, 200, {**self.objects[key], "status": status})

    def _status(self, request: BaseHTTPRequestHandler, code: int, message: str) -> None:
        body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}
        self._json(request, code, body)

    def _json(self, request: BaseHTTPRequestHandler, code: int, value: object) -> None:
        data = json.dumps(value).encode()
        request.send_response(code)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(data)))
        # A thread serves a connection: none may wait for another request when the server ends.
        request.send_header("Connection", "close")
        request.end_headers()
        request.wfile.write(data)

    def _exec(self, request: BaseHTTPRequestHandler, pod: str, query: dict[str, list[str]]) -> None:
        protocols = request.headers.get("Sec-WebSocket-Protocol", "")
        if self.refuse_execs > 0:
            self.refuse_execs -= 1
            self._status(request, 500, "error dialing backend: remote error: tls: internal error")
            return
        if "v4.channel.k8s.io" not in protocols:
            self._status(request, 400, f"unsupported protocols {protocols!r}")
            return
        self.execs.append((pod, query.get("container", [""])[0], tuple(query.get("command", []))))
        key = request.headers["Sec-WebSocket-Key"]
        accept = base64.b64encode(hashlib.sha1((key + _GUID).encode()).digest()).decode()
        request.send_response(101)
        for name, value in (
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", accept),
            ("Sec-WebSocket-Protocol", "v4.channel.k8s.io"),
        ):
            request.send_header(name, value)
        request.end_headers()
        request.close_connection = True
        self._channels(request.connection, request.rfile)

    def _channels(self, sock: socket, rfile: Any) -> None:
        """Copy: frames of channel 0 in, what the daemon says out on channel 1."""
        far = self._dial()

        def outward() -> None:
            with contextlib.suppress(OSError):
                while data := far.recv(32 * 1024):
                    sock.sendall(_frame(2, b"\x01" + data))
                sock.sendall(_frame(2, b'\x03{"status":"Success"}'))
                sock.sendall(_frame(8, b"\x03\xe8"))

        thread = threading.Thread(target=outward)
        thread.start()
        with contextlib.suppress(OSError):
            while (found := _read_frame(rfile)) is not None:
                opcode, payload = found
                if opcode == 8:
                    break
                if opcode == 9:
                    sock.sendall(_frame(10, payload))
                elif payload[:1] == b"\x00":
                    far.sendall(payload[1:])
        far.close()
        thread.join()


def _frame(opcode: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        head = struct.pack(">BB", 0x80 | opcode, size)
    elif size < 1 << 16:
        head = struct.pack(">BBH", 0x80 | opcode, 126, size)
    else:
        head = struct.pack(">BBQ", 0x80 | opcode, 127, size)
    return head + payload


def _read_frame(rfile: Any) -> tuple[int, bytes] | None:
    head = rfile.read(2)
    if len(head) < 2:
        return None
    size = head[1] & 0x7F
    if size == 126:
        (size,) = struct.unpack(">H", rfile.read(2))
    elif size == 127:
        (size,) = struct.unpack(">Q", rfile.read(8))
    mask = rfile.read(4)
    data = rfile.read(size)
    key = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
    return head[0] & 0x0F, (int.from_bytes(data, "big") ^ key).to_bytes(size, "big") if size else b""
