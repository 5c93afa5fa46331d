"""Cache keys' content side: views of file systems, what an op selects of them, and its digest."""

from crossdock.engine.cache.refs import SCRATCH, LocalTree, Ref
from crossdock.engine.solver.keys import KEY_VERSION, KeyHasher

__all__ = ["KEY_VERSION", "SCRATCH", "KeyHasher", "LocalTree", "Ref"]
