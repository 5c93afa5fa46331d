"""The solver: decides what must run, from keys and a cache; knows nothing of containers."""

from crossdock.engine.solver.keys import KEY_VERSION, KeyHasher
from crossdock.engine.solver.model import (
    CacheMap,
    Found,
    InputKey,
    KeyCache,
    KeyedVertex,
    OpContext,
    Result,
    SolverOp,
    VertexSpec,
)
from crossdock.engine.solver.scheduler import JobWatcher, Scheduler
from crossdock.engine.solver.state import SolverState, VertexState

__all__ = [
    "KEY_VERSION",
    "CacheMap",
    "Found",
    "InputKey",
    "JobWatcher",
    "KeyCache",
    "KeyHasher",
    "KeyedVertex",
    "OpContext",
    "Result",
    "Scheduler",
    "SolverOp",
    "SolverState",
    "VertexSpec",
    "VertexState",
]
