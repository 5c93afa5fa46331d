"""Source policies: rules that allow, deny or replace the sources of a build before anything is fetched.

Within a policy the last matching rule that allows or denies decides; a rule that changes a source has all policies look at it
again. Nothing here asks anybody: what a client decides for itself comes in as ``ask``.

Spec: moby/buildkit ``sourcepolicy/engine.go``, ``sourcepolicy/matcher.go``, ``sourcepolicy/mutate.go``,
``sourcepolicy/pb/policy.proto``, ``docs/build-repro.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.errors import SolveError, UsageError
from crossdock.image.reference import parse_reference
from crossdock.llb.graph import Node, Output, walk
from crossdock.llb.ops import SourceOp
from crossdock.llb.policyrules import Action, Condition, Match
from crossdock.llb.regex import LinearRegex, expand

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from crossdock.image.platform import Platform
    from crossdock.llb.policyrules import Policy, Rule

__all__ = ["PolicyDenied", "SourcePolicies", "normalised"]

#: times that a source may be changed before the policies are taken to run in a circle
_MAX_CHANGES = 20


class PolicyDenied(SolveError):
    """A policy does not allow a source of the build."""

    code = "source-denied"


class _Selector:
    """How one rule finds its sources."""

    __slots__ = ("_conditions", "_regex", "rule")

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._regex: LinearRegex | None = None
        if rule.match == Match.REGEX:
            self._regex = LinearRegex(rule.identifier)
        elif rule.match == Match.WILDCARD:
            if "**" in rule.identifier:
                summary = f"invalid wildcard in a source policy: {rule.identifier!r}"
                raise UsageError(summary)
            import re

            parts = [re.escape(part) for part in rule.identifier.split("*")]
            self._regex = LinearRegex(f"^{'(.*)'.join(parts)}$")
        self._conditions = {
            c.value: LinearRegex(c.value) for c in rule.constraints if c.condition == Condition.MATCHES
        }

    def matches(self, op: SourceOp) -> bool:
        """Whether the rule is about a source."""
        for c in self.rule.constraints:
            have = op.attrs.get(c.key, "")
            if c.condition == Condition.MATCHES:
                if self._conditions[c.value].search(have) is None:
                    return False
            elif (have == c.value) is not (c.condition == Condition.EQUAL):
                return False
        if self.rule.identifier == op.identifier:
            return True
        return self._regex is not None and self._regex.search(op.identifier) is not None

    def changed(self, op: SourceOp) -> SourceOp:
        """Return what a ``CONVERT`` makes of a source."""
        rule = self.rule
        if rule.update is None:
            summary = f"a rule of the source policy converts {rule.identifier!r} into nothing"
            raise UsageError(summary, hint="give it updates")
        if not rule.update:  # BuildKit would make a pattern the source's name
            return SourceOp(op.identifier, {**op.attrs, **rule.update_attrs})
        target = rule.update
        if self._regex is not None and rule.match == Match.REGEX:
            target = self._regex.replace_all(op.identifier, target)
        elif self._regex is not None:
            groups = self._regex.search(op.identifier)
            target = op.identifier if groups is None else expand(target, groups, {})
        return SourceOp(target or op.identifier, {**op.attrs, **rule.update_attrs})


class SourcePolicies:
    """The policies of a build at work. Safe from any thread.

    ``ask`` is whoever decides after the rules: it returns the source as it shall be, or raises :class:`PolicyDenied`.
    """

    def __init__(
        self,
        policies: Sequence[Policy],
        ask: Callable[[SourceOp, Platform | None], SourceOp] | None = None,
    ) -> None:
        """Compile the rules. Raises: UsageError."""
        self._policies = [[_Selector(rule) for rule in policy.rules] for policy in policies if policy.rules]
        self._ask = ask

    def __bool__(self) -> bool:
        return bool(self._policies) or self._ask is not None

    def also(self, policies: Sequence[Policy]) -> SourcePolicies:
        """Return these, and more after them. Raises: UsageError."""
        more = SourcePolicies(policies, self._ask)
        more._policies[:0] = self._policies
        return more

    def evaluate(self, op: SourceOp, platform: Platform | None = None, *, asking: bool = True) -> SourceOp:
        """Return a source as the policies want it. Raises: PolicyDenied, SolveError; what ``ask`` raises."""
        if not self:
            return op
        op = self._by_rules(normalised(op))
        for _ in range(_MAX_CHANGES):
            if self._ask is None or not asking:
                return op
            changed = normalised(self._ask(op, platform))
            if changed == op:
                return op
            op = self._by_rules(changed)
        summary = f"too many mutations on a single source: {op.identifier}"
        raise SolveError(summary)

    def apply(self, output: Output | None) -> Output | None:
        """Return a graph whose sources are as the policies want them. Raises: as :meth:`evaluate`, with the vertex."""
        if output is None or not self:
            return output
        made: dict[str, Node] = {}
        for node in walk([output]):
            made[node.digest] = self._replaced(node, made)
        return Output(made[output.node.digest], output.index)

    def apply_all(self, outputs: Mapping[str, Output]) -> dict[str, Output]:
        """Do so with several graphs by name. Raises: as :meth:`apply`."""
        found = {name: self.apply(output) for name, output in outputs.items()}
        return {name: output for name, output in found.items() if output is not None}

    def _replaced(self, node: Node, made: Mapping[str, Node]) -> Node:
        inputs = [Output(made[i.node.digest], i.index) for i in node.inputs]
        op = node.op
        if isinstance(op, SourceOp):
            try:
                op = self.evaluate(op, node.platform)
            except SolveError as exc:
                exc.vertex = exc.vertex or node.digest
                exc.vertex_name = exc.vertex_name or node.name
                exc.source = exc.source or node.source
                raise
            if op == node.op:
                return node
        elif all(new.node is old.node for new, old in zip(inputs, node.inputs, strict=True)):
            return node
        return node.replaced(op, inputs)

    def _by_rules(self, op: SourceOp) -> SourceOp:
        for _ in range(_MAX_CHANGES + 1):
            changed = self._once(op)
            if changed is None:
                return op
            op = normalised(changed)
        summary = f"too many mutations on a single source: {op.identifier}"
        raise SolveError(summary)

    def _once(self, op: SourceOp) -> SourceOp | None:
        """Ask every policy; returns a changed source as soon as there is one."""
        for rules in self._policies:
            denied = False
            for selector in rules:
                if not selector.matches(op):
                    continue
                if selector.rule.action != Action.CONVERT:
                    denied = selector.rule.action == Action.DENY
                    continue
                changed = selector.changed(op)
                if changed != op:
                    return changed
            if denied:
                summary = f'source "{op.identifier}" denied by policy'
                raise PolicyDenied(summary)
        return None


def normalised(op: SourceOp) -> SourceOp:
    """Write a source as rules expect it: an image with domain and tag. What is malformed stays for others to refuse."""
    scheme, separator, rest = op.identifier.partition("://")
    if scheme != "docker-image" or not separator:
        return op
    try:
        return SourceOp(f"docker-image://{parse_reference(rest).with_default_tag()}", op.attrs)
    except UsageError:
        return op
