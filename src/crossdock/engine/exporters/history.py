"""Fit an image's history and times to its layers, as BuildKit's exporter does.

Spec: BuildKit ``exporter/containerimage/writer.go``, ``normalizeLayersAndHistory``, ``patchImageConfig``.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from crossdock.image.config import History
from crossdock.record import replace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.engine.store import LayerInfo
    from crossdock.image.config import ImageConfig

__all__ = ["clamp_times", "format_time", "is_after", "normalise"]

_SECOND_NS = 1_000_000_000
_COMMENT = "buildkit.exporter.image.v0"


def format_time(time_ns: int) -> str:
    """Write nanoseconds since the epoch as Go does: RFC 3339, UTC, no trailing zeros."""
    seconds, rest = divmod(time_ns, _SECOND_NS)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{text}.{rest:09d}".rstrip("0").rstrip(".") + "Z"


def is_after(text: str, epoch_s: int) -> bool:
    """Whether an RFC 3339 time is later than ``epoch_s``; text that is no time counts as later."""
    from datetime import datetime  # only builds with SOURCE_DATE_EPOCH need it

    whole, dot, rest = text.partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    try:
        seconds = datetime.fromisoformat(whole + rest[len(digits) :] if dot else text).timestamp()
    except ValueError:
        return True
    return seconds > epoch_s or (seconds == epoch_s and bool(digits.strip("0")))


def normalise(history: Sequence[History], layers: Sequence[LayerInfo]) -> list[History]:
    """Return a history with one non-empty entry per layer and a time in every entry.

    Entries without a layer are marked as empty from the end, missing ones are added with the layer's
    description; times come from the layers, and from neighbours for entries without one.
    """
    count = len(layers)
    result: list[History] = []
    seen = 0
    for entry in history:
        with_layer = not entry.empty_layer
        if with_layer and seen >= count:
            result.append(replace(entry, empty_layer=True))
            continue
        seen += with_layer
        result.append(replace(entry))
    for info in layers[seen:]:
        created_by = info.description or "created by buildkit"
        result.append(History(created=format_time(info.created_ns), created_by=created_by, comment=_COMMENT))
    at = 0
    for entry in result:
        if not entry.empty_layer:
            if entry.created is None:
                entry.created = format_time(layers[at].created_ns)
            at += 1
    _fill_times(result)
    return result


def _fill_times(history: list[History]) -> None:
    """Give entries without a time that of the first layer after the base's, later the one before them."""
    created: str | None = None
    gap = False
    for entry in history:
        if entry.created is not None:
            created = entry.created
            if gap:
                break
        else:
            gap = True
    gap = False
    for entry in history:
        if entry.created is not None:
            if gap:
                created = entry.created
        else:
            gap = True
            entry.created = created


def clamp_times(config: ImageConfig, base: ImageConfig | None, epoch_s: int) -> None:
    """Cut the times of ``config``, in place, at ``epoch_s``; what came with the base image keeps its own."""
    limit = format_time(epoch_s * _SECOND_NS)
    same = base is not None
    for number, entry in enumerate(config.history):
        if same and base is not None and number < len(base.history) and entry == base.history[number]:
            continue
        same = False
        if entry.created is None or is_after(entry.created, epoch_s):
            entry.created = limit
    if config.created is not None and is_after(config.created, epoch_s):
        config.created = limit
