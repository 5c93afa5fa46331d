"""Build cache records: which key leads to which result, and which layers the result is made of."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal, cast

from crossdock.engine.store import hooks
from crossdock.engine.store.ids import LayerId
from crossdock.engine.store.leases import LAYER, RESULT
from crossdock.errors import StoreError
from crossdock.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from crossdock.engine.store.db import Database
    from crossdock.engine.store.leases import Lease
    from crossdock.engine.store.locks import RemovalLock

__all__ = ["CachedResult", "RecordStore", "RecordType"]

#: BuildKit's names, as `du` and `prune` filter them
RecordType = Literal[
    "regular", "source.local", "source.git.checkout", "exec.cachemount", "frontend", "internal"
]

_MAX_VARIABLES = 500


class CachedResult(Record, kw_only=False):
    """A result found; times in nanoseconds since the epoch."""

    canonical: str
    #: per output its layers, bottom first; an output without layers is an empty file system
    outputs: tuple[tuple[LayerId, ...], ...]
    #: digest of the vertex that made it
    vertex: str
    #: name of the step as progress shows it
    description: str
    record_type: RecordType
    created_ns: int
    used_ns: int
    use_count: int


class RecordStore:
    """Cache records of one store. Safe from any thread and process."""

    __slots__ = ("_db", "_removal")

    def __init__(self, db: Database, removal: RemovalLock) -> None:
        self._db = db
        self._removal = removal

    def canonical(self, key: str) -> str | None:
        """Return the canonical key that ``key`` was linked to."""
        row = self._db.one("SELECT canonical FROM keys WHERE key=?", (key,))
        return None if row is None else cast("str", row[0])

    def canonicals(self, keys: Sequence[str]) -> dict[str, str]:
        """Return the canonical keys of those ``keys`` that have one."""
        found: dict[str, str] = {}
        for start in range(0, len(keys), _MAX_VARIABLES):
            part = keys[start : start + _MAX_VARIABLES]
            marks = ",".join("?" * len(part))
            found.update(self._db.all(f"SELECT key, canonical FROM keys WHERE key IN ({marks})", part))  # noqa: S608
        return found

    def keys_of(self, canonicals: Sequence[str]) -> dict[str, list[str]]:
        """Return the keys that lead to each of some canonical keys, themselves among them, sorted."""
        found: dict[str, list[str]] = {}
        for start in range(0, len(canonicals), _MAX_VARIABLES):
            part = canonicals[start : start + _MAX_VARIABLES]
            marks = ",".join("?" * len(part))
            sql = f"SELECT canonical, key FROM keys WHERE canonical IN ({marks}) ORDER BY 1, 2"  # noqa: S608
            for canonical, key in self._db.all(sql, part):
                found.setdefault(canonical, []).append(key)
        return found

    def link(self, key: str, canonical: str) -> None:
        """Lead ``key`` to ``canonical``; replaces an earlier link. Raises: StoreFull, StoreError."""
        self.link_many(((key, canonical),))

    def link_many(self, links: Iterable[tuple[str, str]]) -> None:
        """Like :meth:`link` for many, atomically."""
        with self._db.transaction() as tx:
            tx.executemany("INSERT OR REPLACE INTO keys(key, canonical) VALUES(?,?)", links)

    def result(self, canonical: str, lease: Lease) -> CachedResult | None:
        """Return the result of a canonical key, None when there is none; it and its layers then stay while the lease lives."""
        row = self._db.one(_SELECT, (canonical,))
        while row is not None:
            result = _result(row)
            names = [RESULT + canonical, *(LAYER + layer for out in result.outputs for layer in out)]
            if not lease.missing(names):
                return result
            lease.add(names)
            row = self._db.one(_SELECT, (canonical,))  # it may have gone, or been replaced, in between
        return None

    def save(
        self,
        canonical: str,
        outputs: Sequence[Sequence[LayerId]],
        *,
        lease: Lease,
        vertex: str = "",
        description: str = "",
        record_type: RecordType = "regular",
        keys: Iterable[str] = (),
    ) -> None:
        """Store a result, replacing an earlier one, and link ``keys`` (and itself) to it, atomically.

        Its layers must be committed or remote layers held by the lease.
        Raises: StoreError when a layer is unknown; StoreFull; then nothing is stored.
        """
        now = time.time_ns()
        layers = {layer for output in outputs for layer in output}
        hooks.point("store.record:before_commit")
        with self._removal.adding():
            lease.append([RESULT + canonical, *(LAYER + layer for layer in layers)])
            with self._db.transaction() as tx:
                for layer in layers:
                    if tx.execute("SELECT 1 FROM layers WHERE id=?", (layer,)).fetchone() is None:
                        summary = f"cannot store a result: the store has no layer {layer}"
                        raise StoreError(summary, retryable=True)
                tx.execute("DELETE FROM result_layers WHERE canonical=?", (canonical,))
                tx.execute(
                    "INSERT OR REPLACE INTO results(canonical, outputs, vertex, description, record_type, created_ns,"
                    " used_ns, uses) VALUES(?,?,?,?,?,?,?,0)",
                    (canonical, _encode(outputs), vertex, description, record_type, now, now),
                )
                tx.executemany(
                    "INSERT OR IGNORE INTO result_layers(layer_id, canonical, below) VALUES(?,?,?)",
                    _layer_rows(canonical, outputs),
                )
                tx.executemany(
                    "INSERT OR REPLACE INTO keys(key, canonical) VALUES(?,?)",
                    [(key, canonical) for key in dict.fromkeys((canonical, *keys))],
                )
        hooks.point("store.record:after_commit")

    def forget(self, canonical: str) -> None:
        """Drop a result and the keys that lead to it; its layers stay until collected. Unknown is fine."""
        with self._db.transaction() as tx:
            tx.execute("DELETE FROM results WHERE canonical=?", (canonical,))
            tx.execute("DELETE FROM result_layers WHERE canonical=?", (canonical,))
            tx.execute("DELETE FROM keys WHERE canonical=?", (canonical,))


_SELECT = (
    "SELECT canonical, outputs, vertex, description, record_type, created_ns, used_ns, uses FROM results"
    " WHERE canonical=?"
)


def _result(row: Sequence[str]) -> CachedResult:
    return CachedResult(row[0], decode_outputs(row[1]), *row[2:])  # type: ignore[arg-type]


def _encode(outputs: Sequence[Sequence[LayerId]]) -> str:
    """``/a,b/c``: a slash before each output, so that none, one empty and several differ."""
    return "".join("/" + ",".join(output) for output in outputs)


def decode_outputs(text: str) -> tuple[tuple[LayerId, ...], ...]:
    """Read what :meth:`RecordStore.save` wrote."""
    return tuple(
        tuple(LayerId(name) for name in output.split(",")) if output else () for output in text.split("/")[1:]
    )


def _layer_rows(canonical: str, outputs: Sequence[Sequence[LayerId]]) -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, str]] = []
    for output in outputs:
        below = ""
        for layer in output:
            rows.append((layer, canonical, below))
            below = layer
    return rows
