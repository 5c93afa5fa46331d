"""The services for a client in the same process: no socket in the file system, and gone with the ``with`` block."""

from __future__ import annotations

import socket
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from crossdock.buildkit.rpc.serve import Server
from crossdock.buildkit.transport import SocketStream
from crossdock.emulation.platforms import offered_platforms
from crossdock.engine.sandbox.worker import current_worker
from crossdock.server.daemon import Daemon
from crossdock.server.options import ServerOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from crossdock.engine.facade import Engine

__all__ = ["serving"]


@contextmanager
def serving(engine: Engine, entitlements: frozenset[str]) -> Iterator[Callable[[], SocketStream]]:
    """Serve ``engine``; gives what opens a connection. ``entitlements`` may be granted to builds.

    The store is not collected, and records of builds are kept only as long as this lasts. Builds that are under way at
    the end are cancelled. Raises: SandboxError when no step can run here; StoreError.
    """
    sandbox = engine.sandbox()
    offers = offered_platforms(sandbox.emulator, verify=False)
    options = ServerOptions(
        addresses=(),
        root=engine.store.root,
        entitlements=entitlements,
        platforms=tuple(offer.platform for offer in offers if not offer.problem),
        policies=(),
        network=sandbox.network,
    )
    worker = current_worker()  # its folder is gone with it, however it ends
    folder = worker.run_dir if worker is not None else None
    connections: list[Server] = []
    with ExitStack() as stack:
        records = stack.enter_context(tempfile.TemporaryDirectory(prefix="crossdock-records-", dir=folder))
        daemon = Daemon(options, engine, records=Path(records))
        stack.callback(_disconnect, connections)
        stack.callback(daemon.close)
        handlers = daemon.handlers()

        def dial() -> SocketStream:
            near, far = socket.socketpair()
            connection = Server(SocketStream(far), handlers)
            connection.start()
            connections.append(connection)
            return SocketStream(near)

        yield dial


def _disconnect(connections: list[Server]) -> None:
    for connection in connections:
        connection.close()
