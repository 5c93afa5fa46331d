"""History entries, worded as BuildKit words them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.image.config import History

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from crossdock.dockerfile.convert.stage import StageState

__all__ = ["COMMENT", "record", "run_text", "timestamp"]

COMMENT = "buildkit.dockerfile.v0"


def record(stage: StageState, created_by: str, *, layer: bool, created: str | None) -> None:
    """Append an entry to the stage's image."""
    entry = History(created=created, created_by=created_by, comment=COMMENT, empty_layer=not layer)
    stage.config.history.append(entry)


def run_text(
    args: Sequence[str], build_args: Sequence[tuple[str, str | None]], env: Mapping[str, str]
) -> str:
    """Return the text of a RUN: ``|1 name=value /bin/sh -c …`` when build arguments are in scope."""
    values: dict[str, str] = {}
    for name, value in build_args:
        values[name] = env.get(name, value or "")
    words = [f"{name}={value}" for name, value in values.items()]
    if words:
        words.insert(0, f"|{len(words)}")
    return " ".join((*words, *args))


def timestamp(epoch: int | None) -> str | None:
    """Return seconds since the epoch in RFC 3339."""
    if epoch is None:
        return None
    from datetime import UTC, datetime

    return datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
