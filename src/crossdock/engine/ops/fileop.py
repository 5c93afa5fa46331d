"""``FileOp``: change files without running anything.

Spec: moby/buildkit ``solver/llbsolver/ops/file.go``, ``solver/llbsolver/file/backend.go``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.engine.cache.select import Selector, has_wildcard
from crossdock.engine.ops.base import BaseOp, selector_digest
from crossdock.engine.ops.keying import action_fields
from crossdock.engine.solver import CacheMap, InputKey, KeyHasher
from crossdock.errors import SolveError
from crossdock.llb.ops import SKIP_OUTPUT, FileActionCopy, FileActionRm, FileOp, NamedUser
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.engine.ops.env import OpEnv
    from crossdock.engine.solver import OpContext, Result
    from crossdock.llb.graph import Node
    from crossdock.llb.ops import ChownOpt, FileAction

__all__ = ["FileSolverOp"]


class FileSolverOp(BaseOp):
    """Carries a :class:`FileOp` out. Raises: SolveError when the definition is malformed."""

    __slots__ = ("_selectors", "op")

    def __init__(self, node: Node, env: OpEnv) -> None:
        super().__init__(node, env)
        if not isinstance(node.op, FileOp) or not node.op.actions:
            summary = "invalid file op with no actions"
            raise SolveError(summary, vertex=self.vertex)
        self.op = node.op
        _check_indexes(self.op.actions, len(node.inputs), self.vertex)
        self._selectors = _selectors(self.op.actions, len(node.inputs))

    def cache_map(self, ctx: OpContext) -> CacheMap:  # noqa: ARG002
        """Key: the actions, without the directories of copied paths, whose content stands for them."""
        hasher = KeyHasher("file")
        count = len(self.node.inputs)
        for action in self.op.actions:
            hasher.number("input", action.input).number("secondary", action.secondary_input)
            hasher.number("output", action.output)
            action_fields(hasher, action.action, from_input=0 <= action.secondary_input < count)
        keys = []
        for index in range(count):
            chosen = self._selectors.get(index)
            keys.append(InputKey(selector_digest(chosen), content=True) if chosen else InputKey())
        return CacheMap(hasher.finish(), tuple(keys))

    def selectors(self) -> dict[int, list[Selector]]:
        """Return the copied paths by input."""
        return self._selectors

    def execute(self, inputs: Sequence[Result], ctx: OpContext) -> Sequence[Result]:
        """Carry the actions out; an action whose result has one user only continues in the same layer."""
        from crossdock.engine.ops.fileactions import FileActions

        return FileActions(self, plan(self.op.actions, len(inputs)), inputs, ctx).run()


class Step(NamedTuple):
    """One layer to make: actions in a row, on top of ``base`` (an input, an earlier step, or scratch)."""

    #: input index, or ``len(inputs) + n`` for the result of action n; -1 is scratch
    base: int
    #: numbers of the actions, in order
    actions: tuple[int, ...]


class Plan(NamedTuple):
    """All layers to make, in order, and which action's result each output is."""

    steps: tuple[Step, ...]
    #: number of an action per output
    outputs: tuple[int, ...]


def plan(actions: Sequence[FileAction], inputs: int) -> Plan:
    """Decide which actions share a layer.

    Raises: SolveError when outputs are missing or doubled.
    """
    outputs: dict[int, int] = {}
    users = [0] * len(actions)
    for number, action in enumerate(actions):
        for index in (action.input, action.secondary_input):
            if index >= inputs:
                users[index - inputs] += 1
        if action.output != SKIP_OUTPUT:
            if action.output in outputs:
                summary = f"duplicate output {action.output} of a file op"
                raise SolveError(summary)
            outputs[action.output] = number
            users[number] += 1
    if sorted(outputs) != list(range(len(outputs))) or not outputs:
        summary = "a file op must have outputs numbered from 0"
        raise SolveError(summary)
    steps: list[Step] = []
    of_action: dict[int, int] = {}
    for number, action in enumerate(actions):
        before = action.input - inputs
        last = of_action.get(before)
        # Only when nobody else sees the state in between.
        if last is not None and users[before] == 1 and steps[last].actions[-1] == before:
            steps[last] = steps[last]._replace(actions=(*steps[last].actions, number))
            of_action[number] = last
        else:
            of_action[number] = len(steps)
            steps.append(Step(action.input, (number,)))
    return Plan(tuple(steps), tuple(outputs[index] for index in range(len(outputs))))


def _check_indexes(actions: Sequence[FileAction], inputs: int, vertex: str) -> None:
    for number, action in enumerate(actions):
        for index in (action.input, action.secondary_input):
            if not -1 <= index < inputs + number:
                summary = f"file action {number} uses {index}, which is no input and no earlier action"
                raise SolveError(summary, vertex=vertex)


def _selectors(actions: Sequence[FileAction], inputs: int) -> dict[int, list[Selector]]:
    """Return what is read of each input that is only read; one that is changed is used as a whole."""
    found: dict[int, list[Selector]] = {}
    changed: set[int] = set()
    for action in actions:
        changed.add(action.input)
        kind = action.action
        if not isinstance(kind, FileActionRm):
            _owner_selectors(kind.owner, found)
        if isinstance(kind, FileActionCopy) and 0 <= action.secondary_input < inputs:
            found.setdefault(action.secondary_input, []).append(
                Selector(
                    kind.src or "/",
                    kind.allow_wildcard and has_wildcard(kind.src),
                    kind.follow_symlink,
                    kind.include_patterns,
                    kind.exclude_patterns,
                    kind.required_paths,
                )
            )
    return {index: chosen for index, chosen in found.items() if index not in changed and index < inputs}


def _owner_selectors(owner: ChownOpt | None, found: dict[int, list[Selector]]) -> None:
    if owner is None:
        return
    for who, path in ((owner.user, "/etc/passwd"), (owner.group, "/etc/group")):
        if isinstance(who, NamedUser):
            # As a wildcard, so that an absent file is no error.
            found.setdefault(who.input, []).append(Selector(path, wildcard=True, follow=True))
