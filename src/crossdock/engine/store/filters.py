"""Filters of `du` and `prune`.

Two forms: BuildKit's API takes a list of filters of which one must match, each a comma list of conditions
that must all match; the command line takes single conditions that must all match, ``until`` among them.

Fields: ``id parents description type`` (text), ``inuse mutable immutable shared private`` (flags). Operators:
none (present), ``==`` or ``=``, ``!=``, ``~=`` (regular expression). Values may be quoted.
Spec: containerd's filter syntax as BuildKit's Control API uses it.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from crossdock.errors import UsageError
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from crossdock.engine.store.usage import UsageRecord

__all__ = ["CliFilters", "parse_cli_filters", "parse_duration", "parse_filters"]

_CONDITION = re.compile(
    r"\s*(?P<field>[A-Za-z][A-Za-z0-9_.-]*)\s*"
    r"(?:(?P<op>==|!=|~=|=)\s*(?P<value>\"(?:[^\"\\]|\\.)*\"|'[^']*'|[^,]*))?\s*(?:,|\Z)"
)
_TEXT = ("id", "parents", "description", "type")
_FLAGS = ("inuse", "mutable", "immutable", "shared", "private")
_TRUE, _FALSE = ("", "true", "1"), ("false", "0")
_HINT = f"fields are {', '.join(_TEXT + _FLAGS)}; operators ==, !=, ~="
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h|d)")


class CliFilters(NamedTuple):
    """What the command line's filters come to: API filters and an age."""

    filters: tuple[str, ...]
    keep_duration_s: float


def parse_filters(filters: Sequence[str]) -> Callable[[UsageRecord], bool]:
    """Return a predicate for API filters; none at all match everything. Raises: UsageError."""
    groups = [_parse_group(text) for text in filters if text.strip()]
    if not groups:
        return lambda _record: True
    return lambda record: any(all(test(record) for test in group) for group in groups)


def parse_cli_filters(filters: Iterable[str], now_ns: int | None = None) -> CliFilters:
    """Split ``until``/``unused-for`` (a duration, or a time since when) from the rest, which must all match.

    ``id=X`` matches ids that contain X as a regular expression, as buildx does. Raises: UsageError.
    """
    keep_s: float | None = None
    conditions: list[str] = []
    for text in filters:
        field, _, value = text.partition("=")
        if field.strip() in ("until", "unused-for"):
            if keep_s is not None:
                summary = "the filter until (or unused-for) may be given once"
                raise UsageError(summary)
            keep_s = _age_s(value.strip(), time.time_ns() if now_ns is None else now_ns)
        elif field.strip() == "id" and not value.startswith("="):
            conditions.append(f"id~={value}")
        else:
            conditions.append(text)
    joined = ",".join(conditions)
    parse_filters((joined,))
    return CliFilters((joined,) if joined else (), keep_s or 0.0)


def parse_duration(text: str) -> float:
    """Return seconds of a Go duration such as ``1h30m`` or ``24h``; ``d`` (days) too. Raises: UsageError."""
    total, position = 0.0, 0
    while match := _DURATION.match(text, position):
        total += float(match[1]) * _UNITS_S[match[2]]
        position = match.end()
    if position == 0 or position != len(text):
        summary = f"invalid duration: {text!r}"
        raise UsageError(summary, hint="write it like 24h, 90m or 7d")
    return total


def _age_s(text: str, now_ns: int) -> float:
    if text.isdecimal():
        return max(0.0, now_ns / 1e9 - int(text))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return parse_duration(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, now_ns / 1e9 - moment.timestamp())


def _parse_group(text: str) -> list[Callable[[UsageRecord], bool]]:
    tests = []
    position = 0
    while position < len(text):
        match = _CONDITION.match(text, position)
        if match is None:
            summary = f"invalid filter: {text!r}"
            raise UsageError(summary, hint=_HINT)
        tests.append(_condition(match["field"], match["op"] or "", _unquote(match["value"] or "")))
        position = match.end()
    return tests


def _unquote(value: str) -> str:
    if value.startswith('"'):
        return re.sub(r"\\(.)", r"\1", value[1:-1])
    return value[1:-1] if value.startswith("'") else value.rstrip()


def _condition(field: str, operator: str, value: str) -> Callable[[UsageRecord], bool]:
    if field in _FLAGS:
        return _flag_condition(field, operator, value)
    if field not in _TEXT:
        summary = f"unknown filter field: {field}"
        raise UsageError(summary, hint=_HINT)
    if operator == "":
        return lambda record: any(_values(record, field))
    if operator == "~=":
        try:
            pattern = re.compile(value)
        except re.error as exc:
            summary = f"invalid regular expression in filter {field}~={value}: {exc}"
            raise UsageError(summary) from exc
        return lambda record: any(pattern.search(text) for text in _values(record, field))
    wanted = operator != "!="
    return lambda record: (value in _values(record, field)) is wanted


def _flag_condition(field: str, operator: str, value: str) -> Callable[[UsageRecord], bool]:
    lowered = value.lower()
    if operator == "~=" or lowered not in _TRUE + _FALSE:
        summary = f"filter {field} is true or false"
        raise UsageError(summary, hint=_HINT)
    wanted = (lowered in _TRUE) is (operator != "!=")
    return lambda record: _flag(record, field) is wanted


def _flag(record: UsageRecord, field: str) -> bool:
    match field:
        case "inuse":
            return record.in_use
        case "mutable":
            return record.mutable
        case "immutable":
            return not record.mutable
        case "shared":
            return record.shared
        case _:
            return not record.shared


def _values(record: UsageRecord, field: str) -> tuple[str, ...]:
    match field:
        case "id":
            return (record.id,)
        case "parents":
            return (*record.parents, ";".join(record.parents)) if record.parents else ()
        case "description":
            return (record.description,)
        case _:
            return (record.record_type,)
