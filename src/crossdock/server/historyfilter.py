"""Which records of builds a client asks for: its filters and its limit.

A filter is a line of CSV, whose conditions must all hold; one of several filters must match.

Spec: moby/buildkit ``solver/llbsolver/history/filter.go``; containerd ``pkg/filters`` for what is not about time.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from crossdock.dockerfile.words import csv_fields
from crossdock.errors import UsageError
from crossdock.server.configvalues import parse_duration
from crossdock.server.filters import matches

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from crossdock.buildkit.proto import control_pb2

    Record = control_pb2.BuildHistoryRecord
    Test = Callable[[Record], bool]

__all__ = ["record_filter", "status_of_record"]

_NS = 1_000_000_000
_TIMED = re.compile(r"(startedAt|completedAt|duration)(>=|<=|>|<)(.*)")
_RFC_3339 = re.compile(
    r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(?:Z|([+-])(\d\d):(\d\d))",
)


def record_filter(filters: Sequence[str]) -> Test:
    """Return a predicate; no filter matches everything. Raises: UsageError for a malformed filter."""
    groups = [_conditions(text) for text in filters]
    return lambda record: not groups or any(all(test(record) for test in group) for group in groups)


def status_of_record(record: Record) -> str:
    """Return ``running``, ``completed``, ``error`` or ``canceled``."""
    if not record.HasField("CompletedAt"):
        return "running"
    if not record.HasField("error"):
        return "completed"
    return "canceled" if "context canceled" in record.error.message else "error"


def _conditions(text: str) -> list[Test]:
    timed: list[Test] = []
    plain = []
    try:
        conditions = csv_fields(text) if text else []
    except ValueError as exc:
        summary = f"invalid filter {text!r}: {exc}"
        raise UsageError(summary) from exc
    for condition in conditions:
        match = _TIMED.fullmatch(condition)
        if match:
            timed.append(_timed(match[1], match[2], match[3]))
        else:
            plain.append(condition)
    joined = ",".join(plain)
    matches([joined], {})  # malformed ones are to be found also when there is no record
    return [*timed, lambda record: matches([joined], _fields(record))]


def _fields(record: Record) -> dict[str, object]:
    source = record.FrontendAttrs.get("vcs:source", "") or _repository(
        record.FrontendAttrs.get("context", "")
    )
    found: dict[str, object] = {"ref": record.Ref, "status": status_of_record(record)}
    return {**found, "repository": source} if source else found


def _repository(context: str) -> str:
    from crossdock.dockerfile.giturl import GitUrlError, parse_git_ref

    try:
        parsed = parse_git_ref(context)
    except GitUrlError:
        return ""
    return parsed.remote if parsed is not None else ""


def _timed(name: str, operator: str, value: str) -> Test:
    """Return a test of a time, given as such or as a duration before now, or of how long a build took."""
    if name == "duration":
        wanted = int(_duration(value, name) * _NS)
        return lambda record: _compare(_took(record), operator, wanted)
    at = _moment(value)
    return lambda record: _compare(_second(record, name), operator, at)


def _moment(value: str) -> int:
    try:
        return int(time.time_ns() / _NS - parse_duration(value))
    except ValueError:
        pass
    match = _RFC_3339.fullmatch(value)
    try:
        if match is None:
            raise ValueError
        import calendar

        seconds = calendar.timegm(time.strptime(match[1], "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        summary = f"invalid time {value!r} in a filter"
        raise UsageError(summary, hint="write it as 24h, or as 2026-01-31T12:00:00Z") from None
    if match[2]:
        offset = int(match[3]) * 3600 + int(match[4]) * 60
        seconds -= offset if match[2] == "+" else -offset
    return seconds


def _duration(value: str, name: str) -> float:
    try:
        return parse_duration(value)
    except ValueError as exc:
        summary = f"{name} in a filter: {exc}"
        raise UsageError(summary) from exc


def _second(record: Record, name: str) -> int:
    stamp = record.CreatedAt if name == "startedAt" else record.CompletedAt
    return int(stamp.seconds)


def _took(record: Record) -> int:
    if not record.HasField("CompletedAt"):
        return 0
    return record.CompletedAt.ToNanoseconds() - record.CreatedAt.ToNanoseconds()


def _compare(found: int, operator: str, wanted: int) -> bool:
    match operator:
        case ">=":
            return found >= wanted
        case "<=":
            return found <= wanted
        case ">":
            return found > wanted
        case _:
            return found < wanted
