"""One solve: from LLB outputs to solver vertices, and from what the solver reports to progress events."""

from __future__ import annotations

import errno
import os
import threading
import time
from typing import TYPE_CHECKING

from crossdock.engine.cache.refs import LocalTree, Ref
from crossdock.engine.solver import OpContext, VertexSpec
from crossdock.errors import (
    CacheError,
    Cancelled,
    CrossdockError,
    InternalError,
    NotSupported,
    SolveError,
    translate,
)
from crossdock.hashing import sha256
from crossdock.image.platform import local_platform
from crossdock.llb.graph import walk
from crossdock.llb.ops import BuildOp, DiffOp, ExecOp, FileOp, MergeOp, PassthroughOp, SourceOp
from crossdock.progress.events import Vertex

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from crossdock.cancel import CancelToken
    from crossdock.engine.facade_parts import SolveRecorder
    from crossdock.engine.facade_shared import Shared
    from crossdock.engine.ops.env import OpEnv
    from crossdock.engine.solver import KeyedVertex, Result, SolverOp
    from crossdock.engine.sources.image import ImageSource
    from crossdock.engine.sources.local import LocalSources
    from crossdock.engine.store import RecordType
    from crossdock.llb.graph import Node, Output
    from crossdock.progress.events import Event, EventSink

__all__ = ["LoadedGraph", "ProgressWatcher", "Solving", "display_name", "load_graph", "record_type"]


class Solving:
    """One call of ``Engine.solve``, with what it works with."""

    __slots__ = ("_cancel", "_env", "_images", "_locals", "_rewrite", "_shared", "_sink")

    def __init__(
        self,
        shared: Shared,
        env: OpEnv,
        locals_: LocalSources,
        images: Callable[[], ImageSource],
        sink: EventSink,
        cancel: CancelToken,
        rewrite: Callable[[Output], Output | None] = lambda output: output,
    ) -> None:
        """``rewrite`` is given definitions that the build itself made."""
        self._rewrite = rewrite
        self._shared = shared
        self._env = env
        self._locals = locals_
        self._images = images
        self._sink = sink
        self._cancel = cancel

    def run(
        self,
        wanted: Sequence[Output],
        *,
        keyed: list[KeyedVertex] | None,
        recorder: SolveRecorder | None,
        drop_failed: Callable[[EventSink], bool],
        early: Callable[[int, Ref], None] | None,
    ) -> list[Ref]:
        """Solve, once more without each imported cache that turns out to lack what it lists.

        Raises: as ``Engine.solve``.
        """
        while True:
            try:
                return self._run_once(wanted, keyed, recorder, early)
            except CacheError:
                if not drop_failed(self._sink):
                    raise

    def _run_once(
        self,
        wanted: Sequence[Output],
        keyed: list[KeyedVertex] | None,
        recorder: SolveRecorder | None,
        early: Callable[[int, Ref], None] | None,
    ) -> list[Ref]:
        shared = self._shared
        if any(isinstance(node.op, BuildOp) for node in walk(wanted)):
            wanted = self._expanded(wanted)
        graph = load_graph(
            wanted, env=self._env, locals_=self._locals, images=self._images, nonce=shared.fresh_nonce
        )
        for vertex, node in graph.nodes.items():
            shared.keys.steps[vertex.partition("!")[0]] = (record_type(node), display_name(node))
        watcher = ProgressWatcher(graph, self._sink)
        watcher.announce()
        keys: list[KeyedVertex] = []
        told = None if early is None or len(wanted) == 1 else _Early(len(wanted), watcher, early).known
        try:
            with translate({OSError: _os_error}):
                results = shared.scheduler.solve(
                    graph.specs,
                    graph.outputs,
                    watcher=watcher,
                    cancel=self._cancel,
                    keyed=keys,
                    on_output=told,
                )
        except BaseException:
            watcher.cancelled()
            raise
        if keyed is not None:
            keyed.extend(keys)
        context = OpContext(self._cancel, self._sink)
        if recorder is not None and (watcher.ran or recorder.wanted):
            from crossdock.engine.facade_reads import local_reads, stage_reads

            recorder.take(
                graph.nodes,
                keys,
                watcher.ran,
                local_reads(graph, context),
                stage_reads(graph, keys, watcher.ran, shared),
                self._cancel,
            )
        return [
            _final(result, self._env, vertex, context)
            for result, (vertex, _) in zip(results, graph.outputs, strict=True)
        ]

    def _expanded(self, wanted: Sequence[Output]) -> Sequence[Output]:
        """Put nested definitions in the place of the ops that name them."""
        from crossdock.engine.cache.layerview import LayerView
        from crossdock.engine.facade_look import read_file
        from crossdock.engine.facade_nested import expanded

        context = OpContext(self._cancel, self._sink)

        def read(ref: Ref, path: str) -> bytes | None:
            return read_file(LayerView(self._env.directories(ref, "", context)), path)

        return expanded(
            wanted,
            solve=lambda output: self._run_once([output], None, None, None)[0],
            read=read,
            rewrite=self._rewrite,
        )


class _Early:
    """Tells of results that are there while others are still made; not when nothing had to be made so far."""

    def __init__(self, count: int, watcher: ProgressWatcher, tell: Callable[[int, Ref], None]) -> None:
        self._missing = set(range(count))
        self._watcher = watcher
        self._tell = tell

    def known(self, number: int, result: Result, /) -> None:
        self._missing.discard(number)
        if self._missing and self._watcher.ran and isinstance(result, Ref):
            self._tell(number, result)


def _final(result: Result, env: OpEnv, vertex: str, ctx: OpContext) -> Ref:
    """Return a result as layers: a local directory that is itself asked for is packed into one."""
    if isinstance(result, LocalTree):
        return env.packed(result, vertex, ctx)
    if isinstance(result, Ref):
        return result
    summary = "a solve gave no file system"
    raise SolveError(summary, vertex=vertex)


def _os_error(exc: BaseException) -> CrossdockError:
    if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
        from crossdock.engine.store.rim import explain

        return explain(exc, "write a part of the build")
    return SolveError(f"the system refused a part of the build: {exc}")


class LoadedGraph:
    """The vertices of one solve, and where each comes from."""

    __slots__ = ("nodes", "outputs", "specs")

    def __init__(self) -> None:
        self.specs: list[VertexSpec] = []
        #: vertex id -> node
        self.nodes: dict[str, Node] = {}
        #: per requested output the vertex and index
        self.outputs: list[tuple[str, int]] = []


def load_graph(
    outputs: Sequence[Output],
    *,
    env: OpEnv,
    locals_: LocalSources,
    images: Callable[[], ImageSource],
    nonce: Callable[[], str],
) -> LoadedGraph:
    """Turn LLB into vertices.

    A vertex is known by its node's digest; one that depends on local directories, or ignores the cache, also by whose
    directories and which solve, so that solves of other callers do not share it.
    Raises: SolveError for a malformed op; NotSupported for an op this engine does not have.
    """
    graph = LoadedGraph()
    ids: dict[str, str] = {}
    fresh, own_salt = "", os.urandom(8).hex()
    for node in walk(_slowest_first(outputs)):
        salt = ""
        own_nonce = ""
        if isinstance(node.op, SourceOp):
            if node.op.identifier.startswith("local://"):
                salt = locals_.identity
        elif node.metadata.ignore_cache:
            fresh = fresh or nonce()
            salt, own_nonce = own_salt, fresh
        inputs = tuple((ids[i.node.digest], i.index) for i in node.inputs)
        vertex = _vertex_id(node, [name for name, _ in inputs], salt)
        ids[node.digest] = vertex
        graph.nodes[vertex] = node
        op = _make_op(node, env, locals_, images)
        slow = isinstance(node.op, SourceOp) and not node.op.identifier.startswith("local://")
        graph.specs.append(VertexSpec(vertex, op, inputs, own_nonce, slow and "@" not in _identifier(node)))
    if len(outputs) > 1:
        graph.nodes = {ids[node.digest]: node for node in walk(outputs)}  # shown in the caller's order
    graph.outputs = [(ids[output.node.digest], output.index) for output in outputs]
    if env.pack is not None:
        used = {edge.node.digest for node in graph.nodes.values() for edge in node.inputs}
        env.only_packed = frozenset(output.node.digest for output in outputs).difference(used)
    return graph


def _slowest_first(outputs: Sequence[Output]) -> Sequence[Output]:
    """Put what other architectures run first: emulated steps take longest, so that they should not be the last to start."""
    if len(outputs) < 2:
        return outputs
    own = local_platform().architecture

    def native(output: Output) -> bool:
        platform = output.node.platform
        return platform is None or platform.architecture == own

    return sorted(outputs, key=native)


def _identifier(node: Node) -> str:
    return node.op.identifier if isinstance(node.op, SourceOp) else ""


def _vertex_id(node: Node, inputs: Sequence[str], salt: str) -> str:
    if not salt and not any("!" in name for name in inputs):
        return node.digest
    text = "\0".join((node.digest, salt, *inputs))
    return f"{node.digest}!{sha256(text.encode()).hexdigest()[:16]}"


def _make_op(node: Node, env: OpEnv, locals_: LocalSources, images: Callable[[], ImageSource]) -> SolverOp:
    match node.op:
        case ExecOp():
            from crossdock.engine.ops.execop import ExecSolverOp

            return ExecSolverOp(node, env)
        case FileOp():
            from crossdock.engine.ops.fileop import FileSolverOp

            return FileSolverOp(node, env)
        case MergeOp():
            from crossdock.engine.ops.mergediff import MergeSolverOp

            return MergeSolverOp(node, env)
        case DiffOp():
            from crossdock.engine.ops.mergediff import DiffSolverOp

            return DiffSolverOp(node, env)
        case SourceOp(identifier=identifier):
            return _make_source(node, identifier, env, locals_, images)
        case BuildOp():
            summary = "a nested build was not read before the solve that needs it"
            raise InternalError(summary)
        case PassthroughOp():
            from crossdock.engine.ops.passthrough import PassthroughSolverOp

            return PassthroughSolverOp(node, env)


def _make_source(
    node: Node, identifier: str, env: OpEnv, locals_: LocalSources, images: Callable[[], ImageSource]
) -> SolverOp:
    scheme = identifier.partition("://")[0]
    if scheme == "local":
        from crossdock.engine.sources.local import LocalSolverOp

        return LocalSolverOp(node, env, locals_)
    if scheme == "docker-image":
        from crossdock.engine.sources.imageop import ImageSolverOp

        return ImageSolverOp(node, env, images)
    if scheme in ("http", "https"):
        from crossdock.engine.sources.http import HttpSolverOp

        return HttpSolverOp(node, env)
    if scheme == "git":
        from crossdock.engine.sources.git import GitSolverOp

        return GitSolverOp(node, env)
    if scheme == "oci-layout":
        from crossdock.engine.sources.ocilayout import LayoutSolverOp

        return LayoutSolverOp(node, env)
    if scheme in ("docker-image+blob", "oci-layout+blob"):
        from crossdock.engine.sources.imageblob import BlobSolverOp

        return BlobSolverOp(node, env, images)
    summary = f"sources of the kind {scheme}:// are not supported by the embedded engine"
    raise NotSupported(summary, hint=f"asked for: {identifier}")


class ProgressWatcher:
    """Turns what happens to vertices into progress events of one solve. Safe from any thread."""

    def __init__(self, graph: LoadedGraph, sink: EventSink) -> None:
        self._graph = graph
        self._sink = sink
        self._lock = threading.Lock()
        self._started: dict[str, int] = {}
        self._over: set[str] = set()
        #: steps that ran in this solve, sources left out; single set operations only
        self.ran: set[str] = set()

    def announce(self) -> None:
        """Show every vertex, inputs before users, so that printers can number them."""
        for vertex in self._graph.nodes:
            self._sink.emit(self._event(vertex))

    def notify(self, vertex: str, what: str, error: BaseException | None, /) -> None:
        """Show that a vertex started or ended."""
        now = time.time_ns()
        with self._lock:
            if vertex in self._over:
                return
            if what == "started":
                self._started.setdefault(vertex, now)
                completed = None
            else:
                self._over.add(vertex)
                completed = now
                if what == "done" and not isinstance(self._graph.nodes[vertex].op, SourceOp):
                    self.ran.add(vertex)
            started = self._started.get(vertex, now)
        text = "" if error is None else str(error) or type(error).__name__
        self._sink.emit(
            self._event(
                vertex, started_ns=started, completed_ns=completed, cached=what == "cached", error=text
            )
        )

    def emit(self, vertex: str, event: Event, /) -> None:  # noqa: ARG002
        """Pass an op's event on; it names the vertex itself."""
        self._sink.emit(event)

    def cancelled(self) -> None:
        """Show that what had started was ended because something else failed, or the build was cancelled."""
        with self._lock:
            open_ = [vertex for vertex in self._started if vertex not in self._over]
        for vertex in open_:
            self.notify(vertex, "failed", Cancelled("context canceled"))

    def _event(
        self,
        vertex: str,
        *,
        started_ns: int | None = None,
        completed_ns: int | None = None,
        cached: bool = False,
        error: str = "",
    ) -> Vertex:
        node = self._graph.nodes[vertex]
        group = node.metadata.progress_group
        return Vertex(
            digest=node.digest,
            name=display_name(node),
            inputs=tuple(i.node.digest for i in node.inputs),
            started_ns=started_ns,
            completed_ns=completed_ns,
            cached=cached,
            error=error,
            platform="" if node.platform is None else str(node.platform),
            progress_group="" if group is None else group.id,
            progress_group_name="" if group is None else group.name,
        )


def record_type(node: Node) -> RecordType:
    """Return the type of what a vertex leaves in the store, as ``du`` and ``prune`` have it."""
    if isinstance(node.op, SourceOp) and node.op.identifier.startswith("git://"):
        return "source.git.checkout"
    return "regular"


def display_name(node: Node) -> str:
    """Return how a vertex is shown: the frontend's name, or what the op does."""
    if node.name:
        return node.name
    match node.op:
        case ExecOp(meta=meta):
            return " ".join(meta.args)
        case SourceOp(identifier=identifier):
            return identifier
        case FileOp(actions=actions):
            return ", ".join(type(a.action).__name__.removeprefix("FileAction").lower() for a in actions)
        case MergeOp():
            return "merge"
        case DiffOp():
            return "diff"
        case BuildOp():
            return "build"
        case PassthroughOp():
            return "passthrough"
