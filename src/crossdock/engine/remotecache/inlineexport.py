"""The inline cache of each image of a build, made when its config is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.engine.remotecache.chain import KnownKey, to_records
from crossdock.engine.remotecache.config import CacheResult
from crossdock.engine.remotecache.inline import encode_inline
from crossdock.engine.remotecache.times import write_time

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from crossdock.engine.cache.refs import Ref
    from crossdock.engine.solver import Found, KeyedVertex
    from crossdock.engine.store import LayerId, Store
    from crossdock.image.digest import Digest
    from crossdock.image.platform import Platform

__all__ = ["InlineCaches"]


class InlineCaches:
    """Makes the inline caches of a build; ``keyed`` are the keys of its steps by platform."""

    def __init__(
        self,
        store: Store,
        lookup: Callable[[str], Found | None],
        keyed: Mapping[str, Sequence[KeyedVertex]],
        *,
        epoch_s: int | None,
    ) -> None:
        self._store = store
        self._lookup = lookup
        self._keyed = keyed
        self._epoch_s = epoch_s

    def __call__(self, platform: Platform, layers: Sequence[LayerId], blobs: Sequence[Digest], /) -> str:
        """Return the inline cache of an image with these layers, written as these blobs; ``""`` when there is nothing."""
        keyed = self._keyed.get(str(platform), ())
        places = dict(zip(layers, blobs, strict=True))
        aliases = self._store.records.keys_of([one.canonical for one in keyed])
        known = []
        for one in keyed:
            keys = sorted({*one.keys, *aliases.get(one.canonical, ())})
            found = self._lookup(one.canonical)
            results = found.results if found is not None and found.canonical == one.canonical else None
            refs: Sequence[Ref] | None = results  # type: ignore[assignment]  # the engine's results are refs
            if refs is not None and not all(set(ref.layers) <= places.keys() for ref in refs):
                refs = None
            outputs = None if refs is None else tuple(self._result(ref, places) for ref in refs)
            names = tuple(key for key in keys if key.startswith("sha256:"))
            known.append(KnownKey(one.canonical, names, outputs))
        return encode_inline(to_records(known), blobs)

    def _result(self, ref: Ref, places: Mapping[LayerId, Digest]) -> CacheResult:
        made = max((self._store.layers.get(layer).created_ns for layer in ref.layers), default=0)
        if self._epoch_s is not None:
            made = min(made, self._epoch_s * 1_000_000_000)
        return CacheResult(tuple(places[layer] for layer in ref.layers), write_time(made))
