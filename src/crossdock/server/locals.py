"""Directories of clients, brought into the store for the length of a build.

A received tree is a private "mount" of the store, named by the client's shared key: the next build of the same directory
transfers only what changed. Two builds at once get two trees.

Spec: moby/buildkit ``source/local/source.go``, ``session/filesync``.
"""

from __future__ import annotations

import json
import os
import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING
from urllib.parse import quote_plus

from crossdock.buildkit.proto import wire_pb2
from crossdock.buildkit.rpc.status import RpcError
from crossdock.engine.facade_shared import single_id
from crossdock.engine.sources.local import Fetched
from crossdock.errors import ContextError, CrossdockError, SolveError
from crossdock.linux import spread_subdirectories
from crossdock.progress.events import VertexStatus
from crossdock.server.receive import ContextReceiver
from crossdock.server.streams import session_failure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from crossdock.cancel import CancelToken
    from crossdock.engine.facade import Engine
    from crossdock.engine.solver import OpContext
    from crossdock.server.lefttree import TreeMemory
    from crossdock.server.sessions import ClientSession, SessionManager

__all__ = ["ClientDirectories"]

_METHOD = "/moby.filesync.v1.FileSync/DiffCopy"
_REPORT_S = 0.1


class ClientDirectories:
    """Satisfies the engine's ``FetchLocal`` for one build; :meth:`close` it when its results are complete."""

    def __init__(self, engine: Engine, sessions: SessionManager, session_id: str, trees: TreeMemory) -> None:
        """``trees`` are of all builds with this store."""
        self._engine = engine
        self._sessions = sessions
        self._trees = trees
        self._session_id = session_id
        self._stack = ExitStack()
        #: sessions that own a directory, by its name, where the definition does not say
        self.owners: dict[str, str] = {}
        self._given: dict[str, Path] = {}
        # Guards _known, _pending and _stack; never held while something is received.
        self._lock = threading.Condition()
        self._known: dict[tuple[str, ...], Fetched] = {}
        self._pending: set[tuple[str, ...]] = set()

    def __call__(self, name: str, attrs: Mapping[str, str], vertex: str, ctx: OpContext, /) -> Fetched:
        """Receive a directory, once per build and selection. Raises: ContextError, SessionLost, StoreFull."""
        if name in self._given:
            return Fetched(self._given[name])
        session_id = attrs.get("local.session") or self.owners.get(name) or self._session_id
        wanted = {k: v for k, v in attrs.items() if k not in ("local.session", "local.unique")}
        key = (name, session_id, json.dumps(wanted, sort_keys=True))
        with ctx.cancel.waking(self._wake), self._lock:
            while key in self._pending:
                ctx.cancel.check()
                self._lock.wait(1.0)
            if key in self._known:
                return self._known[key]
            self._pending.add(key)
        try:
            session = self._find(session_id, ctx.cancel)
            fetched = self._receive(session, name, attrs, vertex, ctx)
            with self._lock:
                self._known[key] = fetched
            return fetched
        finally:
            with self._lock:
                self._pending.discard(key)
                self._lock.notify_all()

    def add(self, name: str, path: Path) -> None:
        """Have a directory that is here already."""
        self._given[name] = path

    def close(self) -> None:
        """Let other builds have the directories."""
        with self._lock:
            stack, self._stack = self._stack, ExitStack()
            self._known.clear()  # what is known of them may be large
        stack.close()

    def _wake(self) -> None:
        with self._lock:
            self._lock.notify_all()

    def _find(self, session_id: str, cancel: CancelToken) -> ClientSession:
        """Return the session a definition names, or else the build's own."""
        from crossdock.server.sessions import SessionLost

        try:
            return self._sessions.get(session_id, cancel)
        except SessionLost:
            if session_id == self._session_id:
                raise
            return self._sessions.get(self._session_id, cancel)

    def _receive(
        self, session: ClientSession, name: str, attrs: Mapping[str, str], vertex: str, ctx: OpContext
    ) -> Fetched:
        if not session.supports(_METHOD):
            summary = f"no local sources enabled: the client offers no directory {name}"
            raise ContextError(summary)
        metadata_only = attrs.get("local.metadatatransfer", "") in ("1", "true")
        shared = ":".join((name, attrs.get("local.sharedkeyhint", ""), session.shared_key))
        store = self._engine.store
        with ExitStack() as stack:
            path = stack.enter_context(
                store.mounts.use(
                    self._engine.lease,
                    name=f"local source for {name}",
                    namespace=f"local\0{shared}\0{metadata_only}",
                    sharing="private",
                    record_type="source.local",
                    cancel=ctx.cancel,
                )
            )
            # On ext4 the inodes of removed files are looked at again and again while files are made near by, for a minute.
            # Folders far from each other suffer less: a first transfer takes a fifth of the time.
            with suppress(OSError):
                if not os.listdir(path):
                    spread_subdirectories(path)
            report = _Report(ctx, vertex, f"transferring {name}:")
            receiver = ContextReceiver(
                path,
                compare=attrs.get("local.differ", "metadata") != "none",
                wants_data=_wants_data(attrs) if metadata_only else None,
                on_bytes=report.add,
                owners=not single_id(),
                left=self._trees.take(path),
            )
            with report:
                _transfer(session, receiver, _request(name, attrs), ctx.cancel)
            if receiver.left is not None:
                self._trees.keep(path, receiver.left)
            with self._lock:
                self._stack.enter_context(stack.pop_all())
        return Fetched(path, receiver.left.tree if receiver.left is not None else None)


def _transfer(
    session: ClientSession, receiver: ContextReceiver, metadata: list[tuple[str, str]], cancel: CancelToken
) -> None:
    """Run the protocol over one call. Raises: ContextError, SessionLost, StoreFull, the token's cause."""
    call = session.start(_METHOD, metadata)
    try:
        with cancel.waking(call.cancel):
            for answer in receiver.run(call.batches()):
                call.send_raw(answer)
    except RpcError as exc:
        cancel.check()
        raise session_failure(session, exc, "receiving a directory") from exc
    except CrossdockError as exc:
        with suppress(RpcError):
            text = exc.summary.encode(errors="replace")
            call.send(wire_pb2.Packet(type=wire_pb2.Packet.PACKET_ERR, data=text).SerializeToString())
        raise
    finally:
        call.cancel()


def _request(name: str, attrs: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the metadata of a transfer: patterns, escaped when they are not ASCII."""
    out = [("dir-name", name)]
    for key, attr in (
        ("include-patterns", "local.includepattern"),
        ("exclude-patterns", "local.excludepatterns"),
        ("followpaths", "local.followpaths"),
    ):
        values = _list(attrs, attr)
        if any(not value.isascii() or not value.isprintable() for value in values):
            out += [(key, quote_plus(value)) for value in values]
            out.append((f"{key}-encoded", "1"))
        else:
            out += [(key, value) for value in values]
    if not name.isascii():
        out[0] = ("dir-name", quote_plus(name))
        out.append(("dir-name-encoded", "1"))
    return out


def _list(attrs: Mapping[str, str], name: str) -> list[str]:
    text = attrs.get(name, "")
    if not text:
        return []
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        summary = f"{name} is not a JSON list of strings: {text!r}"
        raise SolveError(summary)
    return value


def _wants_data(attrs: Mapping[str, str]) -> Callable[[str], bool]:
    """Return which files of a metadata-only transfer come with their bytes."""
    from crossdock.patterns.matcher import compile_patterns

    return compile_patterns(_list(attrs, "local.metadatatransferexclude")).matches


class _Report:
    """Shows a transfer; not more often than a reader can follow."""

    def __init__(self, ctx: OpContext, vertex: str, title: str) -> None:
        self._ctx = ctx
        self._vertex = vertex
        self._title = title
        self._bytes = 0
        self._started_ns = time.time_ns()
        self._shown_at = 0.0

    def add(self, count: int) -> None:
        """Note bytes received."""
        self._bytes += count
        now = time.monotonic()
        if now - self._shown_at >= _REPORT_S:
            self._shown_at = now
            self._emit(None)

    def __enter__(self) -> _Report:
        self._emit(None)
        return self

    def __exit__(self, *_: object) -> None:
        self._emit(time.time_ns())

    def _emit(self, completed_ns: int | None) -> None:
        self._ctx.sink.emit(
            VertexStatus(
                id=self._title,
                vertex=self._vertex,
                name="transferring",
                current=self._bytes,
                timestamp_ns=time.time_ns(),
                started_ns=self._started_ns,
                completed_ns=completed_ns,
            )
        )
