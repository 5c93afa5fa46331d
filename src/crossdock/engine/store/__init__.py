"""Store: content, layer directories, metadata, leases and garbage collection."""

from crossdock.engine.store.content import BlobWriter, ContentStore
from crossdock.engine.store.ids import LayerId
from crossdock.engine.store.images import ImageStore, StoredImage
from crossdock.engine.store.layers import LayerBlob, LayerInfo, LayerStore, NewLayer
from crossdock.engine.store.layout import default_root
from crossdock.engine.store.leases import Lease
from crossdock.engine.store.mounts import CacheMounts, Sharing
from crossdock.engine.store.records import CachedResult, RecordStore, RecordType
from crossdock.engine.store.statcache import StatCache, StatTable
from crossdock.engine.store.store import Store

__all__ = [
    "BlobWriter",
    "CacheMounts",
    "CachedResult",
    "ContentStore",
    "ImageStore",
    "LayerBlob",
    "LayerId",
    "LayerInfo",
    "LayerStore",
    "Lease",
    "NewLayer",
    "RecordStore",
    "RecordType",
    "Sharing",
    "StatCache",
    "StatTable",
    "Store",
    "StoredImage",
    "default_root",
]
