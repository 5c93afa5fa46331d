"""``MergeOp`` and ``DiffOp``: layers put together and taken apart.

Layers do not depend on what lies below them, so a merge is a concatenation, and the difference between two states of
which one continues the other is what it adds. Only unrelated states are compared file by file.

Spec: moby/buildkit ``docs/dev/merge-diff.md``, ``solver/llbsolver/ops/{merge,diff}.go``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.engine.cache.refs import SCRATCH, Ref
from crossdock.engine.ops.base import BaseOp
from crossdock.engine.solver import CacheMap, InputKey, KeyHasher
from crossdock.errors import SolveError, translate
from crossdock.llb.ops import DiffOp, MergeOp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.engine.ops.env import OpEnv
    from crossdock.engine.solver import OpContext, Result
    from crossdock.engine.store import LayerId
    from crossdock.llb.graph import Node

__all__ = ["DiffSolverOp", "MergeSolverOp"]


class MergeSolverOp(BaseOp):
    """Carries a :class:`MergeOp` out."""

    __slots__ = ("op",)

    def __init__(self, node: Node, env: OpEnv) -> None:
        super().__init__(node, env)
        if not isinstance(node.op, MergeOp):
            summary = "invalid merge op"
            raise SolveError(summary, vertex=self.vertex)
        self.op = node.op

    def cache_map(self, ctx: OpContext) -> CacheMap:  # noqa: ARG002
        """Key: the order of the inputs."""
        hasher = KeyHasher("merge").texts("inputs", map(str, self.op.inputs))
        return CacheMap(hasher.finish(), (InputKey(),) * len(self.node.inputs))

    def execute(self, inputs: Sequence[Result], ctx: OpContext) -> Sequence[Result]:
        """Put the inputs' layers on top of each other."""
        layers: list[LayerId] = []
        for index in self.op.inputs:
            ref = self.env.packed(self.input(inputs, index), self.vertex, ctx)
            layers += ref.layers
        # The kernel stacks no directory twice. Of equal layers the topmost hides the others entirely.
        kept = list(dict.fromkeys(reversed(layers)))
        layers = kept[::-1]
        return [Ref(tuple(layers))]


class DiffSolverOp(BaseOp):
    """Carries a :class:`DiffOp` out."""

    __slots__ = ("op",)

    def __init__(self, node: Node, env: OpEnv) -> None:
        super().__init__(node, env)
        if not isinstance(node.op, DiffOp):
            summary = "invalid diff op"
            raise SolveError(summary, vertex=self.vertex)
        self.op = node.op

    def cache_map(self, ctx: OpContext) -> CacheMap:  # noqa: ARG002
        """Key: which input is which."""
        hasher = KeyHasher("diff").number("lower", self.op.lower).number("upper", self.op.upper)
        return CacheMap(hasher.finish(), (InputKey(),) * len(self.node.inputs))

    def execute(self, inputs: Sequence[Result], ctx: OpContext) -> Sequence[Result]:
        """Return the layers that upper has on top of lower, or a new one that holds the difference."""
        lower, upper = (
            SCRATCH if index < 0 else self.env.packed(self.input(inputs, index), self.vertex, ctx)
            for index in (self.op.lower, self.op.upper)
        )
        count = len(lower.layers)
        if upper.layers[:count] == lower.layers:
            return [Ref(upper.layers[count:])]
        return [self._compare(lower, upper, ctx)]

    def _compare(self, lower: Ref, upper: Ref, ctx: OpContext) -> Ref:
        from crossdock.engine.cache.layerview import LayerView
        from crossdock.engine.ops.treediff import write_difference

        lowers = self.env.directories(lower, self.vertex, ctx)
        uppers = self.env.directories(upper, self.vertex, ctx)
        description = self.node.name or "difference"

        def fail(exc: BaseException) -> SolveError:
            return SolveError(f"cannot compare file systems: {exc}", vertex=self.vertex)

        with (
            translate({OSError: fail}),
            self.env.store.layers.new(self.env.lease, kind="diff", description=description) as layer,
        ):
            write_difference(
                LayerView(lowers),
                LayerView(uppers),
                layer.fs,
                lenient_owner=self.env.lenient_owner,
                cancel=ctx.cancel,
            )
            return Ref((layer.commit(),))
