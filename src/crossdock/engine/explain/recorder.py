"""Takes down what the steps of a solve are made of, while their directories are open, and explains those that ran.

A solve in which nothing ran leaves nothing to take down: a cached build pays for a set of names. When steps ran, it is one walk
over the files they read, whose digests are known by then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.engine.explain.compare import explain_step
from crossdock.engine.explain.facts import StepFacts, file_facts, node_facts, place_of
from crossdock.engine.explain.history import History
from crossdock.llb.ops import ExecOp, FileOp, SourceOp
from crossdock.record import replace

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from crossdock.cancel import CancelToken
    from crossdock.engine.cache.select import Selector
    from crossdock.engine.cache.view import View
    from crossdock.engine.explain.compare import StepWhy
    from crossdock.engine.solver import KeyedVertex
    from crossdock.engine.store import Store
    from crossdock.llb.graph import Node

__all__ = ["StepRecorder"]


class StepRecorder:
    """Records the solves of one build."""

    def __init__(self, project: str, *, wanted: bool) -> None:
        """``project`` tells builds apart whose steps are not to be compared; ``wanted``: somebody asks for an explanation."""
        self._project = project
        self.wanted = wanted
        self._names: dict[str, str] = {}
        self._steps: dict[str, StepFacts] = {}
        self._ran: dict[str, bool] = {}

    def take(
        self,
        nodes: Mapping[str, Node],
        keyed: Sequence[KeyedVertex],
        ran: Collection[str],
        reads: Mapping[str, tuple[View, Sequence[Selector]]],
        stage_reads: Mapping[str, tuple[View, Sequence[Selector], str]],
        cancel: CancelToken,
    ) -> None:
        """Take a solve down. ``nodes`` by vertex; ``reads`` are the local directories that vertices read.

        ``stage_reads`` are the files of other steps that those that ran read.
        """
        canonical = {one.vertex: one.canonical for one in keyed}
        by_digest = {node.digest: vertex for vertex, node in nodes.items()}
        for vertex, node in nodes.items():
            if isinstance(node.op, SourceOp) or not node.name:
                continue
            inputs = []
            for edge in node.inputs:
                source = by_digest.get(edge.node.digest, "")
                inputs.append((_input_name(edge.node), canonical.get(source, "")))
            stage, number, text = place_of(node.name)
            view, selectors = reads.get(vertex, (None, ()))
            files = {} if view is None else file_facts(view, selectors, cancel)
            copied, whose = self._copied(node, stage_reads.get(vertex), cancel)
            self._names[vertex] = node.name
            self._steps[vertex] = StepFacts(
                stage=stage,
                number=number,
                text=text,
                facts=node_facts(node),
                inputs=tuple(inputs),
                files=files,
                copied=copied,
                copied_from=whose,
            )
            if vertex in ran:
                self._ran[vertex] = node.metadata.ignore_cache

    @staticmethod
    def _copied(
        node: Node, read: tuple[View, Sequence[Selector], str] | None, cancel: CancelToken
    ) -> tuple[dict[str, str] | None, str]:
        if read is not None:
            return file_facts(read[0], read[1], cancel), read[2]
        # Cached by definition: what it would read was not looked at.
        return (None if _reads_steps(node) else {}), ""

    def _inherit(self, history: History) -> None:
        """Give steps that did not run the files that an equal step of an earlier run read."""
        unknown = [v for v, step in self._steps.items() if step.copied is None and v not in self._ran]
        if not unknown:
            return
        runs = history.runs()
        for vertex in unknown:
            step = self._steps[vertex]
            for run in runs:
                other = _counterpart(step, run)
                if other is not None:
                    self._steps[vertex] = replace(step, copied=other.copied, copied_from=other.copied_from)
                    break

    def finish(self, store: Store) -> list[StepWhy]:
        """Explain what ran, and save the run for the next time."""
        if not self._steps:
            return []
        history = History(store.layout.stat, self._project)
        found: list[StepWhy] = []
        self._inherit(history)
        if self.wanted:
            runs = history.runs()
            found = [
                explain_step(self._names[vertex], self._steps[vertex], runs, ignored=ignored)
                for vertex, ignored in self._ran.items()
            ]
        history.add(list(self._steps.values()))
        return found


def _reads_steps(node: Node) -> bool:
    """Whether a step reads files of another one, besides standing on it."""
    read: set[int] = set()
    if isinstance(node.op, FileOp):
        read = {action.secondary_input for action in node.op.actions}
    elif isinstance(node.op, ExecOp):
        read = {mount.input for mount in node.op.mounts if mount.dest != "/"}
    return any(
        0 <= index < len(node.inputs) and not isinstance(node.inputs[index].node.op, SourceOp)
        for index in read
    )


def _counterpart(step: StepFacts, run: Sequence[StepFacts]) -> StepFacts | None:
    """Return the same step of an earlier run, if it was made of the same."""
    for other in run:
        same = (step.stage, step.text, step.inputs) == (other.stage, other.text, other.inputs)
        if same and other.copied is not None:
            return other
    return None


def _input_name(node: Node) -> str:
    if isinstance(node.op, SourceOp):
        scheme, _, rest = node.op.identifier.partition("://")
        return f"image {rest}" if scheme == "docker-image" else node.name or node.op.identifier
    return node.name
