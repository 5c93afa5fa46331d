"""Durations and sizes as buildkitd's configuration and flags write them.

Spec: moby/buildkit ``cmd/buildkitd/config/gcpolicy.go``; docker/go-units (a unit is a power of 1024, with or without ``i``).
"""

from __future__ import annotations

import re

__all__ = ["parse_duration", "parse_size", "parse_storage"]

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)i?b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_MEGABYTE = 1_000_000


def parse_duration(value: object) -> float:
    """Read seconds, as a number or as Go writes durations (``48h30m``). Raises: ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    text = str(value)
    if text.isdecimal():
        return float(text)
    if text and "".join(m[0] for m in _DURATION.finditer(text)) == text:
        return sum(float(m[1]) * _SECONDS[m[2]] for m in _DURATION.finditer(text))
    msg = f"invalid duration {value!r}: write it as 48h or 30m"
    raise ValueError(msg)


def parse_size(value: object, disk_total: int) -> int:
    """Read bytes, as a number, with a unit (``10GB``, ``512MiB``), or as a part of the disk (``20%``). Raises: ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = str(value).strip()
    if text.endswith("%") and text[:-1].strip().isdecimal() and int(text[:-1]) <= 100:
        return disk_total * int(text[:-1]) // 100
    match = _SIZE.fullmatch(text)
    if match is None:
        msg = f"invalid size {value!r}: write it as 10GB, 512MiB or 20%"
        raise ValueError(msg)
    return int(float(match[1]) * 1024 ** _POWERS[match[2].lower()])


def parse_storage(text: str) -> dict[str, int]:
    """Read ``RESERVED[,FREE[,MAXIMUM]]`` in megabytes; returns bytes by field of a policy. Raises: ValueError."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > 3 or not all(part.isdecimal() or not part for part in parts) or not any(parts):
        msg = f"invalid size {text!r}: write megabytes as RESERVED[,FREE[,MAXIMUM]]"
        raise ValueError(msg)
    names = ("reserved_space", "min_free_space", "max_used_space")
    return {
        name: int(part) * _MEGABYTE for name, part in zip(names[: len(parts)], parts, strict=True) if part
    }
