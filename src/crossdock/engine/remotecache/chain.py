"""Our keys as cache records, and back.

The store knows two things: which key means which canonical key, and which canonical key has which result. Both become records:

- a canonical key is a record with its digest and no inputs; its result is the record's result. A result of several
  outputs has one input per output instead, selector ``crossdock.output``, each a record with the digest of
  ``KEY@INDEX`` and that output as its result;
- any other key (by definition, or by content) is a record with one input, selector ``crossdock.canonical``: the
  canonical key's record.

Inputs of steps need no links: keys contain the canonical keys of their inputs already. So a store that imports a cache finds
exactly what the exporting store found under the same keys, and a foreign record is one that no key ever asks for.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from crossdock.engine.remotecache.config import CacheRecord, CacheResult
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["CANONICAL", "OUTPUT", "CacheIndex", "KnownKey", "to_records"]

CANONICAL = "crossdock.canonical"
OUTPUT = "crossdock.output"


class KnownKey(NamedTuple):
    """What is known of one step."""

    canonical: str
    #: other keys that mean it
    keys: tuple[str, ...] = ()
    #: one per output; ``None`` when there is no result to give
    outputs: tuple[CacheResult, ...] | None = None


def to_records(known: Iterable[KnownKey]) -> list[CacheRecord]:
    """Return the records of keys, inputs before users."""
    records: dict[bytes, CacheRecord] = {}

    def add(record: CacheRecord) -> CacheRecord:
        old = records.get(record.identity)
        if old is None or not old.results:
            records[record.identity] = record
        return records[record.identity]

    for key in known:
        canonical = _canonical_record(key, add)
        for alias in key.keys:
            if alias != key.canonical:
                add(CacheRecord(alias, (((CANONICAL, canonical),),)))
    return list(records.values())


def _canonical_record(key: KnownKey, add: Callable[[CacheRecord], CacheRecord]) -> CacheRecord:
    outputs = key.outputs
    if outputs is None:
        return add(CacheRecord(key.canonical))
    if len(outputs) == 1:
        return add(CacheRecord(key.canonical, (), outputs))
    parts = [
        add(CacheRecord(_output_digest(key.canonical, index), (), (output,)))
        for index, output in enumerate(outputs)
    ]
    return add(CacheRecord(key.canonical, tuple(((OUTPUT, part),) for part in parts)))


def _output_digest(canonical: str, index: int) -> str:
    return "sha256:" + hashlib.sha256(f"{canonical}@{index}".encode()).hexdigest()


class CacheIndex:
    """Records by key, for lookups. Immutable, so safe from any thread."""

    __slots__ = ("_links", "_outputs")

    def __init__(self, records: Iterable[CacheRecord]) -> None:
        self._links: dict[str, list[str]] = {}
        self._outputs: dict[str, tuple[CacheResult, ...]] = {}
        for record in records:
            selectors = {selector for links in record.inputs for selector, _ in links}
            if selectors == {CANONICAL}:
                targets = self._links.setdefault(record.digest, [])
                targets += [source.digest for links in record.inputs for _, source in links]
            elif selectors == {OUTPUT}:
                parts = [links[0][1].results for links in record.inputs]
                if all(parts):
                    self._outputs[record.digest] = tuple(part[0] for part in parts)
            elif not record.inputs and record.results:
                self._outputs.setdefault(record.digest, record.results[:1])

    def canonical(self, key: str) -> str | None:
        """Return the canonical key that ``key`` means, one with a result if there is one."""
        targets = self._links.get(key, [])
        if key in self._outputs:
            targets = [key, *targets]
        return next(
            (target for target in targets if target in self._outputs), targets[0] if targets else None
        )

    def outputs(self, canonical: str) -> tuple[CacheResult, ...] | None:
        """Return the result of a canonical key."""
        return self._outputs.get(canonical)

    def __len__(self) -> int:
        """Return the number of results."""
        return len(self._outputs)
