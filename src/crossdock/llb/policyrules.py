"""Rules for sources as values, and how they are read: JSON files as buildx takes them, and BuildKit's messages.

What a rule does is said in :mod:`crossdock.llb.policy`.

Spec: moby/buildkit ``sourcepolicy/pb/policy.proto``, ``sourcepolicy/pb/json.go``.
"""

from __future__ import annotations

import json
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NoReturn

from crossdock.errors import SolveError, UsageError
from crossdock.llb.wire import as_bytes, as_int, as_str, fields, integer, message, string_map, text
from crossdock.record import Record, field

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Action", "Condition", "Constraint", "Match", "Policy", "Rule", "parse_policy"]


class Action(IntEnum):
    """What a rule does."""

    ALLOW = 0
    DENY = 1
    CONVERT = 2


class Match(IntEnum):
    """How a rule's identifier is compared with a source's."""

    WILDCARD = 0
    EXACT = 1
    REGEX = 2


class Condition(IntEnum):
    """How an attribute is compared."""

    EQUAL = 0
    NOTEQUAL = 1
    MATCHES = 2


class Constraint(Record, kw_only=False):
    """A condition on one attribute of a source; an attribute that is not there is empty."""

    key: str
    value: str = ""
    condition: int = Condition.EQUAL


class Rule(Record):
    """One rule; ``update`` and ``update_attrs`` are for ``CONVERT``."""

    identifier: str
    action: int = Action.ALLOW
    match: int = Match.WILDCARD
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


def _unknown(what: str, name: object) -> NoReturn:
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
            got["match"] = _enum(Match, as_int(value, "Selector.match_type"))
        elif number == 3:
            one = dict(fields(as_bytes(value, "Constraint"), "Constraint"))
            constraints.append(
                Constraint(
                    as_str(one.get(1, b""), "key"),
                    as_str(one.get(2, b""), "value"),
                    _enum(Condition, as_int(one.get(3, 0), "condition")),
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
        what = kind.__name__.lower()
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
        condition = _enum(Condition, got.get("condition", 0))
        constraints.append(Constraint(str(got.get("key", "")), str(got.get("value", "")), condition))
    updates: dict[str, Any] = {}
    if rule.get("updates") is not None:
        given = _members(rule["updates"], ("identifier", "attrs"))
        attrs = {str(k): str(v) for k, v in (given.get("attrs") or {}).items()}
        updates = {"update": str(given.get("identifier", "")), "update_attrs": attrs}
    return Rule(
        identifier=str(selector.get("identifier", "")),
        action=_enum(Action, rule.get("action", 0)),
        match=_enum(Match, selector.get("match_type", selector.get("matchtype", 0))),
        constraints=tuple(constraints),
        **updates,
    )
