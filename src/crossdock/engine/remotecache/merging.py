"""What a cache becomes when a build's own part is added to what is there: within bounds, and with layers that exist."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.engine.exporters.parallel import run_parallel
from crossdock.engine.remotecache.bounds import Bounds, bounded
from crossdock.engine.remotecache.config import CacheConfig, describe_layers, merge
from crossdock.engine.remotecache.times import today

if TYPE_CHECKING:
    from crossdock.cancel import CancelToken
    from crossdock.engine.remotecache.backend import Backend
    from crossdock.image.digest import Digest

__all__ = ["merged"]


def merged(
    backend: Backend,
    own: CacheConfig,
    there: CacheConfig,
    *,
    max_results: int,
    suspicious: bool,
    cancel: CancelToken,
) -> CacheConfig:
    """Return ``own`` with what is kept of ``there``; ``suspicious`` asks ``backend`` whether layers of others exist.

    Raises: what asking raises; the token's cause.
    """
    layers = {**there.layers, **own.layers}
    records = merge(own.records, there.records)
    limits = Bounds(max_results=max_results, today=today())
    kept = bounded(records, own.records, layers, limits)
    if suspicious:
        gone = _gone(backend, CacheConfig(kept, layers), own, cancel)
        if gone:
            layers = {digest: layer for digest, layer in layers.items() if digest not in gone}
            kept = bounded(kept, own.records, layers, limits)
    return CacheConfig(kept, layers)


def _gone(backend: Backend, config: CacheConfig, own: CacheConfig, cancel: CancelToken) -> set[Digest]:
    others = [digest for digest in describe_layers(config) if digest not in own.layers]

    def there(digest: Digest, cancel: CancelToken) -> bool:
        return backend.is_there(config.layers[digest], cancel)

    found = run_parallel(there, others, workers=backend.senders, cancel=cancel)
    return {digest for digest, here in zip(others, found, strict=True) if not here}
