"""What a shared cache keeps of other builds, so that it does not grow for ever.

A build's own records are always kept. Of the others go: results with a layer that is gone; results that no build had for
30 days; then, least recently had first, what exceeds ``max-results`` or the megabyte that BuildKit reads of a config or
manifest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from crossdock.engine.remotecache.config import CacheRecord
    from crossdock.image.descriptor import Descriptor
    from crossdock.image.digest import Digest

__all__ = ["MAX_AGE_DAYS", "MAX_BYTES", "Bounds", "bounded"]

MAX_AGE_DAYS = 30
#: of a config or manifest: what BuildKit reads at most
MAX_BYTES = 1 << 20
# Upper estimates of what one thing takes in the documents.
_RECORD_BYTES = 200
_RESULT_BYTES = 110
_LAYER_BYTES = 420  # in the manifest: 330, indented; in a config with annotations: 280


class Bounds(NamedTuple):
    """Limits of one export."""

    max_results: int
    #: ``2026-01-31``
    today: str


def bounded(
    records: Sequence[CacheRecord],
    own: Sequence[CacheRecord],
    layers: Mapping[Digest, Descriptor],
    limits: Bounds,
) -> list[CacheRecord]:
    """Return the records to keep of ``records``, which contain ``own``; inputs before users."""
    mine = {record.identity for record in own}
    oldest = _days_before(limits.today, MAX_AGE_DAYS)
    others: list[CacheRecord] = []
    for record in records:
        if record.identity not in mine and record.results:
            result = record.results[0]
            if all(blob in layers for blob in result.blobs) and _day(record) >= oldest:
                others.append(record)
    # A day to come is that of a clock that is wrong: it counts no more than today.
    others.sort(
        key=lambda record: (min(_day(record), limits.today), record.results[0].created, record.digest),
        reverse=True,
    )
    budget = MAX_BYTES - _cost(own, ())
    seen = {blob for record in own for result in record.results for blob in result.blobs}
    with_result: set[bytes] = set()
    for record in others[: limits.max_results]:
        new = set(record.results[0].blobs) - seen
        budget -= _RECORD_BYTES + _RESULT_BYTES + _LAYER_BYTES * len(new)
        if budget < 0:
            break
        seen |= new
        with_result.add(record.identity)
    return _closed(records, mine, with_result, budget)


def _closed(
    records: Sequence[CacheRecord], mine: Collection[bytes], with_result: Collection[bytes], budget: int
) -> list[CacheRecord]:
    """Keep what is ours, what has a kept result, and what leads to one; links without a result while there is room."""
    kept: dict[bytes, CacheRecord] = {}
    for record in records:
        if record.identity in mine:
            kept[record.identity] = record
            continue
        sources = [source.identity for links in record.inputs for _, source in links]
        if not all(source in kept for source in sources):
            continue
        if record.identity in with_result:
            kept[record.identity] = record
        elif not record.results or sources:
            budget -= _RECORD_BYTES
            if budget >= 0:
                kept[record.identity] = record.with_results(())
    return list(kept.values())


def _cost(records: Sequence[CacheRecord], seen: Collection[Digest]) -> int:
    blobs = {blob for record in records for result in record.results for blob in result.blobs} - set(seen)
    results = sum(len(record.results) for record in records)
    return _RECORD_BYTES * len(records) + _RESULT_BYTES * results + _LAYER_BYTES * len(blobs)


def _day(record: CacheRecord) -> str:
    """Return the day a result was last had; records of BuildKit tell when it was made."""
    result = record.results[0]
    return result.used or result.created[:10]


def _days_before(day: str, days: int) -> str:
    from datetime import date, timedelta

    return (date.fromisoformat(day) - timedelta(days=days)).isoformat()
