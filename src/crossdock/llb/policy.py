"""Source policies: rules that allow, deny or replace the sources of a build before anything is fetched.

Within a policy the last matching rule that allows or denies decides; a rule that changes a source has all policies look at it
again. Nothing here asks anybody: what a client decides for itself comes in as ``ask``.

Spec: moby/buildkit ``sourcepolicy/engine.go``, ``sourcepolicy/matcher.go``, ``sourcepolicy/mutate.go``,
``sourcepolicy/pb/policy.proto``, ``docs/build-repro.md``.
"""

from __future__ import annotations

import json
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from crossdock.errors import SolveError, UsageError
from crossdock.image.reference import parse_reference
from crossdock.llb.graph import Node, Output, walk
from crossdock.llb.ops import SourceOp
from crossdock.llb.regex import LinearRegex, expand
from crossdock.llb.wire import as_bytes, as_int, as_str, fields, integer, message, string_map, text
from crossdock.record import Record, field

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from crossdock.image.platform import Platform

__all__ = [
    "Action",
    "Constraint",
    "Policy",
    "PolicyDenied",
    "Rule",
    "SourcePolicies",
    "normalised",
    "parse_policy",
]

#: times that a source may be changed before the policies are taken to run in a circle
_MAX_CHANGES = 20


class PolicyDenied(SolveError):
    """A policy does not allow a source of the build."""

    code = "source-denied"


class Action(IntEnum):
    """What a rule does."""

    ALLOW = 0
    DENY = 1
    CONVERT = 2


class _Match(IntEnum):
    WILDCARD = 0
    EXACT = 1
    REGEX = 2


class _Condition(IntEnum):
    EQUAL = 0
    NOTEQUAL = 1
    MATCHES = 2


class Constraint(Record, kw_only=False):
    """A condition on one attribute of a source; an attribute that is not there is empty."""

    key: str
    value: str = ""
    condition: int = _Condition.EQUAL


class Rule(Record):
    """One rule; ``update`` and ``update_attrs`` are for ``CONVERT``."""

    identifier: str
    action: int = Action.ALLOW
    match: int = _Match.WILDCARD
    constraints: tuple[Constraint, ...] = ()
    #: ``None``: the rule says not what to change
    update: str | None = None
    update_attrs: Mapping[str, str] = field(default_factory=dict, hash=False)

    def to_bytes(self) -> bytes:
        """Return the rule as ``sourcepolicy.Rule``."""
        constraints = b"".join(
            message(3, text(1, c.key) + text(2, c.value) + integer(3, c.condition)) for c in self.constraints
        )
        selector = text(1, self.identifier) + integer(2, self.match) + constraints
        update = (
            b""
            if self.update is None
            else message(3, text(1, self.update) + string_map(2, self.update_attrs))
        )
        return integer(1, self.action) + message(2, selector) + update


class Policy(Record, kw_only=False):
    """Rules in order."""

    rules: tuple[Rule, ...] = ()
    version: int = 1

    def to_bytes(self) -> bytes:
        """Return the policy as ``sourcepolicy.Policy``."""
        return integer(1, self.version) + b"".join(message(2, rule.to_bytes()) for rule in self.rules)

    @classmethod
    def from_bytes(cls, data: bytes) -> Policy:
        """Read ``sourcepolicy.Policy``. Raises: UsageError, SolveError when malformed."""
        rules, version = [], 0
        for number, value in fields(data, "Policy"):
            if number == 1:
                version = as_int(value, "Policy.version")
            elif number == 2:
                rules.append(_rule(as_bytes(value, "Rule")))
            else:
                _unknown("policy", number)
        return cls(tuple(rules), version)


def _unknown(what: str, name: object) -> None:
    summary = f"a source {what} has a field that is not known: {name}"
    raise UsageError(summary)


def _rule(data: bytes) -> Rule:
    got: dict[str, Any] = {}
    for number, value in fields(data, "Rule"):
        if number == 1:
            got["action"] = _enum(Action, as_int(value, "Rule.action"))
        elif number == 2:
            got.update(_selector(as_bytes(value, "Rule.selector")))
        elif number == 3:
            got.setdefault("update", "")
            got.update(_update(as_bytes(value, "Rule.updates")))
        else:
            _unknown("policy rule", number)
    if "identifier" not in got:
        summary = "a rule of a source policy has no selector"
        raise UsageError(summary)
    return Rule(**got)


def _selector(data: bytes) -> dict[str, Any]:
    got: dict[str, Any] = {"identifier": ""}
    constraints = []
    for number, value in fields(data, "Selector"):
        if number == 1:
            got["identifier"] = as_str(value, "Selector.identifier")
        elif number == 2:
            got["match"] = _enum(_Match, as_int(value, "Selector.match_type"))
        elif number == 3:
            one = dict(fields(as_bytes(value, "Constraint"), "Constraint"))
            constraints.append(
                Constraint(
                    as_str(one.get(1, b""), "key"),
                    as_str(one.get(2, b""), "value"),
                    _enum(_Condition, as_int(one.get(3, 0), "condition")),
                )
            )
        else:
            _unknown("policy selector", number)
    return {**got, "constraints": tuple(constraints)}


def _update(data: bytes) -> dict[str, Any]:
    got: dict[str, Any] = {}
    attrs: dict[str, str] = {}
    for number, value in fields(data, "Update"):
        if number == 1:
            got["update"] = as_str(value, "Update.identifier")
        elif number == 2:
            pair = dict(fields(as_bytes(value, "Update.attrs"), "Update.attrs"))
            attrs[as_str(pair.get(1, b""), "key")] = as_str(pair.get(2, b""), "value")
        else:
            _unknown("policy update", number)
    return {**got, "update_attrs": attrs}


def _enum(kind: type[IntEnum], value: Any) -> int:
    """Read an enum by number or, as JSON has it, by name."""
    try:
        return kind[value] if isinstance(value, str) else kind(value)
    except (KeyError, ValueError) as exc:
        what = kind.__name__.lstrip("_").lower()
        summary = f"a source policy has an unknown {what}: {value!r}"
        raise UsageError(summary, hint=f"it is one of {', '.join(one.name for one in kind)}") from exc


# --- files ---


def parse_policy(data: bytes, where: str) -> Policy:
    """Read a policy from a file: JSON, or a protobuf message.

    Raises: UsageError naming ``where`` and what is wrong.
    """
    try:
        parsed = json.loads(data)
    except ValueError as exc:
        try:
            return Policy.from_bytes(data)
        except (UsageError, SolveError):
            summary = f"{where}: failed to parse source policy: {exc}"
            raise UsageError(summary) from exc
    try:
        top = _members(parsed, ("version", "rules"))
        rules = tuple(_json_rule(rule) for rule in top.get("rules") or ())
        return Policy(rules, int(top.get("version") or 0))
    except (TypeError, ValueError, UsageError) as exc:
        reason = exc.summary if isinstance(exc, UsageError) else "it is not of the form of a policy"
        summary = f"{where}: failed to parse source policy: {reason}"
        raise UsageError(summary, hint=getattr(exc, "hint", None)) from exc


def _members(value: object, known: Sequence[str]) -> dict[str, Any]:
    """Return the members of an object by their names in lower case; unknown ones would change what a rule means."""
    if not isinstance(value, dict):
        summary = f"an object is wanted, not {json.dumps(value)[:60]}"
        raise UsageError(summary)
    found = {str(key).lower(): member for key, member in value.items()}
    for key in found:
        if key not in known:
            _unknown("policy", key)
    return found


def _json_rule(value: object) -> Rule:
    rule = _members(value, ("action", "selector", "updates"))
    if rule.get("selector") is None:
        summary = "a rule has no selector"
        raise UsageError(summary)
    selector = _members(rule["selector"], ("identifier", "match_type", "matchtype", "constraints"))
    constraints = []
    for one in selector.get("constraints") or ():
        got = _members(one, ("key", "value", "condition"))
        condition = _enum(_Condition, got.get("condition", 0))
        constraints.append(Constraint(str(got.get("key", "")), str(got.get("value", "")), condition))
    updates: dict[str, Any] = {}
    if rule.get("updates") is not None:
        given = _members(rule["updates"], ("identifier", "attrs"))
        attrs = {str(k): str(v) for k, v in (given.get("attrs") or {}).items()}
        updates = {"update": str(given.get("identifier", "")), "update_attrs": attrs}
    return Rule(
        identifier=str(selector.get("identifier", "")),
        action=_enum(Action, rule.get("action", 0)),
        match=_enum(_Match, selector.get("match_type", selector.get("matchtype", 0))),
        constraints=tuple(constraints),
        **updates,
    )


# --- evaluation ---


class _Selector:
    """How one rule finds its sources."""

    __slots__ = ("_conditions", "_regex", "rule")

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._regex: LinearRegex | None = None
        if rule.match == _Match.REGEX:
            self._regex = LinearRegex(rule.identifier)
        elif rule.match == _Match.WILDCARD:
            if "**" in rule.identifier:
                summary = f"invalid wildcard in a source policy: {rule.identifier!r}"
                raise UsageError(summary)
            import re

            parts = [re.escape(part) for part in rule.identifier.split("*")]
            self._regex = LinearRegex(f"^{'(.*)'.join(parts)}$")
        self._conditions = {
            c.value: LinearRegex(c.value) for c in rule.constraints if c.condition == _Condition.MATCHES
        }

    def matches(self, op: SourceOp) -> bool:
        """Whether the rule is about a source."""
        for c in self.rule.constraints:
            have = op.attrs.get(c.key, "")
            if c.condition == _Condition.MATCHES:
                if self._conditions[c.value].search(have) is None:
                    return False
            elif (have == c.value) is not (c.condition == _Condition.EQUAL):
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
        if self._regex is not None and rule.match == _Match.REGEX:
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
        return Node(
            op,
            inputs,
            platform=node.platform,
            constraints=node.constraints,
            metadata=node.metadata,
            source=node.source,
        )

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
