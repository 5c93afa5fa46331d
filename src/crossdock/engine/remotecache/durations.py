"""Durations as Go writes them: ``24h``, ``1m30s``, ``500ms``."""

from __future__ import annotations

import re

from crossdock.errors import UsageError

__all__ = ["parse_duration"]

_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(key: str, text: str) -> float:
    """Return seconds. Raises: UsageError naming the key."""
    if text == "0":
        return 0.0
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        summary = f"invalid duration {text!r} for {key}"
        raise UsageError(summary, hint="write 30s, 10m or 24h")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)
