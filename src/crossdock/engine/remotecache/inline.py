"""Inline caches: records in the config of an image, about the layers of that image.

Spec: moby/buildkit ``cache/remotecache/inline``, ``cache/remotecache/import.go`` (importInlineCache).
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import TYPE_CHECKING, Any

from crossdock.engine.remotecache import config as cacheconfig
from crossdock.engine.remotecache.config import CREATED, UNCOMPRESSED, CacheConfig
from crossdock.errors import CacheError
from crossdock.image.descriptor import Descriptor
from crossdock.image.digest import Digest, parse_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.engine.remotecache.config import CacheRecord
    from crossdock.image.manifest import Manifest

__all__ = ["CONFIG_KEY", "encode_inline", "parse_inline"]

#: of the image config
CONFIG_KEY = "moby.buildkit.cache.v0"


def encode_inline(records: Sequence[CacheRecord], blobs: Sequence[Digest]) -> str:
    """Return what goes under :data:`CONFIG_KEY` of an image with these layers, bottom first; ``""`` for nothing."""
    kept = [
        r for r in records if r.inputs or not r.results or any(set(x.blobs) <= set(blobs) for x in r.results)
    ]
    if not any(record.results for record in kept):
        return ""
    return base64.b64encode(cacheconfig.dump_records(kept, blobs)).decode("ascii")


def parse_inline(manifest: Manifest, config_raw: bytes, where: str) -> CacheConfig | None:
    """Read the inline cache of one image; ``None`` when it has none. Raises: CacheError when it is malformed."""
    try:
        image: dict[str, Any] = json.loads(config_raw)
        text = image.get(CONFIG_KEY)
        if not text:
            return None
        records = base64.b64decode(text, validate=True)
        diff_ids = [parse_digest(d) for d in image["rootfs"]["diff_ids"]]
        times = [
            str(entry.get("created") or "")
            for entry in image.get("history") or ()
            if not entry.get("empty_layer")
        ]
    except (ValueError, TypeError, KeyError, AttributeError, binascii.Error) as exc:
        summary = f"{where}: its inline cache is malformed: {exc}"
        raise CacheError(summary) from exc
    if len(diff_ids) != len(manifest.layers):
        summary = f"{where}: {len(manifest.layers)} layers, but its config lists {len(diff_ids)} diff ids"
        raise CacheError(summary)
    layers: dict[Digest, Descriptor] = {}
    for number, (layer, diff_id) in enumerate(zip(manifest.layers, diff_ids, strict=True)):
        annotations = {UNCOMPRESSED: str(diff_id)}
        if number < len(times) and times[number]:
            annotations[CREATED] = times[number]
        layers[layer.digest] = Descriptor(layer.media_type, layer.digest, layer.size, annotations)
    return cacheconfig.parse(records, where, layers=layers, chain=[layer.digest for layer in manifest.layers])
