"""Values in Go's spelling, as flags, driver options and filters write them: sizes, durations, CSV fields, booleans.

Spec: docker/go-units ``size.go`` (RAMInBytes); Go ``time.ParseDuration``, ``strconv.ParseBool``, ``encoding/csv``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from crossdock.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "csv_fields",
    "csv_line",
    "is_true",
    "parse_bool",
    "parse_bytes",
    "parse_duration",
    "parse_key_values",
]

# Compiled when first used, as most builds use neither.
_SIZE = r"(-?\d+(?:\.\d+)?)\s*([kmgtp]?)(?:i?b)?\Z"
_DURATION_PART = r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)"
_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_TRUE = frozenset(["1", "t", "T", "true", "TRUE", "True"])
_FALSE = frozenset(["0", "f", "F", "false", "FALSE", "False"])


def parse_bool(text: str, what: str) -> bool:
    """Read a Go boolean; ``what`` names the value in the error.

    Raises: UsageError.
    """
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    summary = f"invalid value {text!r} for {what}: not a boolean"
    raise UsageError(summary, hint="write true or false")


def is_true(text: str) -> bool:
    """Whether a Go boolean is true; what is no boolean is not."""
    return text in _TRUE


def parse_bytes(text: str) -> int:
    """Read a size such as ``512m`` or ``2GiB``: binary units, bytes without one; ``-1`` stays -1.

    Raises: UsageError.
    """
    if text.isdecimal() and text.isascii():
        return int(text)
    match = re.match(_SIZE, text.strip(), re.IGNORECASE)
    if match is None:
        summary = f"invalid size: {text!r}"
        raise UsageError(summary, hint="write a number with an optional unit: b, k, m, g, t or p")
    return int(float(match[1]) * 1024 ** " kmgtp".index(match[2].lower() or " "))


def parse_duration(text: str) -> float:
    """Read a Go duration such as ``1h30m``; seconds.

    Raises: UsageError.
    """
    body = text.strip()
    sign = -1.0 if body.startswith("-") else 1.0
    body = body[1:] if body[:1] in ("+", "-") else body
    if body == "0":
        return 0.0
    parts = re.findall(_DURATION_PART, body)
    if not parts or "".join(n + u for n, u in parts) != body:
        summary = f"invalid duration {text!r}"
        raise UsageError(summary, hint="write it like 20s, 1h30m or 500ms")
    return sign * sum(float(number) * _UNIT_S[unit] for number, unit in parts)


def csv_fields(text: str) -> list[str]:
    """Split one line of comma-separated values; a quoted field may hold commas.

    Raises: UsageError.
    """
    if '"' not in text and "\n" not in text:
        return text.split(",")
    import csv

    try:
        rows = list(csv.reader([text], strict=True))
    except csv.Error as exc:
        summary = f"invalid value {text!r}: {exc}"
        raise UsageError(summary) from exc
    return rows[0] if rows else []


def csv_line(fields: Iterable[str]) -> str:
    """Join fields to a line that :func:`csv_fields` and Go's ``encoding/csv`` split again."""

    def quoted(item: str) -> str:
        if not item[:1].isspace() and item != "\\." and not any(c in item for c in ',"\r\n'):
            return item
        return '"' + item.replace('"', '""') + '"'

    return ",".join(map(quoted, fields))


def parse_key_values(values: Iterable[str]) -> dict[str, str]:
    """Read ``k=v`` pairs out of comma-separated values.

    Raises: UsageError for a field without ``=``.
    """
    out: dict[str, str] = {}
    for value in values:
        for item in csv_fields(value):
            key, equals, rest = item.partition("=")
            if not equals:
                summary = f'invalid value "{item}", expecting k=v'
                raise UsageError(summary)
            out[key] = rest
    return out
