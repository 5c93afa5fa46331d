"""Flag types of click for values in Go's spelling, and their human-readable forms.

Spec: docker/go-units ``size.go`` (HumanSize), ``duration.go`` (HumanDuration).
"""

from __future__ import annotations

from typing import Any

import click

from crossdock.builders.values import parse_bytes, parse_duration

__all__ = ["BYTES", "DURATION", "binary_size", "human_duration", "human_size"]


class _Bytes(click.ParamType[int]):
    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ARG002
        return value if isinstance(value, int) else parse_bytes(value)


class _Duration(click.ParamType[float]):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ARG002
        return float(value) if isinstance(value, int | float) else parse_duration(value)


BYTES = _Bytes()
DURATION = _Duration()


def human_size(size_bytes: float) -> str:
    """Format with decimal units and four significant digits, as go-units ``HumanSize``."""
    units = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
    value, at = float(size_bytes), 0
    while value >= 1000 and at < len(units) - 1:
        value, at = value / 1000, at + 1
    return f"{value:.4g}{units[at]}"


def binary_size(size_bytes: float) -> str:
    """Format with binary units and four significant digits, as go-units ``BytesSize``."""
    units = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
    value, at = float(size_bytes), 0
    while value >= 1024 and at < len(units) - 1:
        value, at = value / 1024, at + 1
    return f"{value:.4g}{units[at]}"


#: below so many seconds, count units of so many seconds
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
