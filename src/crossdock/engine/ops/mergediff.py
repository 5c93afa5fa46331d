"""``MergeOp`` and ``DiffOp``: layers put together and taken apart.

Layers do not depend on what lies below them, so a merge is a concatenation, and the difference between two states of
which one continues the other is what it adds. Unrelated states are compared file by file, and so are those whose difference
deletes something: a difference says one by one what it deletes, so that it means the same wherever it is merged.

Spec: moby/buildkit ``docs/dev/merge-diff.md``, ``solver/llbsolver/ops/{merge,diff}.go``.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from crossdock.engine.cache.layerview import LayerView, is_opaque
from crossdock.engine.cache.refs import SCRATCH, Ref
from crossdock.engine.ops.base import BaseOp
from crossdock.engine.solver import CacheMap, InputKey, KeyHasher
from crossdock.errors import SolveError, translate
from crossdock.llb.ops import DiffOp, MergeOp
from crossdock.whiteouts import is_whiteout

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from crossdock.engine.cache.view import View
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
        kept = list(dict.fromkeys(reversed(layers)))[::-1]
        merged: list[LayerId] = []
        for layer in kept:
            merged.append(self._fitting(layer, merged, ctx))
        return [Ref(tuple(merged))]

    def _fitting(self, layer: LayerId, below: Sequence[LayerId], ctx: OpContext) -> LayerId:
        """Return a layer that deletes nothing but what is there: the kernel shows other deletions as entries.

        Only differences can delete what they were not made on.
        """
        store = self.env.store
        directory = store.layers.directory(layer)
        if directory is None or store.layers.get(layer).kind != "diff" or not hides(directory):
            return layer
        lowers = self.env.directories(Ref(tuple(below)), self.vertex, ctx)
        if not hides(directory, LayerView(lowers)):
            return layer
        return _compare(self, lowers, [*lowers, directory], ctx).layers[0]


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
        more = upper.layers[count:]
        if upper.layers[:count] == lower.layers and not any(map(self._hides, more)):
            return [Ref(more)]
        lowers = self.env.directories(lower, self.vertex, ctx)
        uppers = self.env.directories(upper, self.vertex, ctx)
        return [_compare(self, lowers, uppers, ctx)]

    def _hides(self, layer: LayerId) -> bool:
        """Whether a layer deletes something. That of an image is taken as it is while its bytes are elsewhere."""
        directory = self.env.store.layers.directory(layer)
        return directory is not None and hides(directory)


def _compare(op: BaseOp, lowers: Sequence[Path], uppers: Sequence[Path], ctx: OpContext) -> Ref:
    """Return a layer of what must be applied to one file system to get another."""
    from crossdock.engine.ops.treediff import write_difference

    env = op.env

    def fail(exc: BaseException) -> SolveError:
        return SolveError(f"cannot compare file systems: {exc}", vertex=op.vertex)

    with (
        translate({OSError: fail}),
        env.store.layers.new(env.lease, kind="diff", description=op.node.name or "difference") as layer,
    ):
        write_difference(
            LayerView(lowers),
            LayerView(uppers),
            layer.fs,
            lenient_owner=env.lenient_owner,
            cancel=ctx.cancel,
        )
        return Ref((layer.commit(),))


def hides(directory: Path, below: View | None = None) -> bool:
    """Whether a layer deletes something; with ``below``, whether it deletes what is not there."""
    stack = [("", below.root() if below is not None else None)]
    while stack:
        path, under = stack.pop()
        with os.scandir(directory / path if path else directory) as entries:
            listed = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
        for name, st in listed:
            here = f"{path}/{name}" if path else name
            beneath = below.child(under, name) if below is not None and under is not None else None
            if is_whiteout(st):
                if below is None or beneath is None:
                    return True
            elif stat.S_ISDIR(st.st_mode):
                if below is None and is_opaque(f"{directory}/{here}"):
                    return True
                stack.append((here, beneath if beneath is not None and beneath.is_dir else None))
    return False
