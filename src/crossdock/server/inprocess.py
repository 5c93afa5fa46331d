"""The services for a client in the same process: no socket in the file system, and gone with the ``with`` block."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections import deque
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from crossdock.buildkit.rpc.serve import Server
from crossdock.buildkit.rpc.status import RpcError
from crossdock.buildkit.transport import SocketStream
from crossdock.emulation.platforms import offered_platforms
from crossdock.engine.sandbox.worker import current_worker
from crossdock.errors import Cancelled, CrossdockError
from crossdock.server.daemon import Daemon
from crossdock.server.failures import ClientFailure, status_of
from crossdock.server.options import ServerOptions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from crossdock.buildkit.proto import ops_pb2
    from crossdock.buildkit.rpc.serve import Handler, ServerCall
    from crossdock.engine.facade import Engine
    from crossdock.engine.facade_parts import SolveRecorder
    from crossdock.server.answer import Answer
    from crossdock.server.jobs import Job

__all__ = ["Services", "serving"]

#: errors of calls that are remembered: frontends also ask for files that need not be there
_KEPT = 200


class Services:
    """What a client in this process has of them. Safe from any thread."""

    def __init__(self) -> None:
        # Guards what follows.
        self._lock = threading.Lock()
        self._errors: deque[CrossdockError] = deque(maxlen=_KEPT)
        self._connections: list[Server] = []
        #: set before anybody dials
        self.handlers: Mapping[str, Handler] = {}

    def dial(self) -> SocketStream:
        """Open a connection."""
        near, far = socket.socketpair()
        connection = Server(SocketStream(far), self.handlers)
        connection.start()
        with self._lock:
            self._connections.append(connection)
        return SocketStream(near)

    def origin(self, text: str) -> CrossdockError | None:
        """Return the error that a call ended with whose text, or the end of whose text, this is; the latest of several.

        What passes through a frontend comes back as text with the frontend's own words before it.
        """
        with self._lock:
            errors = list(reversed(self._errors))
        found = [(status_of(error).message, error) for error in errors]
        return next(
            (error for message, error in found if message == text),
            next((error for message, error in found if text.endswith(f": {message}")), None),
        )

    def watched(self, handlers: Mapping[str, Handler]) -> dict[str, Handler]:
        """Return the same methods; how calls of them failed is remembered."""
        return {name: self._watched(handler) for name, handler in handlers.items()}

    def _watched(self, handler: Handler) -> Handler:
        def call(one: ServerCall) -> None:
            try:
                handler(one)
            except RpcError as exc:
                cause = exc.__cause__
                if isinstance(cause, CrossdockError) and not isinstance(cause, Cancelled | ClientFailure):
                    with self._lock:
                        self._errors.append(cause)
                raise

        return call

    def close(self) -> None:
        """End all connections."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.close()


class _Daemon(Daemon):
    """Remembers how calls of frontends in containers fail, too."""

    services: Services

    def bridge(
        self, job: Job, answer: Answer, inputs: Mapping[str, ops_pb2.Definition]
    ) -> dict[str, Handler]:
        return self.services.watched(super().bridge(job, answer, inputs))


@contextmanager
def serving(
    engine: Engine, entitlements: frozenset[str], *, recorder: SolveRecorder | None = None
) -> Iterator[Services]:
    """Serve ``engine``. ``entitlements`` may be granted to builds; ``recorder`` takes down every solve.

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
    services = Services()
    with ExitStack() as stack:
        records = stack.enter_context(tempfile.TemporaryDirectory(prefix="crossdock-records-", dir=folder))
        daemon = _Daemon(options, engine, records=Path(records))
        daemon.services, daemon.recorder = services, recorder
        stack.callback(services.close)
        stack.callback(daemon.close)
        services.handlers = services.watched(daemon.handlers())
        yield services
