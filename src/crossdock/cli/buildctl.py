"""The part of ``buildctl`` that builders run inside a daemon's container: ``dial-stdio`` and ``debug workers``.

Reached when the program is called ``buildctl``, as in an image where the daemon is ``crossdock`` called ``buildkitd``.

Spec: moby/buildkit ``cmd/buildctl/dialstdio.go``, ``cmd/buildctl/debug/workers.go``.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from typing import TYPE_CHECKING

from crossdock.errors import BuilderError, NotSupported, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["print_daemon_version", "run"]

_BLOCK = 256 * 1024


def run(args: Sequence[str]) -> int:
    """Run; returns the exit code. Raises: UsageError, NotSupported, BuilderError."""
    address, rest = _address(list(args))
    match rest:
        case ["dial-stdio"]:
            return _dial_stdio(address)
        case ["debug", "workers"]:
            return _workers(address)
        case _:
            summary = f"`buildctl {' '.join(rest)}` is not available: only dial-stdio and debug workers are"
            raise NotSupported(summary, hint="use `crossdock` or `docker buildx` with the remote driver")


def print_daemon_version() -> int:
    """Print what ``buildkitd --version`` does: four words, of which builders read the third."""
    from crossdock.server.workers import version_message

    about = version_message()
    sys.stdout.write(f"buildkitd {about.package} {about.version} {about.revision}\n")
    return 0


def _address(args: list[str]) -> tuple[str, list[str]]:
    from crossdock.cli.serveoptions import default_address

    address = os.environ.get("BUILDKIT_HOST") or default_address(os.geteuid())
    if args[:1] == ["--addr"] and len(args) > 1:
        address, args = args[1], args[2:]
    elif args and args[0].startswith("--addr="):
        address, args = args[0].removeprefix("--addr="), args[1:]
    return address, args


def _connect(address: str) -> socket.socket:
    scheme, _, target = address.partition("://")
    try:
        if scheme == "unix":
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(target)
            return sock
        if scheme == "tcp":
            host, _, port = target.rpartition(":")
            return socket.create_connection((host.strip("[]"), int(port)))
    except (OSError, ValueError) as exc:
        summary = f"cannot connect to {address}: {exc}"
        raise BuilderError(summary, hint="is `crossdock serve` running?") from exc
    summary = f"invalid address {address!r}"
    raise UsageError(summary)


def _dial_stdio(address: str) -> int:
    """Copy between the standard streams and the daemon, until the daemon's side ends."""
    with _connect(address) as sock:
        threading.Thread(target=_copy_in, args=(sock,), name="stdin", daemon=True).start()
        with contextlib.suppress(OSError):
            while data := sock.recv(_BLOCK):
                view = memoryview(data)
                while view:
                    view = view[os.write(1, view) :]
    return 0


def _copy_in(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := os.read(0, _BLOCK):
            sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)


def _workers(address: str) -> int:
    """List the daemon's workers."""
    from crossdock.buildkit.proto import control_pb2
    from crossdock.buildkit.rpc.channel import Channel
    from crossdock.buildkit.rpc.status import RpcError
    from crossdock.buildkit.transport import SocketStream

    channel = Channel(lambda: SocketStream(_connect(address)))
    try:
        listed = channel.unary(
            "/moby.buildkit.v1.Control/ListWorkers",
            control_pb2.ListWorkersRequest(),
            control_pb2.ListWorkersResponse,
            timeout_s=10.0,
        )
    except RpcError as exc:
        summary = f"cannot list the workers of {address}: {exc.message}"
        raise BuilderError(summary) from exc
    finally:
        channel.close()
    sys.stdout.write("ID\t\t\t\tPLATFORMS\n")
    for record in listed.record:
        platforms = ",".join(
            "/".join(filter(None, (p.OS, p.Architecture, p.Variant))) for p in record.platforms
        )
        sys.stdout.write(f"{record.ID}\t{platforms}\n")
    return 0
