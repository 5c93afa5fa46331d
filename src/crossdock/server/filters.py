"""containerd's filter expressions: ``field==value``, ``!=``, ``~=``, presence; comma is *and*, several filters are *or*.

Spec: containerd ``pkg/filters``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from crossdock.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["matches"]

_PART = re.compile(
    r"""\s*(?P<field>[\w-]+(?:\.(?:[\w-]+|"[^"]*"))*)\s*(?:(?P<op>==|!=|~=)\s*(?P<value>"(?:[^"\\]|\\.)*"|[^,]*))?\s*(?:,|\Z)"""
)


def matches(filters: Iterable[str], record: Mapping[str, object]) -> bool:
    """Whether one of the filters, or none given, matches a record; maps are reached with dots.

    Raises: UsageError for a malformed filter.
    """
    parsed = [_parse(text) for text in filters]
    return not parsed or any(all(_holds(part, record) for part in parts) for parts in parsed)


def _parse(text: str) -> list[tuple[str, str, str]]:
    parts: list[tuple[str, str, str]] = []
    at = 0
    while at < len(text):
        match = _PART.match(text, at)
        if match is None:
            summary = f"invalid filter {text!r}"
            raise UsageError(summary, hint="write it as field==value, field!=value or field~=regexp")
        value = match["value"] or ""
        if value.startswith('"'):
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        parts.append((match["field"], match["op"] or "", value.strip()))
        at = match.end()
    return parts


def _holds(part: tuple[str, str, str], record: Mapping[str, object]) -> bool:
    field, operator, value = part
    found = _lookup(field, record)
    match operator:
        case "==":
            return found == value
        case "!=":
            return found != value
        case "~=":
            try:
                return found is not None and re.search(value, found) is not None
            except re.error as exc:
                summary = f"invalid regular expression {value!r} in a filter: {exc}"
                raise UsageError(summary) from exc
        case _:
            return bool(found)


def _lookup(field: str, record: Mapping[str, object]) -> str | None:
    name, _, rest = field.partition(".")
    value = record.get(name)
    if isinstance(value, dict):
        found = value.get(rest.strip('"'))
        return None if found is None else str(found)
    if value is None or rest:
        return None
    return str(value)
