"""BuildKit's cache config: records that link to each other, and the layer chains they lead to.

Read into records that hold their inputs themselves; written with indexes again, sorted, so that equal caches have equal
bytes. Any cache config is understood, also one of BuildKit's own; what its digests mean is for ``chain`` to say.

Spec: moby/buildkit ``cache/remotecache/v1/types``; ``application/vnd.buildkit.cacheconfig.v0``.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, TypeAlias

from crossdock.errors import CacheError, CrossdockError
from crossdock.image import gojson
from crossdock.image.descriptor import Descriptor
from crossdock.image.digest import Digest, parse_digest
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "CREATED",
    "MEDIA_TYPE",
    "NO_TIME",
    "UNCOMPRESSED",
    "CacheConfig",
    "CacheRecord",
    "CacheResult",
    "describe_layers",
    "dump",
    "dump_records",
    "merge",
    "parse",
]

MEDIA_TYPE = "application/vnd.buildkit.cacheconfig.v0"
#: annotations of a layer's descriptor: its diff id, and when it was made
UNCOMPRESSED = "containerd.io/uncompressed"
CREATED = "buildkit/createdat"
#: Go's zero time
NO_TIME = "0001-01-01T00:00:00Z"


class CacheResult(NamedTuple):
    """A file system: blobs of its layers, bottom first. Times are RFC 3339."""

    blobs: tuple[Digest, ...]
    created: str = NO_TIME
    #: day of the last build that had it (``2026-01-31``), ``""`` when unknown; an addition of ours that BuildKit skips
    used: str = ""


_Links: TypeAlias = "tuple[tuple[tuple[str, CacheRecord], ...], ...]"


class CacheRecord:
    """A cache key: its own digest, and per input the records (with selectors) it may follow from. Immutable."""

    __slots__ = ("digest", "identity", "inputs", "results")

    def __init__(self, digest: str, inputs: _Links = (), results: tuple[CacheResult, ...] = ()) -> None:
        self.digest = digest
        self.inputs = inputs
        self.results = results
        #: equal for records that mean the same key; results do not count
        self.identity = _identity(digest, inputs)

    def with_results(self, results: tuple[CacheResult, ...]) -> CacheRecord:
        """Return the same key with other results."""
        return CacheRecord(self.digest, self.inputs, results)


class CacheConfig(NamedTuple):
    """A whole cache: its records, inputs before users, and the descriptors of its layers by blob digest."""

    records: Sequence[CacheRecord] = ()
    #: with the annotations :data:`UNCOMPRESSED` and :data:`CREATED`
    layers: Mapping[Digest, Descriptor] = {}


def _identity(digest: str, inputs: _Links) -> bytes:
    hasher = hashlib.sha256(f"{len(digest)}:{digest}".encode())
    for links in inputs:
        hasher.update(b"|%d" % len(links))
        for selector, record in sorted((s, r.identity) for s, r in links):
            hasher.update(b"%d:" % len(selector) + selector.encode("utf-8", "surrogateescape") + record)
    return hasher.digest()


# --- reading --------------------------------------------------------------------------------------------------


def parse(
    raw: bytes,
    where: str,
    *,
    layers: Mapping[Digest, Descriptor] | None = None,
    chain: Sequence[Digest] | None = None,
) -> CacheConfig:
    """Read a cache config.

    ``layers`` are the descriptors of the manifest that came with it; without them the config's own annotations tell (S3 and
    its like). ``chain``: ``raw`` is a bare list of records about the image with these layers (an inline cache). Results
    with a layer that is not described are left out.
    Raises: CacheError naming ``where`` when it is malformed.
    """
    try:
        data = json.loads(raw)
        if chain is not None:
            parents = [{"blob": blob, "parent": i - 1} for i, blob in enumerate(chain)]
            data = {"records": data, "layers": parents}
        if not isinstance(data, dict):
            raise TypeError("not an object")  # noqa: EM101 -- becomes the text of the error below
        if not {"records", "layers"} & data.keys():
            raise ValueError("it has neither records nor layers")  # noqa: EM101
        described = dict(layers) if layers is not None else _own_layers(data)
        return CacheConfig(_Reader(data, described).records(), described)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, CrossdockError) as exc:
        summary = f"{where}: not a build cache: {exc}"
        raise CacheError(summary, hint="the cache is damaged, or was made by something else") from exc


def _own_layers(data: dict[str, Any]) -> dict[Digest, Descriptor]:
    found: dict[Digest, Descriptor] = {}
    for layer in data.get("layers") or ():
        notes = layer.get("annotations")
        if not notes or not notes.get("diffID"):
            continue
        annotations = {UNCOMPRESSED: str(parse_digest(notes["diffID"]))}
        created = str(notes.get("createdAt") or "")
        if created and created != NO_TIME:
            annotations[CREATED] = created
        fields = {"mediaType": notes.get("mediaType", ""), "digest": layer["blob"], "size": notes.get("size")}
        found[parse_digest(layer["blob"])] = Descriptor.from_json(
            {**fields, "annotations": annotations}, "layer"
        )
    return found


class _Reader:
    """Reads records by index, each once; a record that leads to itself is refused."""

    def __init__(self, data: dict[str, Any], described: Mapping[Digest, Descriptor]) -> None:
        self._raw: list[dict[str, Any]] = list(data.get("records") or ())
        self._layers: list[dict[str, Any]] = list(data.get("layers") or ())
        self._described = described
        self._done: dict[int, CacheRecord] = {}
        self._chains: dict[int, tuple[Digest, ...] | None] = {}

    def records(self) -> list[CacheRecord]:
        """Return all records, inputs before users."""
        for index in range(len(self._raw)):
            self._read(index)
        return list(self._done.values())

    def _read(self, first: int) -> None:
        stack = [first]
        on_way: set[int] = set()
        while stack:
            index = stack[-1]
            if index in self._done:
                stack.pop()
                continue
            raw = self._raw[_index(index, self._raw)]
            links = raw.get("inputs") or ()
            missing = [n for n in (link["link"] for group in links for link in group) if n not in self._done]
            if missing:
                if index in on_way:
                    raise ValueError(f"record {index} leads to itself")  # noqa: EM102
                on_way.add(index)
                stack.extend(_index(n, self._raw) for n in missing)
                continue
            stack.pop()
            on_way.discard(index)
            inputs = tuple(
                tuple((str(link.get("selector") or ""), self._done[link["link"]]) for link in group)
                for group in links
            )
            digest = raw.get("digest") or ""
            if not isinstance(digest, str):
                raise TypeError(f"invalid digest {digest!r}")  # noqa: EM102
            self._done[index] = CacheRecord(digest, inputs, self._results(raw))

    def _results(self, raw: dict[str, Any]) -> tuple[CacheResult, ...]:
        found: list[CacheResult] = []
        for item in raw.get("layers") or ():
            self._add(found, self._chain(item["layer"]), item)
        for item in raw.get("chains") or ():
            blobs = [self._blob(index) for index in item.get("layers") or ()]
            known = tuple(blob for blob in blobs if blob is not None)
            self._add(found, known if len(known) == len(blobs) else None, item)
        return tuple(found)

    @staticmethod
    def _add(found: list[CacheResult], blobs: tuple[Digest, ...] | None, item: dict[str, Any]) -> None:
        if blobs is not None:
            created = str(item.get("createdAt") or NO_TIME)
            found.append(CacheResult(blobs, created, str(item.get("usedAt") or "")))

    def _chain(self, top: int) -> tuple[Digest, ...] | None:
        """Return the blobs of a layer and its parents, bottom first; ``None`` when one is not described."""
        todo: list[int] = []
        at = top
        below: tuple[Digest, ...] | None = ()
        while at != -1:
            if at in self._chains:
                below = self._chains[at]
                break
            if len(todo) > len(self._layers):
                raise ValueError(f"layer {top} leads to itself")  # noqa: EM102
            todo.append(_index(at, self._layers))
            at = self._layers[at].get("parent", 0)
        for index in reversed(todo):
            blob = self._blob(index)
            below = None if below is None or blob is None else (*below, blob)
            self._chains[index] = below
        return below

    def _blob(self, index: int) -> Digest | None:
        blob = parse_digest(self._layers[_index(index, self._layers)]["blob"])
        return blob if blob in self._described else None


def _index(value: Any, of: Sequence[object]) -> int:
    if not isinstance(value, int) or not 0 <= value < len(of):
        raise ValueError(f"invalid index {value!r}")  # noqa: EM102
    return value


# --- merging --------------------------------------------------------------------------------------------------


def merge(*parts: Iterable[CacheRecord]) -> list[CacheRecord]:
    """Return the records of all parts, equal keys once; inputs before users.

    Of several results of a key the one stays that was last used, of those the first.
    """
    best: dict[bytes, CacheRecord] = {}
    for records in parts:
        for record in records:
            known = best.get(record.identity)
            if known is None:
                best[record.identity] = record.with_results(_newest(record.results))
            elif record.results:
                best[record.identity] = known.with_results(_newest((*known.results, *record.results)))
    return list(best.values())


def _newest(results: tuple[CacheResult, ...]) -> tuple[CacheResult, ...]:
    if len(results) < 2:
        return results
    day = max(result.used for result in results)
    return (next(result for result in results if result.used == day),)


# --- writing --------------------------------------------------------------------------------------------------


def describe_layers(config: CacheConfig) -> list[Digest]:
    """Return the blobs that the results of a config use, sorted."""
    return sorted({blob for record in config.records for result in record.results for blob in result.blobs})


def dump(config: CacheConfig, *, annotated: bool) -> bytes:
    """Write a cache config; ``annotated`` puts the descriptors of layers in it, where no manifest has them.

    A result with a layer that is not among ``config.layers`` is left out.
    """
    chains = _Chains(config)
    records = _sorted_records(config.records)
    out: dict[str, object] = {}
    layers = [
        {"blob": chain[-1], "parent": chains.index[chain[:-1]] if chain[1:] else -1}
        for chain in chains.sorted
    ]
    if annotated:
        for entry, chain in zip(layers, chains.sorted, strict=True):
            entry["annotations"] = _annotations(config.layers[chain[-1]])
    if layers:
        out["layers"] = layers
    if records:
        out["records"] = _record_list(records, chains.entries)
    return gojson.dumps(out)


def dump_records(records: Iterable[CacheRecord], chain: Sequence[Digest]) -> bytes:
    """Write an inline cache: the records alone, results as positions in ``chain``, the blobs of an image.

    Results with other layers are left out.
    """
    places = {blob: index for index, blob in reversed(list(enumerate(chain)))}

    def entries(results: Iterable[CacheResult]) -> dict[str, object]:
        whole, pieces = [], []
        for result in results:
            if any(blob not in places for blob in result.blobs):
                continue
            if result.blobs and result.blobs == tuple(chain[: len(result.blobs)]):
                whole.append({"layer": len(result.blobs) - 1, "createdAt": result.created})
            else:
                pieces.append({"layers": [places[b] for b in result.blobs], "createdAt": result.created})
        return {k: v for k, v in (("layers", whole), ("chains", pieces)) if v}

    return gojson.dumps(_record_list(_sorted_records(records), entries))


class _Chains:
    """The layers of a config as a tree: each chain's top once, with its parent."""

    def __init__(self, config: CacheConfig) -> None:
        self._known = config.layers
        found: set[tuple[Digest, ...]] = set()
        for record in config.records:
            for result in record.results:
                if self._whole(result):
                    found.update(result.blobs[:end] for end in range(1, len(result.blobs) + 1))
        self.sorted = sorted(found, key=lambda chain: (chain[-1], chain))
        self.index = {chain: number for number, chain in enumerate(self.sorted)}

    def _whole(self, result: CacheResult) -> bool:
        return all(blob in self._known for blob in result.blobs)

    def entries(self, results: Iterable[CacheResult]) -> dict[str, object]:
        whole: list[dict[str, object]] = []
        pieces: list[dict[str, object]] = []
        for result in results:
            if not self._whole(result):
                continue
            times = {"createdAt": result.created, **({"usedAt": result.used} if result.used else {})}
            if result.blobs:
                whole.append({"layer": self.index[result.blobs], **times})
            else:
                pieces.append({"layers": [], **times})
        return {k: v for k, v in (("layers", whole), ("chains", pieces)) if v}


def _annotations(layer: Descriptor) -> dict[str, object]:
    created = layer.annotations.get(CREATED, NO_TIME)
    return {
        "mediaType": layer.media_type,
        "diffID": layer.annotations[UNCOMPRESSED],
        "size": layer.size,
        "createdAt": created,
    }


def _sorted_records(records: Iterable[CacheRecord]) -> list[CacheRecord]:
    return sorted(records, key=lambda record: (record.digest, record.identity))


def _record_list(records: Sequence[CacheRecord], entries: Any) -> list[dict[str, object]]:
    index = {record.identity: number for number, record in enumerate(records)}
    return [
        {
            **entries(record.results),
            "digest": record.digest,
            **({"inputs": _inputs(record, index)} if record.inputs else {}),
        }
        for record in records
    ]


def _inputs(record: CacheRecord, index: Mapping[bytes, int]) -> list[list[dict[str, object]]]:
    return [
        [
            {**({"selector": selector} if selector else {}), "link": index[source.identity]}
            for selector, source in sorted(links, key=lambda link: (index[link[1].identity], link[0]))
        ]
        for links in record.inputs
    ]
