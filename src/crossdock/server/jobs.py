"""Builds under way: what one ``Control.Solve`` needs and what is asked of it meanwhile.

A job has its own scope of the engine, its own directories, logins and agents; vertices that jobs have in common are
solved once.

Spec: moby/buildkit ``solver/jobs.go``, ``solver/llbsolver/solver.go``, ``control/gateway/gateway.go``.
"""

from __future__ import annotations

import re
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from crossdock.builds.images import EngineImages
from crossdock.builds.locate import locate
from crossdock.cancel import CancelToken
from crossdock.engine.cache.refs import SCRATCH
from crossdock.engine.facade import SolveInputs
from crossdock.errors import Cancelled, CrossdockError, UsageError
from crossdock.server.answer import Answer
from crossdock.server.attests import Asked, JobAttests
from crossdock.server.caches import JobCaches
from crossdock.server.clientcalls import ClientAgents, ClientCredentials, ClientUploads, get_secret
from crossdock.server.clientstore import ClientLayouts
from crossdock.server.containers import JobContainers
from crossdock.server.failures import Missing
from crossdock.server.generations import Generations
from crossdock.server.locals import ClientDirectories
from crossdock.server.options import FrontendRules
from crossdock.server.policies import job_policies
from crossdock.server.sessions import SessionLost
from crossdock.server.statuslog import StatusLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from crossdock.buildkit.proto import control_pb2, ops_pb2
    from crossdock.buildkit.rpc.serve import Handler
    from crossdock.engine.cache.refs import Ref
    from crossdock.engine.exporters import BuiltImage
    from crossdock.engine.facade import Engine
    from crossdock.engine.facade_parts import SolveRecorder
    from crossdock.engine.solver import KeyedVertex
    from crossdock.llb.graph import Output
    from crossdock.llb.policy import SourcePolicies
    from crossdock.registry import RegistryClient, RegistryConfig
    from crossdock.secret import Secret
    from crossdock.server.lefttree import TreeMemory
    from crossdock.server.results import ResultRef, Results
    from crossdock.server.sessions import ClientSession, SessionManager

__all__ = ["Job", "Jobs"]

#: seconds that calls about a build wait for it to be announced
_ARRIVAL_S = 5.0
#: seconds that a build is known after its end
_KEPT_S = 10.0
#: a step shared with a client that left is taken up again, at most so often
_RETRIES = 3


class Job:
    """One build. Safe from any thread."""

    def __init__(
        self,
        ref: str,
        *,
        engine: Engine,
        sessions: SessionManager,
        trees: TreeMemory,
        session_id: str,
        registry: RegistryConfig,
        allow: frozenset[str],
        request: control_pb2.SolveRequest,
    ) -> None:
        self.ref = ref
        self.session_id = session_id
        self.request = request
        self.allow = allow
        self.cancel = CancelToken()
        self.log = StatusLog()
        self.sessions = sessions
        self.created_ns = time.time_ns()
        self._registry = registry
        self._stack = ExitStack()
        #: what it is a scope of
        self.generation = engine
        self.engine = engine.scope(self._client)
        self._stack.callback(self.engine.close)
        self.directories = ClientDirectories(self.engine, sessions, session_id, trees)
        self._stack.callback(self.directories.close)
        self._agents = ClientAgents(lambda: self.session(self.cancel), self.cancel)
        self._stack.callback(self._agents.close)
        self.layouts = ClientLayouts(sessions, session_id, self.cancel)
        try:
            self.policies = job_policies(self)
        except BaseException:
            self._stack.close()
            raise
        self.images = EngineImages(self.engine, self.log, self.cancel, self.layouts, self.policies)
        #: the result of a client that is its own frontend
        self.answer = Answer()
        #: makes what a frontend in a container may ask for; set by whoever serves the gateway
        self.bridge: Callable[[Answer, Mapping[str, ops_pb2.Definition]], Mapping[str, Handler]] | None = None
        #: what frontends it may use
        self.frontends = FrontendRules()
        self.uploads = ClientUploads(self.session)
        #: contexts that the client uploaded, by name
        self.uploaded: dict[str, Output] = {}
        # Guards uploaded; held while one comes.
        self.uploading = threading.Lock()
        #: takes down what is solved
        self.recorder: SolveRecorder | None = None
        self.containers = JobContainers()
        self._stack.callback(self.containers.close)
        #: for provenance and the build's record
        self.asked = Asked()
        self.results: Results | None = None
        #: images made, by number of the output
        self.exported: dict[int, BuiltImage] = {}
        try:
            self.caches = JobCaches(self)
            self.attests = JobAttests(self)
        except BaseException:
            self._stack.close()
            raise
        #: keys of all that was solved; ``None``: nobody needs them
        self.keyed: list[KeyedVertex] | None = None if request.Internal else []
        if self.caches.wants_keys or self.attests.wants_keys:
            self.keyed = []
        # Guards what follows; notified when the result is there.
        self._changed = threading.Condition()
        self._refs: dict[str, ResultRef] = {}
        self._solving: set[str] = set()

    def session(self, cancel: CancelToken) -> ClientSession:
        """Return the client's session. Raises: SessionLost; the token's cause."""
        return self.sessions.get(self.session_id, cancel)

    def close(self) -> None:
        """Give up what the build held; its status stays readable for those who have it."""
        self.cancel.cancel(Cancelled("the build is over"))
        self.log.finish()
        self._stack.close()

    def on_close(self, callback: Callable[[], object]) -> None:
        """Have something done when the build is over."""
        self._stack.callback(callback)

    # --- results ---

    def remember(self, results: Results) -> Results:
        """Keep the file systems of a result, so that later calls can name them."""
        with self._changed:
            for ref in results.all_refs():
                self._refs[ref.id] = ref
        return results

    def known(self) -> Mapping[str, ResultRef]:
        """Return the file systems of all results so far."""
        with self._changed:
            return dict(self._refs)

    def find(self, name: str) -> ResultRef:
        """Return a file system by its id. Raises: UsageError."""
        with self._changed:
            found = self._refs.get(name)
        if found is None:
            summary = f"no such ref: {name}" if name else "empty ref"
            raise UsageError(summary)
        return found

    def solve(
        self, refs: Sequence[ResultRef], *, early: Callable[[ResultRef, Ref], None] | None = None
    ) -> list[Ref]:
        """Make file systems that are not made yet, together. Raises: as ``Engine.solve``, with places.

        ``early`` is told of those that are there while others are still made, as in ``Engine.solve``.
        """
        mine = self._claim(refs)
        try:
            if mine:
                self.police(mine)
                own = self.policies.also([policy for ref in mine for policy in ref.policies])
                known = None if early is None else lambda number, ref: early(mine[number], ref)
                solved = self._solve([ref.output for ref in mine], own, known)
                for ref, done in zip(mine, solved, strict=True):
                    ref.ref = done
        finally:
            with self._changed:
                self._solving -= {ref.id for ref in mine}
                self._changed.notify_all()
        return [ref.ref if ref.ref is not None else SCRATCH for ref in refs]

    def solve_output(self, output: Output | None) -> Ref:
        """Make one file system. Raises: as :meth:`solve`."""
        return self._solve([self.policies.apply(output)])[0]

    def police(self, refs: Sequence[ResultRef]) -> None:
        """Have the sources of results as the build's policies want them. Raises: PolicyDenied."""
        for ref in refs:
            if not ref.policed:
                policies = self.policies.also(ref.policies)
                ref.output, ref.scan = policies.apply(ref.output), policies.apply_all(ref.scan)
                ref.policed = True

    def inputs(self, policies: SourcePolicies | None = None) -> SolveInputs:
        """Return what a solve may ask of the client; ``policies`` are also for definitions that the build itself makes."""
        return SolveInputs(
            secrets=self._secret,
            ssh=self._agents.get,
            allow=self.allow,
            fetch_local=self.directories,
            layouts=self.layouts,
            uploads=self.uploads,
            rewrite=(policies or self.policies).apply,
        )

    def _claim(self, refs: Sequence[ResultRef]) -> list[ResultRef]:
        """Return those that this caller is to solve; waits for those that another one solves."""
        with self.cancel.waking(self._wake), self._changed:
            while any(ref.id in self._solving for ref in refs):
                self.cancel.check()
                self._changed.wait()
            mine = [ref for ref in {r.id: r for r in refs}.values() if ref.ref is None]
            self._solving |= {ref.id for ref in mine}
            return mine

    def _solve(
        self,
        outputs: list[Output | None],
        policies: SourcePolicies | None = None,
        early: Callable[[int, Ref], None] | None = None,
    ) -> list[Ref]:
        for attempt in range(_RETRIES):
            try:
                return self.engine.solve(
                    outputs,
                    inputs=self.inputs(policies),
                    sink=self.log,
                    cancel=self.cancel,
                    keyed=self.keyed,
                    recorder=self.recorder,
                    early=early,
                )
            except SessionLost as exc:
                # A step that was shared lost the client it had begun with: ours takes it up.
                if exc.session_id == self.session_id or attempt + 1 == _RETRIES:
                    raise
            except CrossdockError as exc:
                locate(exc, outputs, self.log.failed)
                self._hide_paths(exc)
                raise
        raise AssertionError  # the loop returns or raises

    def _hide_paths(self, error: CrossdockError) -> None:
        """Name the client's directory rather than where it is kept here."""
        kept = re.compile(rf" ?{re.escape(str(self.engine.store.root))}/mounts/\S*")
        error.hint = kept.sub("", error.hint) if error.hint else error.hint
        error.summary = kept.sub("", error.summary)

    def _secret(self, name: str) -> Secret | None:
        if not self.session_id:
            return None
        return get_secret(self.session(self.cancel), name, self.cancel)

    def _client(self, cancel: CancelToken) -> RegistryClient:
        from crossdock.registry import Credentials, RegistryClient

        credentials = (
            ClientCredentials(self.session, self.sessions.tokens) if self.session_id else Credentials.none()
        )
        return RegistryClient(config=self._registry, credentials=credentials, cancel=cancel)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


class Jobs:
    """The builds under way, by name."""

    def __init__(self, engine: Engine) -> None:
        self._generations = Generations(engine)
        # Guards what follows; notified when a job comes or goes.
        self._changed = threading.Condition()
        self._jobs: dict[str, Job] = {}
        #: builds just over, with when they ended: who asks for their progress may be a little late
        self._ended: dict[str, tuple[float, Job]] = {}
        self._closing = False
        #: builds whose end is under way
        self._leaving = 0

    def add(self, make: Callable[[Engine], Job], ref: str) -> Job:
        """Announce a build, made with the engine it is to use. Raises: UsageError when one of that name is under way; Cancelled at the end."""
        with self._changed:
            if self._closing:
                summary = "the daemon is shutting down"
                raise Cancelled(summary)
            if not ref or ref in self._jobs:
                summary = f"job ID {ref} exists" if ref else "the build has no reference"
                raise UsageError(summary)
            engine = self._generations.enter()
            try:
                job = self._jobs[ref] = make(engine)
            except BaseException:
                self._generations.leave(engine)
                raise
            self._changed.notify_all()
            return job

    def remove(self, job: Job) -> None:
        """End a build: give up what it held."""
        with self._changed:
            if self._jobs.get(job.ref) is job:
                del self._jobs[job.ref]
                now = time.monotonic()
                kept = {r: e for r, e in self._ended.items() if now - e[0] < _KEPT_S}
                self._ended = {**kept, job.ref: (now, job)}
            self._leaving += 1
            self._changed.notify_all()
        try:
            job.close()
            self._generations.leave(job.generation)
        finally:
            with self._changed:
                self._leaving -= 1
                self._changed.notify_all()

    def get(self, ref: str, *, active: Callable[[], bool], ended: bool = False) -> Job:
        """Return a build, waiting a few seconds for one that is about to be announced; with ``ended``, one just over too.

        Raises: Missing.
        """
        deadline = time.monotonic() + _ARRIVAL_S
        with self._changed:
            while (job := self._jobs.get(ref)) is None:
                over = self._ended.get(ref)
                if over is not None and ended:
                    return over[1]
                left = deadline - time.monotonic()
                if over is not None or left <= 0 or not ref or self._closing or not active():
                    summary = f"no such job {ref}"
                    raise Missing(summary)
                self._changed.wait(left)
            return job

    def all(self) -> list[Job]:
        """Return the builds under way."""
        with self._changed:
            return list(self._jobs.values())

    def close(self, timeout_s: float) -> bool:
        """Cancel every build and wait for them to end; False when some have not by then."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            for job in self._jobs.values():
                job.cancel.cancel(Cancelled("the daemon is shutting down"))
            ended = self._changed.wait_for(lambda: not self._jobs and not self._leaving, timeout_s)
        if ended:
            self._generations.close()
        return ended

    def __iter__(self) -> Iterator[Job]:
        return iter(self.all())
