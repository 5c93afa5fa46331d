"""Drives the state machine: one coordinator thread owns the state, pools execute its commands.

Callers block in :meth:`Scheduler.solve`, from any number of threads; equal vertices of concurrent solves are solved
once. Not for deciding anything: that is :mod:`crossdock.engine.solver.state`.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from contextlib import nullcontext
from queue import SimpleQueue
from typing import TYPE_CHECKING, Protocol, TypeVar

from crossdock.cancel import CancelToken
from crossdock.engine.solver.model import (
    AddJob,
    AskCacheMap,
    AskContent,
    CacheMapReady,
    Cancel,
    CommandFailed,
    ContentReady,
    Execute,
    FinishJob,
    Lookup,
    LookupReady,
    Notify,
    OpContext,
    RemoveJob,
    RunDone,
)
from crossdock.engine.solver.state import SolverState
from crossdock.errors import Cancelled, InternalError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from crossdock.engine.solver.model import Command, Event, KeyCache, KeyedVertex, Result, VertexSpec
    from crossdock.progress import events as progress

__all__ = ["JobWatcher", "Scheduler"]

#: threads that compute keys and content digests
_KEY_THREADS = 4
#: what is kept of a running op's events, for jobs that join it
_PAST_BYTES = 1 << 20

_Pooled = TypeVar("_Pooled", AskCacheMap, AskContent, Execute)


class JobWatcher(Protocol):
    """Hears about the vertices of one job; called from several threads, must not block or raise."""

    def notify(self, vertex: str, what: str, error: BaseException | None, /) -> None:
        """``what`` is ``started``, ``done``, ``cached`` or ``failed``."""
        ...

    def emit(self, vertex: str, event: progress.Event, /) -> None:
        """Take an event of an op at work."""
        ...


class _Job:
    __slots__ = ("done", "error", "ids", "keyed", "on_output", "outputs", "results", "watcher")

    def __init__(
        self,
        ids: frozenset[str],
        outputs: Sequence[tuple[str, int]],
        watcher: JobWatcher,
        on_output: Callable[[int, Result], None] | None,
    ) -> None:
        self.ids = ids
        self.outputs = outputs
        self.on_output = on_output
        self.watcher = watcher
        self.done = threading.Event()
        self.results: tuple[Result, ...] | None = None
        self.keyed: tuple[KeyedVertex, ...] = ()
        self.error: BaseException | None = None


class _VertexSink:
    """Gives an op's events to every job that has the vertex."""

    __slots__ = ("_scheduler", "_vertex")

    def __init__(self, scheduler: Scheduler, vertex: str) -> None:
        self._scheduler = scheduler
        self._vertex = vertex

    def emit(self, event: progress.Event, /) -> None:
        for job in self._scheduler.jobs_of(self._vertex):
            job.watcher.emit(self._vertex, event)


class _RunSink:
    """Gives the events of a running op to every job that has the vertex; who joins late first hears what was."""

    __slots__ = ("_joined", "_lock", "_past", "_past_bytes", "_scheduler", "vertex")

    def __init__(self, scheduler: Scheduler, vertex: str) -> None:
        self._scheduler = scheduler
        self.vertex = vertex
        self._lock = threading.Lock()
        self._joined = set(scheduler.jobs_of(vertex))
        self._past: deque[progress.Event] = deque()
        self._past_bytes = 0

    def emit(self, event: progress.Event, /) -> None:
        with self._lock:
            self._past.append(event)
            self._past_bytes += _weight(event)
            while self._past_bytes > _PAST_BYTES:
                self._past_bytes -= _weight(self._past.popleft())
            for job in self._scheduler.jobs_of(self.vertex):
                if job in self._joined:
                    job.watcher.emit(self.vertex, event)

    def join(self, job: _Job) -> None:
        """Let a job hear what there was, and from now on what there is."""
        with self._lock:
            if job in self._joined:
                return
            self._joined.add(job)
            for event in self._past:
                job.watcher.emit(self.vertex, event)


def _tell_outputs(job: _Job, done: Notify) -> None:
    if job.on_output is None:
        return
    for number, (vertex, index) in enumerate(job.outputs):
        if vertex == done.vertex and index < len(done.results):
            job.on_output(number, done.results[index])


def _weight(event: progress.Event) -> int:
    """Return roughly what an event takes in memory."""
    return 400 + len(getattr(event, "data", b""))


class _Pool:
    """Daemon threads, started when needed; a task never raises."""

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._busy = 0  # tasks queued or at work; guarded by _lock
        self._threads = 0  # guarded by _lock
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)

    def submit(self, task: Callable[[], None]) -> None:
        with self._lock:
            self._busy += 1
            start = self._threads < min(self._busy, self._limit)
            self._threads += start
            name = f"{self._name}-{self._threads}"
        if start:
            threading.Thread(target=self._work, name=name, daemon=True).start()
        self._tasks.put(task)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()
            with self._lock:
                self._busy -= 1
                if not self._busy:
                    self._idle.notify_all()

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait for all tasks to end; False when some task is still at work then."""
        with self._lock:
            return self._idle.wait_for(lambda: not self._busy, timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Wait for tasks to end, then end the threads; False when some task is still at work."""
        ended = self.wait_idle(timeout_s)
        with self._lock:
            threads = self._threads
        for _ in range(threads):
            self._tasks.put(None)
        return ended


class Scheduler:
    """Solves graphs, several at once, sharing what they have in common.

    ``parallelism`` limits ops at work. What ``watching`` gives for an op's token is held while the op works; it may
    cancel the token, whose cause is then the op's error. Close it: steps that were cancelled are waited for.
    """

    def __init__(
        self,
        cache: KeyCache,
        *,
        parallelism: int,
        watching: Callable[[CancelToken], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._cache = cache
        self._watching = watching
        self._state = SolverState()
        #: an ``Event`` of threading is set when all before it is handled; None ends the coordinator
        self._events: SimpleQueue[Event | threading.Event | None] = SimpleQueue()
        self._runs = _Pool("crossdock-run", parallelism)
        self._keys = _Pool("crossdock-key", _KEY_THREADS)
        self._thread: threading.Thread | None = None
        # Guards _jobs and _thread, for a few instructions each.
        self._lock = threading.Lock()
        self._jobs: dict[str, _Job] = {}
        self._ids = itertools.count(1)
        #: of each command in a pool; the coordinator's own
        self._cancels: dict[int, CancelToken] = {}
        #: of each op at work; the coordinator's own
        self._running: dict[int, _RunSink] = {}

    def solve(
        self,
        vertices: Sequence[VertexSpec],
        outputs: Sequence[tuple[str, int]],
        *,
        watcher: JobWatcher,
        cancel: CancelToken,
        keyed: list[KeyedVertex] | None = None,
        on_output: Callable[[int, Result], None] | None = None,
    ) -> tuple[Result, ...]:
        """Return the result of each ``(vertex id, output index)``. Blocks. The keys of the vertices go into ``keyed``.

        ``on_output`` is told each result, with its number in ``outputs``, as soon as it is made or found; what was known
        before the call it may not be told. It is called by the coordinator: it must not block or raise.
        ``vertices`` are all that is reachable, inputs before users. Raises the error of the first op that fails, or
        the cause of ``cancel``; ops that others want go on.
        """
        cancel.check()
        job_id = f"job{next(self._ids)}"
        job = _Job(frozenset(spec.id for spec in vertices), outputs, watcher, on_output)
        with self._lock:
            self._jobs[job_id] = job
            if self._thread is None:
                self._thread = threading.Thread(target=self._coordinate, name="crossdock-solver", daemon=True)
                self._thread.start()
        self._events.put(AddJob(job_id, tuple(vertices), tuple(outputs)))

        def leave() -> None:
            job.error = cancel.cause
            self._events.put(RemoveJob(job_id))
            job.done.set()

        try:
            with cancel.waking(leave):
                job.done.wait()
        except BaseException:
            self._events.put(RemoveJob(job_id))
            raise
        finally:
            with self._lock:
                self._jobs.pop(job_id, None)
        if job.results is None:
            self._events.put(RemoveJob(job_id))  # it may not have been taken up yet
            raise job.error if job.error is not None else InternalError("a solve ended without a result")
        if keyed is not None:
            keyed.extend(job.keyed)
        return job.results

    def settle(self, timeout_s: float) -> bool:
        """Wait until what past solves started has stopped, as it does soon after they end.

        False when something is still at work then: the steps of another solve, or one that does not stop.
        """
        with self._lock:
            running = self._thread is not None
        handled = threading.Event()
        if running:
            self._events.put(handled)
            if not handled.wait(timeout_s):
                return False
        return self._runs.wait_idle(timeout_s) and self._keys.wait_idle(timeout_s)

    def close(self, timeout_s: float = 30.0) -> None:
        """Cancel what is left and wait for it to stop. Raises ``InternalError`` when it does not in time."""
        with self._lock:
            jobs = list(self._jobs.items())
            thread, self._thread = self._thread, None
        for job_id, _ in jobs:
            self._events.put(RemoveJob(job_id))
        if thread is not None:
            self._events.put(None)
            thread.join(timeout_s)
        ended = self._runs.close(timeout_s) and self._keys.close(timeout_s)
        for _, job in jobs:
            if not job.done.is_set():
                job.error = Cancelled("the engine was closed")
                job.done.set()
        if not ended:
            msg = "a cancelled step did not stop"
            raise InternalError(msg)

    def jobs_of(self, vertex: str) -> list[_Job]:
        """Return the jobs whose graph contains a vertex."""
        with self._lock:
            return [job for job in self._jobs.values() if vertex in job.ids]

    # --- the coordinator -------------------------------------------------------------------------------------

    def _coordinate(self) -> None:
        while (event := self._events.get()) is not None:
            if isinstance(event, threading.Event):
                event.set()
                continue
            try:
                if not isinstance(event, AddJob | RemoveJob):
                    self._cancels.pop(event.token, None)
                    self._running.pop(event.token, None)
                for command in self._state.handle(event):
                    self._dispatch(command)
            except Exception as exc:  # noqa: BLE001 -- top of the thread: whoever waits must learn of it
                self._give_up(exc)
        for token in self._cancels.values():
            token.cancel(Cancelled("the engine was closed"))

    def _give_up(self, exc: BaseException) -> None:
        """Fail all solves under way after a defect, and begin anew: those to come must not suffer from it."""
        import logging

        logging.getLogger("crossdock.engine.solver").error("the solver broke: %s", exc, exc_info=exc)
        for token in self._cancels.values():
            token.cancel(exc)
        self._cancels.clear()
        self._running.clear()
        self._state = SolverState(self._state.last_token)
        with self._lock:
            jobs = list(self._jobs.values())
        for job in jobs:
            job.error = exc
            job.done.set()

    def _dispatch(self, command: Command) -> None:
        match command:
            case Notify() | FinishJob():
                self._tell(command)
            case Cancel(token):
                self._running.pop(token, None)
                if (running := self._cancels.pop(token, None)) is not None:
                    running.cancel(Cancelled("nobody wants the result any more"))
            case Lookup():
                # Here and now: reading a few rows costs less than handing it to a thread.
                self._perform(lambda: self._lookup(command), command.token)
            case AskCacheMap():
                if command.slow:
                    self._submit(self._keys, command, self._cache_map)
                else:
                    self._perform(
                        lambda: self._cache_map(command, self._context(command.vertex)), command.token
                    )
            case AskContent():
                self._submit(self._keys, command, self._content)
            case Execute():
                self._submit(self._runs, command, self._execute)

    def _tell(self, command: Notify | FinishJob) -> None:
        if isinstance(command, Notify):
            for job_id in command.jobs:
                # A job is a party also to what leads its own vertices, which it does not know.
                if (job := self._job(job_id)) is not None and command.vertex in job.ids:
                    job.watcher.notify(command.vertex, command.what, command.error)
                    if command.what == "started":
                        self._join(job, command.vertex)
                    _tell_outputs(job, command)
        elif (job := self._job(command.job)) is not None:
            job.results = command.results
            job.keyed = command.keyed
            job.error = command.error
            job.done.set()

    def _join(self, job: _Job, vertex: str) -> None:
        for sink in self._running.values():
            if sink.vertex == vertex:
                sink.join(job)

    def _job(self, job_id: str) -> _Job | None:
        with self._lock:
            return self._jobs.get(job_id)

    def _context(self, vertex: str) -> OpContext:
        return OpContext(CancelToken(), _VertexSink(self, vertex))

    def _submit(self, pool: _Pool, command: _Pooled, perform: Callable[[_Pooled, OpContext], Event]) -> None:
        if isinstance(command, Execute):
            sink = self._running[command.token] = _RunSink(self, command.vertex)
            ctx = OpContext(CancelToken(), sink)
        else:
            ctx = self._context(command.vertex)
        self._cancels[command.token] = ctx.cancel

        def task() -> None:
            if not ctx.cancel.cancelled:
                self._perform(lambda: perform(command, ctx), command.token)

        pool.submit(task)

    def _perform(self, action: Callable[[], Event], token: int) -> None:
        """Post what ``action`` returns, or its error."""
        try:
            event = action()
        except Exception as exc:  # noqa: BLE001 -- top of a worker thread: the error belongs to the vertex
            event = CommandFailed(token, exc)
        self._events.put(event)

    # --- commands, in pool threads ---------------------------------------------------------------------------

    def _lookup(self, command: Lookup) -> Event:
        found = self._cache.lookup(command.key)
        if found is not None and command.alias is not None:
            self._cache.link(command.alias, found.canonical)
        return LookupReady(command.token, found)

    def _cache_map(self, command: AskCacheMap, ctx: OpContext) -> Event:
        return CacheMapReady(command.token, command.op.cache_map(ctx))

    def _content(self, command: AskContent, ctx: OpContext) -> Event:
        digests = tuple(
            (index, command.op.content_digest(index, result, ctx)) for index, result in command.inputs
        )
        return ContentReady(command.token, digests)

    def _execute(self, command: Execute, ctx: OpContext) -> Event:
        key = command.key
        if key is None:
            return RunDone(command.token, self._run(command, ctx))
        with self._cache.exclusive(key, ctx.cancel):
            found = self._cache.lookup(key)
            # Under another canonical key it would be a result that our users are not keyed by.
            results = found.results if found is not None and found.canonical == key else None
            cached = results is not None
            if results is None:
                results = self._run(command, ctx)
                ctx.cancel.check()
                self._cache.save(key, results, vertex=command.vertex)
            for alias in command.aliases:
                self._cache.link(alias, key)
        return RunDone(command.token, results, cached)

    def _run(self, command: Execute, ctx: OpContext) -> tuple[Result, ...]:
        with self._watching(ctx.cancel):
            return tuple(command.op.execute(command.inputs, ctx))
