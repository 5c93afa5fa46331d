"""Times in cache documents: RFC 3339 as Go writes it, and nanoseconds since the epoch."""

from __future__ import annotations

import time

from crossdock.engine.exporters.history import format_time
from crossdock.engine.remotecache.config import NO_TIME

__all__ = ["parse_time", "today", "write_time"]

_SECOND_NS = 1_000_000_000


def write_time(time_ns: int) -> str:
    """Write a time; 0 is no time."""
    return format_time(time_ns) if time_ns > 0 else NO_TIME


def parse_time(text: str) -> int | None:
    """Read a time; ``None`` for none, and for text that is no time."""
    from datetime import datetime  # only imported layers have times to read

    whole, _, rest = text.partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    zone = rest[len(digits) :]
    try:
        seconds = int(datetime.fromisoformat(whole + zone).timestamp())
    except (ValueError, OverflowError):
        return None
    fraction = int(digits.ljust(9, "0")[:9]) if digits else 0
    return seconds * _SECOND_NS + fraction if seconds > 0 else None


def today() -> str:
    """Return the day, ``2026-01-31``, in UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime())
