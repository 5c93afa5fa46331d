"""Readers of flag values with Go's spelling: sizes, durations, comma-separated fields.

Spec: docker/go-units ``size.go`` (RAMInBytes); Go ``time.ParseDuration``; Go ``encoding/csv``.
"""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING, Any

import click

from crossdock.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "BYTES",
    "DURATION",
    "csv_fields",
    "human_duration",
    "human_size",
    "parse_bytes",
    "parse_duration",
    "parse_key_values",
]

_SIZE = re.compile(r"(-?\d+(?:\.\d+)?)\s*([kmgtp]?)(?:i?b)?\Z", re.IGNORECASE)
_DURATION = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|μs|ms|s|m|h)")
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_bytes(text: str) -> int:
    """Read a size such as ``512m`` or ``2GiB``: binary units, bytes without one; ``-1`` stays -1.

    Raises: UsageError.
    """
    match = _SIZE.match(text.strip())
    if match is None:
        summary = f"invalid size: {text!r}"
        raise UsageError(summary, hint="write a number with an optional unit: b, k, m, g, t or p")
    return int(float(match[1]) * 1024 ** " kmgtp".index(match[2].lower() or " "))


def parse_duration(text: str) -> float:
    """Read a Go duration such as ``1h30m``; seconds.

    Raises: UsageError.
    """
    body = text.strip()
    if body in ("0", "+0", "-0"):
        return 0.0
    sign = -1.0 if body.startswith("-") else 1.0
    body = body.lstrip("+-") if body[:1] in ("+", "-") else body
    parts = _DURATION_PART.findall(body)
    if not parts or "".join(n + u for n, u in parts) != body:
        summary = f"invalid duration {text!r}"
        raise UsageError(summary, hint="write it like 20s, 1h30m or 500ms")
    return sign * sum(float(number) * _UNIT_S[unit] for number, unit in parts)


class _Bytes(click.ParamType):
    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return value if isinstance(value, int) else parse_bytes(value)


class _Duration(click.ParamType):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        return float(value) if isinstance(value, int | float) else parse_duration(value)


BYTES = _Bytes()
DURATION = _Duration()


def csv_fields(text: str) -> list[str]:
    """Split one line of comma-separated values; a quoted field may hold commas.

    Raises: UsageError.
    """
    try:
        rows = list(csv.reader([text], strict=True))
    except csv.Error as exc:
        summary = f"invalid value {text!r}: {exc}"
        raise UsageError(summary) from exc
    return rows[0] if rows else []


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


def human_size(size_bytes: float) -> str:
    """Format with decimal units and four significant digits, as go-units ``HumanSize``."""
    units = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
    value, at = float(size_bytes), 0
    while value >= 1000 and at < len(units) - 1:
        value, at = value / 1000, at + 1
    return f"{value:.4g}{units[at]}"


_STEPS = (
    (60, 1, "second"),
    (60 * 60, 60, "minute"),
    (48 * 3600, 3600, "hour"),
    (14 * 86400, 86400, "day"),
    (60 * 86400, 7 * 86400, "week"),
    (2 * 365 * 86400, 30 * 86400, "month"),
)


def human_duration(seconds: float) -> str:
    """Format roughly, as go-units ``HumanDuration``: ``About a minute``, ``3 days``."""
    if seconds < 1:
        return "Less than a second"
    if 60 <= seconds < 120:
        return "About a minute"
    if 3600 <= seconds < 5400:
        return "About an hour"
    for limit, unit, name in _STEPS:
        if seconds < limit:
            count = int(seconds / unit + (0.5 if name == "hour" else 0))
            return f"{count} {name}{'s' if count != 1 else ''}"
    return f"{int(seconds / (365 * 86400))} years"
