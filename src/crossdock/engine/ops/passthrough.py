"""``PassthroughOp``: forward inputs as outputs.

Spec: moby/buildkit ``solver/llbsolver/ops/passthrough.go``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.engine.ops.base import BaseOp
from crossdock.engine.solver import CacheMap, InputKey, KeyHasher
from crossdock.errors import SolveError
from crossdock.llb.ops import PassthroughOp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.engine.ops.env import OpEnv
    from crossdock.engine.solver import OpContext, Result
    from crossdock.llb.graph import Node

__all__ = ["PassthroughSolverOp"]


class PassthroughSolverOp(BaseOp):
    """Carries a :class:`PassthroughOp` out. Raises: SolveError when it forwards what it does not have."""

    __slots__ = ("op",)

    def __init__(self, node: Node, env: OpEnv) -> None:
        super().__init__(node, env)
        if not isinstance(node.op, PassthroughOp) or not node.op.outputs:
            summary = "invalid passthrough op with no outputs"
            raise SolveError(summary, vertex=self.vertex)
        self.op = node.op
        for index in self.op.outputs:
            if not 0 <= index < len(node.inputs):
                summary = f"invalid passthrough output: there is no input {index}"
                raise SolveError(summary, vertex=self.vertex)

    def cache_map(self, ctx: OpContext) -> CacheMap:  # noqa: ARG002
        """Key: what is forwarded where."""
        hasher = KeyHasher("passthrough").text("id", self.op.id).texts("outputs", map(str, self.op.outputs))
        return CacheMap(hasher.finish(), (InputKey(),) * len(self.node.inputs))

    def execute(self, inputs: Sequence[Result], ctx: OpContext) -> Sequence[Result]:
        """Forward."""
        return [self.env.packed(self.input(inputs, index), self.vertex, ctx) for index in self.op.outputs]
