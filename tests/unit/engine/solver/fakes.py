"""Fake ops with call counters, an in-memory cache, and a single-threaded driver of the state machine."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from typing import TYPE_CHECKING, Any

from crossdock.engine.solver import model
from crossdock.engine.solver.model import CacheMap, Found, InputKey, VertexSpec
from crossdock.engine.solver.state import SolverState
from crossdock.errors import SolveError

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence

    from crossdock.cancel import CancelToken


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


class FakeOp:
    """Its result is a text made of its name and what it reads; ``content`` inputs are keyed by content.

    ``reads`` maps an input index to a function of the input's text (what the op sees of it).
    """

    def __init__(
        self,
        name: str,
        *,
        key: str | None = None,
        content: Sequence[int] = (),
        inputs: int = 0,
        volatile: bool = False,
        reads: Any = None,
        fails: BaseException | None = None,
        outputs: int = 1,
    ) -> None:
        self.name = name
        self.key = key if key is not None else name
        self.content = frozenset(content)
        self.n_inputs = inputs
        self.volatile = volatile
        self.reads = reads or (lambda text: text)
        self.fails = fails
        self.outputs = outputs
        self.cache_map_calls = 0
        self.content_calls = 0
        self.exec_calls = 0
        self.gate: threading.Event | None = None
        self.started = threading.Event()
        self.cancelled = False

    def cache_map(self, ctx: object) -> CacheMap:
        self.cache_map_calls += 1
        keys = tuple(InputKey("", i in self.content) for i in range(self.n_inputs))
        return CacheMap(self.key, keys, self.volatile)

    def content_digest(self, index: int, result: object, ctx: object) -> str:
        self.content_calls += 1
        return _digest(self.reads(str(result)))

    def execute(self, inputs: Sequence[object], ctx: model.OpContext | None) -> Sequence[object]:
        self.exec_calls += 1
        self.started.set()
        if self.gate is not None and ctx is not None:
            with ctx.cancel.waking(self.gate.set):
                self.gate.wait(10)
            self.cancelled = ctx.cancel.cancelled
            ctx.cancel.check()
        if self.fails is not None:
            raise self.fails
        return [f"{self.name}:{i}({','.join(map(str, inputs))})" for i in range(self.outputs)]


class FakeCache:
    """Keys, links and results in dicts; safe from threads."""

    def __init__(self) -> None:
        self.links: dict[str, str] = {}
        self.results: dict[str, tuple[object, ...]] = {}
        self.locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def lookup(self, key: str) -> Found | None:
        canonical = self.links.get(key, key)
        results = self.results.get(canonical)
        if results is None and canonical == key:
            return None
        return Found(canonical, results)

    def link(self, key: str, canonical: str) -> None:
        self.links[key] = canonical

    @contextlib.contextmanager
    def exclusive(self, key: str, cancel: CancelToken) -> Iterator[None]:
        with self._lock:
            lock = self.locks.setdefault(key, threading.Lock())
        while not lock.acquire(timeout=0.01):
            cancel.check()
        try:
            yield
        finally:
            lock.release()

    def save(self, key: str, results: Sequence[object], *, vertex: str) -> None:
        self.results[key] = tuple(results)


class Driver:
    """Performs commands one by one, in an order chosen by ``rng``; checks invariants after every event."""

    def __init__(self, rng: random.Random, cache: FakeCache | None = None) -> None:
        self.state = SolverState()
        self.cache = cache or FakeCache()
        self.rng = rng
        self.pending: list[Any] = []
        self.finished: dict[str, model.FinishJob] = {}
        self.notes: list[model.Notify] = []
        self.cancels: list[int] = []

    def send(self, event: model.Event) -> None:
        for command in self.state.handle(event):
            if isinstance(command, model.FinishJob):
                assert command.job not in self.finished
                self.finished[command.job] = command
            elif isinstance(command, model.Notify):
                self.notes.append(command)
            elif isinstance(command, model.Cancel):
                self.cancels.append(command.token)
                # A cancelled command may still answer, or not.
                if self.rng.random() < 0.5:
                    self.pending = [p for p in self.pending if p.token != command.token]
            else:
                self.pending.append(command)
        self.state.check_invariants()

    def step(self) -> bool:
        if not self.pending:
            return False
        command = self.pending.pop(self.rng.randrange(len(self.pending)))
        self.send(self.perform(command))
        return True

    def perform(self, command: Any) -> model.Event:
        try:
            return self._perform(command)
        except SolveError as exc:
            return model.CommandFailed(command.token, exc)

    def _perform(self, command: Any) -> model.Event:
        ctx: Any = None
        match command:
            case model.AskCacheMap():
                return model.CacheMapReady(command.token, command.op.cache_map(ctx))
            case model.Lookup():
                found = self.cache.lookup(command.key)
                if found and command.alias:
                    self.cache.link(command.alias, found.canonical)
                return model.LookupReady(command.token, found)
            case model.AskContent():
                return model.ContentReady(
                    command.token,
                    tuple((i, command.op.content_digest(i, r, ctx)) for i, r in command.inputs),
                )
            case model.Execute():
                results = tuple(command.op.execute(command.inputs, ctx))
                if command.key is not None:
                    self.cache.save(command.key, results, vertex=command.vertex)
                    for alias in command.aliases:
                        self.cache.link(alias, command.key)
                return model.RunDone(command.token, results)
            case _:
                raise AssertionError(command)

    def run(self) -> None:
        while self.step():
            pass

    def solve(
        self, specs: Sequence[VertexSpec], *outputs: str | tuple[str, int], job: str = "job"
    ) -> model.FinishJob:
        self.finished.pop(job, None)
        wanted = tuple((o, 0) if isinstance(o, str) else o for o in outputs)
        self.send(model.AddJob(job, tuple(specs), wanted))
        self.run()
        return self.finished[job]


def vertex(op: FakeOp, *inputs: str | tuple[str, int], nonce: str = "", id_: str | None = None) -> VertexSpec:
    op.n_inputs = len(inputs)
    refs = tuple((i, 0) if isinstance(i, str) else i for i in inputs)
    return VertexSpec(id_ or op.name, op, refs, nonce)
