"""What the solver and the operations say to each other: ops, cache maps, vertices, events and commands.

Values only. Events and commands are named tuples because the cached path makes many of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from crossdock.cancel import CancelToken
    from crossdock.progress.events import EventSink

__all__ = [
    "AddJob",
    "AskCacheMap",
    "AskContent",
    "CacheMap",
    "CacheMapReady",
    "Cancel",
    "Command",
    "CommandFailed",
    "ContentReady",
    "Event",
    "Execute",
    "FinishJob",
    "Found",
    "InputKey",
    "KeyCache",
    "KeyedVertex",
    "Lookup",
    "LookupReady",
    "Notify",
    "OpContext",
    "RemoveJob",
    "Result",
    "RunDone",
    "SolverOp",
    "VertexSpec",
]

#: What an op's output is; the solver passes it on without looking inside.
Result: TypeAlias = object


class InputKey(NamedTuple):
    """How one input takes part in its user's key."""

    #: digest of the paths selected from the input, ``""`` for all of it
    selector: str = ""
    #: whether the content of the input may stand for the input
    content: bool = False


class CacheMap(NamedTuple):
    """How an op is identified, apart from its inputs."""

    digest: str
    inputs: tuple[InputKey, ...] = ()
    #: true when the digest holds for this process only (a local directory): such keys are neither looked up nor
    #: saved, and users of the result are keyed by its content
    volatile: bool = False


class OpContext:
    """What a running op is given: when to stop, and where to report."""

    __slots__ = ("cancel", "sink")

    def __init__(self, cancel: CancelToken, sink: EventSink) -> None:
        self.cancel = cancel
        self.sink = sink


class SolverOp(Protocol):
    """An operation: says how it is cached, apart from doing it. Called from pool threads."""

    def cache_map(self, ctx: OpContext) -> CacheMap:
        """Return how the op is identified; cheap, but may ask a registry."""
        ...

    def content_digest(self, index: int, result: Result, ctx: OpContext) -> str:
        """Return the digest of what the op reads of input ``index``."""
        ...

    def execute(self, inputs: Sequence[Result], ctx: OpContext) -> Sequence[Result]:
        """Do it; one result per output."""
        ...


class VertexSpec(NamedTuple):
    """A vertex to solve. ``inputs`` are ``(vertex id, output index)``."""

    id: str
    op: SolverOp
    inputs: tuple[tuple[str, int], ...] = ()
    #: non-empty: do not look results up; mixed into the key, so that users of the new result are looked up afresh
    nonce: str = ""
    #: whether ``op.cache_map`` may block (asks a registry)
    slow_key: bool = False


class Found(NamedTuple):
    """Answer of a lookup: the canonical key, and the results unless they are gone."""

    canonical: str
    results: tuple[Result, ...] | None


class KeyCache(Protocol):
    """The build cache as the solver sees it. Called from pool threads."""

    def lookup(self, key: str) -> Found | None:
        """Return what is known of a key."""
        ...

    def link(self, key: str, canonical: str) -> None:
        """Remember that ``key`` means ``canonical``."""
        ...

    def exclusive(self, key: str, cancel: CancelToken) -> AbstractContextManager[None]:
        """Hold the right to produce ``key``, alone among all processes; waits."""
        ...

    def save(self, key: str, results: Sequence[Result], *, vertex: str) -> None:
        """Remember the results of ``key``."""
        ...


# --- events -----------------------------------------------------------------------------------------------------


class AddJob(NamedTuple):
    """A caller wants results. ``vertices`` holds everything reachable, inputs before users."""

    job: str
    vertices: tuple[VertexSpec, ...]
    outputs: tuple[tuple[str, int], ...]


class RemoveJob(NamedTuple):
    """A caller lost interest."""

    job: str


class CacheMapReady(NamedTuple):
    """Answer to :class:`AskCacheMap`."""

    token: int
    map: CacheMap


class LookupReady(NamedTuple):
    """Answer to :class:`Lookup`."""

    token: int
    found: Found | None


class ContentReady(NamedTuple):
    """Answer to :class:`AskContent`: input index to digest."""

    token: int
    digests: tuple[tuple[int, str], ...]


class RunDone(NamedTuple):
    """Answer to :class:`Execute`. ``cached``: another process had produced it meanwhile."""

    token: int
    results: tuple[Result, ...]
    cached: bool = False


class CommandFailed(NamedTuple):
    """Any command ended in an error."""

    token: int
    error: BaseException


Event: TypeAlias = AddJob | RemoveJob | CacheMapReady | LookupReady | ContentReady | RunDone | CommandFailed


# --- commands ---------------------------------------------------------------------------------------------------


class AskCacheMap(NamedTuple):
    """Call ``op.cache_map``."""

    token: int
    vertex: str
    op: SolverOp
    #: whether that may block
    slow: bool


class Lookup(NamedTuple):
    """Look ``key`` up; on a hit also link ``alias`` to what was found."""

    token: int
    vertex: str
    key: str
    alias: str | None = None


class AskContent(NamedTuple):
    """Call ``op.content_digest`` for each ``(index, result)``."""

    token: int
    vertex: str
    op: SolverOp
    inputs: tuple[tuple[int, Result], ...]


class Execute(NamedTuple):
    """Call ``op.execute``; save under ``key`` and link ``aliases`` to it unless ``key`` is ``None``."""

    token: int
    vertex: str
    op: SolverOp
    key: str | None
    aliases: tuple[str, ...]
    inputs: tuple[Result, ...]


class Cancel(NamedTuple):
    """Stop the command with this token; its answer no longer matters."""

    token: int


class Notify(NamedTuple):
    """Tell ``jobs`` how a vertex fares: ``started``, ``done``, ``cached`` or ``failed``; and its results, once."""

    vertex: str
    what: str
    jobs: tuple[str, ...]
    error: BaseException | None = None
    results: tuple[Result, ...] = ()


class KeyedVertex(NamedTuple):
    """The keys of a vertex: the canonical one, and those that led there in every process, by definition first."""

    vertex: str
    canonical: str
    keys: tuple[str, ...]


class FinishJob(NamedTuple):
    """Give a job its results and the keys of its vertices, or the error, with the vertex that failed."""

    job: str
    results: tuple[Result, ...] | None
    error: BaseException | None = None
    vertex: str | None = None
    keyed: tuple[KeyedVertex, ...] = ()


Command: TypeAlias = AskCacheMap | Lookup | AskContent | Execute | Cancel | Notify | FinishJob
