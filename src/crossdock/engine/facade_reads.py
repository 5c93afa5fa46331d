"""What the vertices of a solve read: for explaining afterwards why some ran."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.engine.cache.layerview import LayerView
from crossdock.engine.cache.refs import LocalTree, Ref
from crossdock.engine.cache.select import Selector
from crossdock.engine.facade_solve import display_name
from crossdock.engine.ops.base import BaseOp
from crossdock.llb.ops import SourceOp

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from crossdock.engine.cache.view import View
    from crossdock.engine.facade_shared import Shared
    from crossdock.engine.facade_solve import LoadedGraph
    from crossdock.engine.solver import KeyedVertex, OpContext

__all__ = ["local_reads", "stage_reads"]


def local_reads(graph: LoadedGraph, ctx: OpContext) -> dict[str, tuple[View, Sequence[Selector]]]:
    """Return what vertices read of local directories: the view, and the parts."""
    ops = {spec.id: spec.op for spec in graph.specs}
    found: dict[str, tuple[View, Sequence[Selector]]] = {}
    for spec in graph.specs:
        for index, (source, _) in enumerate(spec.inputs):
            op = graph.nodes[source].op
            if not isinstance(op, SourceOp) or not op.identifier.startswith("local://"):
                continue
            (tree,) = ops[source].execute((), ctx)
            if isinstance(tree, LocalTree) and isinstance(spec.op, BaseOp):
                found[spec.id] = (tree.view, spec.op.selectors().get(index) or [Selector()])
    return found


def stage_reads(
    graph: LoadedGraph, keys: Sequence[KeyedVertex], ran: Collection[str], shared: Shared
) -> dict[str, tuple[View, Sequence[Selector], str]]:
    """Return what vertices that ran read by content of other vertices: the view, the parts, whose; nothing is fetched."""
    canonical = {one.vertex: one.canonical for one in keys}
    found: dict[str, tuple[View, Sequence[Selector], str]] = {}
    for spec in graph.specs:
        if spec.id not in ran or not isinstance(spec.op, BaseOp):
            continue
        for index, chosen in spec.op.selectors().items():
            source, output = spec.inputs[index]
            record = shared.keys.lookup(canonical.get(source, ""))
            result = None if record is None or record.results is None else record.results[output]
            if not isinstance(result, Ref):
                continue
            directories = [shared.directory(layer) for layer in result.layers]
            ready = [directory for directory in directories if directory is not None]
            if len(ready) == len(directories):
                found[spec.id] = (LayerView(ready), chosen, display_name(graph.nodes[source]))
    return found
