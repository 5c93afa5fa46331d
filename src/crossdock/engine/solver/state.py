"""The solver's state machine: events in, commands out. No locks, no threads, no I/O, no clock.

Each vertex climbs through states ordered by price, and no further than somebody needs:

    NEW            its definition key is not known, or its lookup is under way
    KEYED          the definition key was looked up in vain; the content of inputs may still identify it
    CONTENT_KEYED  its canonical key is known; there is no result
    RUNNING        its op executes
    DONE           results known
    FAILED

Every loaded vertex is *keyed*; only a vertex in somebody's ``wanted_by`` is *run*. A hit asks nothing of the inputs,
so a cached graph runs nothing. Vertices whose keys turn out equal follow the first of them. See ``docs/dev/solver.md``.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

from crossdock.engine.solver.keys import KeyHasher
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
    KeyedVertex,
    Lookup,
    LookupReady,
    Notify,
    RemoveJob,
    RunDone,
)
from crossdock.errors import InternalError, SolveError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from crossdock.engine.solver.model import CacheMap, Command, Event, Found, Result, VertexSpec

__all__ = ["SolverState", "VertexState"]


class VertexState(Enum):
    """Where a vertex stands; see the module."""

    NEW = "new"
    KEYED = "keyed"
    CONTENT_KEYED = "content-keyed"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


_NEW, _KEYED, _CONTENT = VertexState.NEW, VertexState.KEYED, VertexState.CONTENT_KEYED
_RUNNING, _DONE, _FAILED = VertexState.RUNNING, VertexState.DONE, VertexState.FAILED

#: the only ways to change state
TRANSITIONS = frozenset(
    {
        (_NEW, _KEYED),
        (_NEW, _CONTENT),  # a link named the canonical key, or the leader has it
        (_NEW, _DONE),  # hit by definition, or the leader is done
        (_NEW, _FAILED),
        (_KEYED, _CONTENT),
        (_KEYED, _DONE),  # hit by content, or the leader is done
        (_KEYED, _FAILED),
        (_CONTENT, _RUNNING),
        (_CONTENT, _DONE),  # the leader is done
        (_CONTENT, _FAILED),  # the leader failed
        (_RUNNING, _DONE),
        (_RUNNING, _FAILED),
        (_RUNNING, _CONTENT),  # nobody wants the result any more
    }
)


class _Vertex:
    """All that is known of one vertex; changed by :class:`SolverState` alone."""

    __slots__ = (
        "blocked",
        "canonical",
        "definition_key",
        "error",
        "followers",
        "id",
        "inputs",
        "keys",
        "leader",
        "loaded_by",
        "map",
        "needs",
        "nonce",
        "op",
        "owned",
        "results",
        "slow_key",
        "state",
        "token",
        "users",
        "wanted_by",
    )

    def __init__(self, spec: VertexSpec) -> None:
        self.id = spec.id
        self.inputs = spec.inputs
        self.op = spec.op
        self.nonce = spec.nonce
        self.slow_key = spec.slow_key
        self.state = _NEW
        self.map: CacheMap | None = None
        self.definition_key = ""
        #: keys that identify the vertex in every process: by definition, then by content
        self.keys: list[str] = []
        #: keys the vertex answers for
        self.owned: set[str] = set()
        #: what users hash; known from CONTENT_KEYED on
        self.canonical: str | None = None
        #: the canonical key comes only after some step has run
        self.blocked = False
        #: of the command under way, if any
        self.token: int | None = None
        self.results: tuple[Result, ...] | None = None
        #: outputs that users and jobs refer to, at the most
        self.needs = 1
        self.error: BaseException | None = None
        #: jobs whose graph contains the vertex
        self.loaded_by: set[str] = set()
        #: jobs that need its results
        self.wanted_by: set[str] = set()
        self.users: set[str] = set()
        #: the vertex with the same key that does the work
        self.leader: str | None = None
        self.followers: set[str] = set()


_Answer: TypeAlias = CacheMapReady | LookupReady | ContentReady | RunDone | CommandFailed


class _Job:
    __slots__ = ("id", "outputs", "waiting")

    def __init__(self, id_: str, outputs: tuple[tuple[str, int], ...]) -> None:
        self.id = id_
        self.outputs = outputs
        self.waiting = {vertex for vertex, _ in outputs}


class SolverState:
    """The whole state; :meth:`handle` is the only way in."""

    def __init__(self, after: int = 0) -> None:
        """``after``: the last token of a state that was given up, whose commands may still be answered."""
        self._vertices: dict[str, _Vertex] = {}
        self._jobs: dict[str, _Job] = {}
        #: key -> the vertex that answers for it
        self._owners: dict[str, str] = {}
        #: token of each command under way -> vertex
        self._tokens: dict[int, str] = {}
        self._last_token = after
        # Work left over within one event. Jobs end between steps, never inside one, as that unloads vertices.
        self._todo: deque[str] = deque()
        self._ended: deque[FinishJob] = deque()
        self._out: list[Command] = []
        self._story: deque[tuple[str, str]] = deque(maxlen=20_000)

    @property
    def last_token(self) -> int:
        """The token of the newest command."""
        return self._last_token

    # --- events ----------------------------------------------------------------------------------------------

    def handle(self, event: Event) -> list[Command]:
        """Take one event and return what must be done now, in order. Answers to cancelled commands are ignored."""
        if isinstance(event, AddJob):
            self._add_job(event)
        elif isinstance(event, RemoveJob):
            self._remove_job(event.job)
        elif (vertex := self._answered(event.token)) is not None:
            self._answer(vertex, event)
        while self._ended or self._todo:
            if self._ended:
                self._end_job(self._ended.popleft())
                continue
            loaded = self._vertices.get(self._todo.popleft())
            if loaded is not None:
                self._advance(loaded)
        out, self._out = self._out, []
        return out

    def _answered(self, token: int) -> _Vertex | None:
        vertex_id = self._tokens.pop(token, None)
        if vertex_id is None:
            return None
        vertex = self._vertices[vertex_id]
        vertex.token = None
        self._todo.append(vertex_id)
        return vertex

    def _answer(self, vertex: _Vertex, event: _Answer) -> None:
        match event:
            case CacheMapReady(_, cache_map):
                vertex.map = cache_map
            case LookupReady(_, found):
                self._looked_up(vertex, found)
            case ContentReady(_, digests):
                self._content_known(vertex, dict(digests))
            case RunDone(_, results, cached):
                self._finish(vertex, results, "cached" if cached else "done")
            case CommandFailed(_, error):
                self._fail(vertex, error)

    def _add_job(self, event: AddJob) -> None:
        job = _Job(event.job, event.outputs)
        self._jobs[job.id] = job
        for spec in event.vertices:
            vertex = self._vertices.get(spec.id)
            if vertex is None:
                vertex = self._vertices[spec.id] = _Vertex(spec)
                for input_id, output in spec.inputs:
                    self._vertices[input_id].users.add(spec.id)
                    self._need(input_id, output)
            self._load(vertex, job.id)
        for vertex_id, output in event.outputs:
            self._need(vertex_id, output)
            self._want(self._vertices[vertex_id], {job.id})
        if not event.outputs:
            self._finish_job(job)

    def _need(self, vertex_id: str, output: int) -> None:
        vertex = self._vertices[vertex_id]
        vertex.needs = max(vertex.needs, output + 1)

    def _load(self, vertex: _Vertex, job: str) -> None:
        """Make ``job`` a party to ``vertex``, to what leads it, and to everything below."""
        stack = [vertex]
        while stack:
            at = stack.pop()
            if job in at.loaded_by:
                continue
            at.loaded_by.add(job)
            self._todo.append(at.id)
            if at.state is _RUNNING:
                self._out.append(Notify(at.id, "started", (job,)))
            elif at.state is _DONE:
                self._out.append(Notify(at.id, "cached", (job,)))
            stack.extend(self._vertices[input_id] for input_id, _ in at.inputs)
            if at.leader is not None:
                stack.append(self._vertices[at.leader])

    def _want(self, vertex: _Vertex, jobs: Iterable[str]) -> None:
        """Have ``jobs`` want the results of ``vertex``."""
        while True:
            new = set(jobs) - vertex.wanted_by
            if not new:
                return
            vertex.wanted_by |= new
            self._todo.append(vertex.id)
            if vertex.state is _DONE:
                self._output_ready(vertex, new)
            elif vertex.state is _FAILED:
                self._fail_jobs(vertex, new)
            if vertex.leader is None:
                return
            vertex = self._vertices[vertex.leader]

    def _looked_up(self, vertex: _Vertex, found: Found | None) -> None:
        # A record with fewer outputs than are referred to, as a cache from elsewhere may have, is none of this vertex.
        if found is None or (found.results is not None and len(found.results) < vertex.needs):
            if vertex.state is _NEW:
                self._move(vertex, _KEYED)
            else:
                self._set_canonical(vertex, vertex.keys[-1])
        elif found.results is None:
            self._set_canonical(vertex, found.canonical)
        else:
            vertex.canonical = found.canonical
            self._own(vertex, found.canonical)
            self._finish(vertex, found.results, "cached")

    def _content_known(self, vertex: _Vertex, digests: dict[int, str]) -> None:
        key = self._hash(vertex, "content", digests)
        vertex.keys.append(key)
        if self._follow(vertex, key):
            return
        if vertex.nonce:
            self._set_canonical(vertex, _with_nonce(key, vertex.nonce))
            return
        alias = vertex.keys[0] if len(vertex.keys) > 1 else None
        self._issue(vertex, Lookup(self._token(vertex), vertex.id, key, alias))

    # --- progress of one vertex ------------------------------------------------------------------------------

    def _advance(self, vertex: _Vertex) -> None:
        if vertex.token is not None:
            if vertex.state is _RUNNING and not vertex.wanted_by:
                self._cancel(vertex)
                self._move(vertex, _CONTENT)
            return
        if vertex.leader is not None:
            self._mirror(vertex)
        elif vertex.state is _NEW:
            self._advance_new(vertex)
        elif vertex.state is _KEYED:
            self._advance_keyed(vertex)
        elif vertex.state is _CONTENT and vertex.wanted_by:
            self._advance_wanted(vertex)

    def _advance_new(self, vertex: _Vertex) -> None:
        if vertex.map is None:
            self._issue(vertex, AskCacheMap(self._token(vertex), vertex.id, vertex.op, vertex.slow_key))
            return
        unkeyed = [i for i, _ in vertex.inputs if self._vertices[i].canonical is None]
        if unkeyed:
            if any(self._vertices[input_id].blocked for input_id in unkeyed):
                self._expect_miss(vertex)
            return
        key = vertex.definition_key = self._hash(vertex, "definition", {})
        volatile = vertex.map.volatile or any(self._is_volatile(i) for i, _ in vertex.inputs)
        if not volatile:
            vertex.keys.append(key)
        if self._follow(vertex, key):
            return
        if volatile or vertex.nonce:
            self._move(vertex, _KEYED)
            self._todo.append(vertex.id)
        else:
            self._issue(vertex, Lookup(self._token(vertex), vertex.id, key))

    def _advance_keyed(self, vertex: _Vertex) -> None:
        indexes = self._content_inputs(vertex)
        if not indexes:
            key = vertex.definition_key
            self._set_canonical(vertex, _with_nonce(key, vertex.nonce) if vertex.nonce else key)
            return
        sources = [self._vertices[vertex.inputs[index][0]] for index in indexes]
        for source in sources:
            self._want(source, vertex.loaded_by)
        if any(source.state is not _DONE and not self._is_volatile(source.id) for source in sources):
            self._block(vertex)
        if all(source.state is _DONE for source in sources) and not self._lacks_input(vertex, indexes):
            inputs = tuple((index, self._input_result(vertex, index)) for index in indexes)
            self._issue(vertex, AskContent(self._token(vertex), vertex.id, vertex.op, inputs))

    def _expect_miss(self, vertex: _Vertex) -> None:
        """Let what is read by content run already: a step has to run before the key is known, which is then a new one.

        Otherwise the stages that ``COPY --from`` collects one after the other would run one after the other. For
        nothing when that step makes what it made before, and a result made of both outlived the other one.
        """
        self._block(vertex)
        for index in self._content_inputs(vertex):
            source = self._vertices[vertex.inputs[index][0]]
            if source.state is _CONTENT:
                self._want(source, vertex.loaded_by)

    def _block(self, vertex: _Vertex) -> None:
        if not vertex.blocked:
            vertex.blocked = True
            self._wake_users(vertex)

    def _advance_wanted(self, vertex: _Vertex) -> None:
        sources = [self._vertices[input_id] for input_id, _ in vertex.inputs]
        for source in sources:
            self._want(source, vertex.wanted_by)
        if any(source.state is not _DONE for source in sources):
            return
        if self._lacks_input(vertex, range(len(sources))):
            return
        volatile = vertex.map is not None and vertex.map.volatile
        key = None if volatile else vertex.canonical
        aliases = tuple(k for k in dict.fromkeys(vertex.keys) if k != key)
        inputs = tuple(self._input_result(vertex, index) for index in range(len(sources)))
        self._move(vertex, _RUNNING)
        self._out.append(Notify(vertex.id, "started", tuple(sorted(vertex.loaded_by))))
        self._issue(vertex, Execute(self._token(vertex), vertex.id, vertex.op, key, aliases, inputs))

    def _mirror(self, vertex: _Vertex) -> None:
        """Take over what the leader has reached."""
        leader = self._vertices[vertex.leader or ""]
        if leader.blocked and vertex.canonical is None:
            self._block(vertex)
        if vertex.canonical is None and leader.canonical is not None:
            vertex.canonical = leader.canonical
            self._wake_users(vertex)
            if leader.state is not _DONE:
                self._move(vertex, _CONTENT)
        if vertex.state in (_DONE, _FAILED):
            return
        if leader.state is _DONE:
            self._finish(vertex, leader.results or (), "cached")
        elif leader.state is _FAILED and leader.error is not None:
            self._fail(vertex, leader.error)

    def _set_canonical(self, vertex: _Vertex, canonical: str) -> None:
        """Enter CONTENT_KEYED, behind another vertex when that one has the key already."""
        if self._follow(vertex, canonical):
            return
        vertex.canonical = canonical
        self._move(vertex, _CONTENT)
        self._todo.append(vertex.id)
        self._wake_users(vertex)

    def _own(self, vertex: _Vertex, key: str) -> str:
        """Return who answers for ``key``: ``vertex`` unless somebody did before."""
        owner = self._owners.setdefault(key, vertex.id)
        if owner == vertex.id:
            vertex.owned.add(key)
        return owner

    def _follow(self, vertex: _Vertex, key: str) -> bool:
        """Follow the owner of ``key``, or become it."""
        owner = self._own(vertex, key)
        if owner == vertex.id or self._leads(vertex.id, owner):
            return False
        leader = self._vertices[owner]
        self._log(vertex, f"follows {owner}")
        vertex.leader = owner
        leader.followers.add(vertex.id)
        for job in vertex.loaded_by:
            self._load(leader, job)
        self._want(leader, vertex.wanted_by)
        self._todo.append(vertex.id)
        return True

    def _leads(self, vertex_id: str, follower: str | None) -> bool:
        while follower is not None and follower != vertex_id:
            follower = self._vertices[follower].leader
        return follower == vertex_id

    def _finish(self, vertex: _Vertex, results: tuple[Result, ...], what: str) -> None:
        vertex.results = results
        if vertex.canonical is None:
            msg = f"vertex {vertex.id} is done without a key"
            raise InternalError(msg, detail=self.story(vertex.id))
        self._move(vertex, _DONE)
        self._out.append(Notify(vertex.id, what, tuple(sorted(vertex.loaded_by)), results=results))
        self._wake_users(vertex)
        self._output_ready(vertex, set(vertex.loaded_by))

    def _output_ready(self, vertex: _Vertex, jobs: Iterable[str]) -> None:
        for job_id in sorted(jobs):
            job = self._jobs.get(job_id)
            if job is not None and vertex.id in job.waiting:
                job.waiting.discard(vertex.id)
                if not job.waiting:
                    self._finish_job(job)

    def _finish_job(self, job: _Job) -> None:
        results = []
        for vertex_id, index in job.outputs:
            vertex = self._vertices[vertex_id]
            if not _has(vertex, index):
                self._ended.append(FinishJob(job.id, None, _no_output(vertex, index), vertex_id))
                return
            results.append(self._result(vertex, index))
        self._ended.append(FinishJob(job.id, tuple(results), keyed=self._keyed(job.id)))

    def _keyed(self, job: str) -> tuple[KeyedVertex, ...]:
        """Return the keys of a job's vertices; what is local to this process has none."""
        return tuple(
            KeyedVertex(vertex.id, vertex.canonical, tuple(vertex.keys))
            for vertex in self._vertices.values()
            if job in vertex.loaded_by and vertex.canonical is not None and vertex.keys
        )

    def _end_job(self, finish: FinishJob) -> None:
        if finish.job in self._jobs:
            self._out.append(finish)
            self._remove_job(finish.job)

    def _fail(self, vertex: _Vertex, error: BaseException) -> None:
        # A key is needed by every job that has the vertex, a result only by those that want it.
        jobs = vertex.wanted_by if vertex.state in (_RUNNING, _CONTENT) else vertex.loaded_by
        vertex.error = error
        self._move(vertex, _FAILED)
        for follower in vertex.followers:
            self._todo.append(follower)
        if vertex.leader is None:
            self._out.append(Notify(vertex.id, "failed", tuple(sorted(vertex.loaded_by)), error))
        self._fail_jobs(vertex, jobs)

    def _fail_jobs(self, vertex: _Vertex, jobs: Iterable[str]) -> None:
        for job in sorted(jobs):
            self._ended.append(FinishJob(job, None, vertex.error, vertex.id))

    # --- bookkeeping -----------------------------------------------------------------------------------------

    def _remove_job(self, job: str) -> None:
        if self._jobs.pop(job, None) is None:
            return
        for vertex in list(self._vertices.values()):
            if job not in vertex.loaded_by:
                continue
            vertex.loaded_by.discard(job)
            vertex.wanted_by.discard(job)
            if not vertex.loaded_by:
                self._drop(vertex)
            else:
                self._todo.append(vertex.id)

    def _drop(self, vertex: _Vertex) -> None:
        self._cancel(vertex)
        del self._vertices[vertex.id]
        for key in vertex.owned:
            del self._owners[key]
        for input_id, _ in vertex.inputs:
            if input_id in self._vertices:
                self._vertices[input_id].users.discard(vertex.id)
        if vertex.leader is not None and vertex.leader in self._vertices:
            self._vertices[vertex.leader].followers.discard(vertex.id)

    def _cancel(self, vertex: _Vertex) -> None:
        if vertex.token is not None:
            self._out.append(Cancel(vertex.token))
            del self._tokens[vertex.token]
            vertex.token = None

    def _token(self, vertex: _Vertex) -> int:
        self._last_token += 1
        vertex.token = self._last_token
        self._tokens[self._last_token] = vertex.id
        return self._last_token

    def _issue(self, vertex: _Vertex, command: Command) -> None:
        self._log(vertex, type(command).__name__)
        self._out.append(command)

    def _wake_users(self, vertex: _Vertex) -> None:
        self._todo.extend(sorted(vertex.users))
        self._todo.extend(sorted(vertex.followers))

    def _move(self, vertex: _Vertex, to: VertexState) -> None:
        if (vertex.state, to) not in TRANSITIONS:
            msg = f"vertex {vertex.id} cannot go from {vertex.state.value} to {to.value}"
            raise InternalError(msg, detail=self.story(vertex.id))
        self._log(vertex, f"{vertex.state.value} -> {to.value}")
        vertex.state = to

    def _is_volatile(self, vertex_id: str) -> bool:
        """Whether the canonical key of a vertex means something in this process only."""
        at = self._vertices[vertex_id]
        return at.map is not None and at.map.volatile

    def _content_inputs(self, vertex: _Vertex) -> list[int]:
        keys = vertex.map.inputs if vertex.map is not None else ()
        return [
            index
            for index, (input_id, _) in enumerate(vertex.inputs)
            if (index < len(keys) and keys[index].content) or self._is_volatile(input_id)
        ]

    def _hash(self, vertex: _Vertex, kind: str, contents: dict[int, str]) -> str:
        if vertex.map is None:
            msg = f"vertex {vertex.id} has no cache map"
            raise InternalError(msg)
        hasher = KeyHasher(kind).text("op", vertex.map.digest)
        for index, (input_id, output) in enumerate(vertex.inputs):
            if index in contents:
                hasher.text("content", contents[index])
                continue
            selector = vertex.map.inputs[index].selector if index < len(vertex.map.inputs) else ""
            hasher.text("input", self._vertices[input_id].canonical or "").number("output", output)
            hasher.text("selector", selector)
        return hasher.finish()

    def _lacks_input(self, vertex: _Vertex, indexes: Iterable[int]) -> bool:
        """Fail a vertex that refers to an output which its input turned out not to have; whether it does."""
        for index in indexes:
            input_id, output = vertex.inputs[index]
            source = self._vertices[input_id]
            if not _has(source, output):
                self._fail(vertex, _no_output(source, output))
                return True
        return False

    def _input_result(self, vertex: _Vertex, index: int) -> Result:
        input_id, output = vertex.inputs[index]
        return self._result(self._vertices[input_id], output)

    def _result(self, vertex: _Vertex, output: int) -> Result:
        if vertex.results is None or not 0 <= output < len(vertex.results):
            msg = f"vertex {vertex.id} has no output {output}"
            raise InternalError(msg, detail=self.story(vertex.id))
        return vertex.results[output]

    # --- for tests and bug reports ---------------------------------------------------------------------------

    def _log(self, vertex: _Vertex, text: str) -> None:
        self._story.append((vertex.id, text))

    def story(self, vertex: str) -> str:
        """Return what happened to a vertex, one line each, oldest first."""
        return "\n".join(text for id_, text in self._story if id_ == vertex)

    def state_of(self, vertex: str) -> VertexState | None:
        """Return the state of a vertex, ``None`` when it is not loaded."""
        found = self._vertices.get(vertex)
        return found.state if found is not None else None

    @property
    def idle(self) -> bool:
        """True when no job is left."""
        return not self._jobs

    def check_invariants(self) -> None:
        """Raise ``InternalError`` when the state contradicts itself; for tests, after each event."""
        for vertex in self._vertices.values():
            problem = self._problem(vertex)
            if problem:
                msg = f"vertex {vertex.id}: {problem}"
                raise InternalError(msg, detail=self.story(vertex.id))
        for key, owner in self._owners.items():
            if owner not in self._vertices:
                msg = f"key {key} is owned by the unloaded vertex {owner}"
                raise InternalError(msg)
        for job in self._jobs.values():
            if not job.waiting:
                msg = f"job {job.id} waits for nothing"
                raise InternalError(msg)
        if self._jobs and not self._tokens:
            msg = "jobs wait while nothing is under way"
            raise InternalError(msg, detail="\n".join(f"{i}: {t}" for i, t in self._story))

    def _problem(self, vertex: _Vertex) -> str:
        state = vertex.state
        inputs = [self._vertices.get(input_id) for input_id, _ in vertex.inputs]
        checks = (
            (not vertex.loaded_by, "nobody has it"),
            (not vertex.wanted_by <= vertex.loaded_by, "wanted by a job that has not loaded it"),
            (not vertex.loaded_by <= self._jobs.keys(), "loaded by a job that is gone"),
            (None in inputs, "an input is not loaded"),
            (any(i is not None and not vertex.loaded_by <= i.loaded_by for i in inputs), "input lacks a job"),
            ((state is _DONE) != (vertex.results is not None), "results and state disagree"),
            ((state is _RUNNING) and vertex.token is None, "running without a command"),
            ((state is _RUNNING) and not vertex.wanted_by, "running though unwanted"),
            (state in (_CONTENT, _RUNNING, _DONE) and vertex.canonical is None, "no canonical key"),
            (vertex.leader is not None and vertex.token is not None, "a follower works"),
            (vertex.leader is not None and vertex.leader not in self._vertices, "its leader is gone"),
            (vertex.token is not None and self._tokens.get(vertex.token) != vertex.id, "token unknown"),
            (state is _RUNNING and any(i is None or i.state is not _DONE for i in inputs), "input not done"),
        )
        return next((text for bad, text in checks if bad), "")


def _has(vertex: _Vertex, output: int) -> bool:
    return vertex.results is None or 0 <= output < len(vertex.results)


def _no_output(vertex: _Vertex, output: int) -> SolveError:
    count = len(vertex.results or ())
    summary = (
        f"malformed definition: output {output} of {vertex.id.partition('!')[0]} is used, which has {count}"
    )
    return SolveError(summary)


def _with_nonce(key: str, nonce: str) -> str:
    return KeyHasher("nonce").text("key", key).text("nonce", nonce).finish()
