"""``BuildOp``: definitions that are themselves results of the build, put in the place of the op that names them.

A nested definition is read before the solve that needs it begins, so that no op waits for others while it holds one of the
places at work. What it consists of is then part of the same solve.

Spec: moby/buildkit ``solver/llbsolver/ops/build.go``, ``solver/pb/const.go``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.errors import NotSupported, SolveError
from crossdock.llb.decode import decode_definition, unmarshal
from crossdock.llb.graph import Node, Output, walk
from crossdock.llb.ops import BuildOp

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from crossdock.engine.cache.refs import Ref

__all__ = ["expanded", "is_nested"]

#: inputs that hold a definition, and the file it is in
_INPUT = "buildkit.llb.definition"
_FILE_ATTR = "llbbuild.filename"
_LLB = -1
_MAX_DEPTH = 16
_MAX_BYTES = 64 << 20


def is_nested(outputs: Sequence[Output]) -> bool:
    """Whether something of a graph is a definition that must be read first."""
    return any(isinstance(node.op, BuildOp) for node in walk(outputs))


def expanded(
    outputs: Sequence[Output],
    *,
    solve: Callable[[Output], Ref],
    read: Callable[[Ref, str], bytes | None],
    rewrite: Callable[[Output], Output | None],
) -> list[Output]:
    """Return graphs without nested builds. ``rewrite`` is given each graph that was read, which it may change or refuse.

    Raises: SolveError for what is no definition, or nested without end; NotSupported; what ``solve`` and ``rewrite`` raise.
    """
    for _ in range(_MAX_DEPTH):
        if not is_nested(outputs):
            return list(outputs)
        made: dict[str, Output | Node] = {}
        for node in walk(outputs):
            made[node.digest] = _replaced(node, made, solve, read, rewrite)
        outputs = [_edge(output, made) for output in outputs]
    summary = f"builds are nested more than {_MAX_DEPTH} levels deep"
    raise SolveError(summary)


def _edge(output: Output, made: dict[str, Output | Node]) -> Output:
    found = made[output.node.digest]
    if isinstance(found, Node):
        return Output(found, output.index)
    if output.index != 0:
        summary = f"a nested build has no output {output.index}"
        raise SolveError(summary, vertex=output.node.digest, vertex_name=output.node.name)
    return found


def _replaced(
    node: Node,
    made: dict[str, Output | Node],
    solve: Callable[[Output], Ref],
    read: Callable[[Ref, str], bytes | None],
    rewrite: Callable[[Output], Output | None],
) -> Output | Node:
    inputs = [_edge(i, made) for i in node.inputs]
    op = node.op
    if not isinstance(op, BuildOp):
        if all(new is old or new.node is old.node for new, old in zip(inputs, node.inputs, strict=True)):
            return node
        return node.replaced(op, inputs)
    data = read(solve(_definition_input(node, op, inputs)), _filename(op))
    if data is None or len(data) > _MAX_BYTES:
        summary = f"failed to open {_filename(op)}: no such file, or it is no definition"
        raise SolveError(summary, vertex=node.digest, vertex_name=node.name, source=node.source)
    result = unmarshal(decode_definition(data)).result
    result = rewrite(result) if result is not None else None
    if result is None:
        summary = "a nested build of nothing has no result"
        raise SolveError(summary, vertex=node.digest, vertex_name=node.name, source=node.source)
    return result


def _filename(op: BuildOp) -> str:
    return op.attrs.get(_FILE_ATTR) or _INPUT


def _definition_input(node: Node, op: BuildOp, inputs: Sequence[Output]) -> Output:
    if op.builder != _LLB:
        summary = "only LLB builder is currently allowed"
        raise NotSupported(summary)
    index = op.inputs.get(_INPUT, -1)
    if not 0 <= index < len(inputs):
        summary = f"no llb definition input {_INPUT} found"
        raise SolveError(summary, vertex=node.digest, vertex_name=node.name, source=node.source)
    return inputs[index]
