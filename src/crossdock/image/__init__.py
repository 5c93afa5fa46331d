"""Images as pure data: platforms, references, digests, descriptors, manifests, indexes, configs.

Not for: talking to registries (``crossdock.registry``) or storing blobs (``crossdock.engine.store``).
"""

from crossdock.image.config import Healthcheck, History, ImageConfig
from crossdock.image.descriptor import Descriptor
from crossdock.image.digest import ChainId, DiffId, Digest, chain_ids, digest_hex, parse_digest, sha256_digest
from crossdock.image.manifest import (
    Index,
    Manifest,
    make_index,
    make_manifest,
    parse_manifest,
    select_platform,
)
from crossdock.image.platform import Platform, local_platform, match_order, parse_platform, parse_platforms
from crossdock.image.reference import Reference, parse_reference

__all__ = [
    "ChainId",
    "Descriptor",
    "DiffId",
    "Digest",
    "Healthcheck",
    "History",
    "ImageConfig",
    "Index",
    "Manifest",
    "Platform",
    "Reference",
    "chain_ids",
    "digest_hex",
    "local_platform",
    "make_index",
    "make_manifest",
    "match_order",
    "parse_digest",
    "parse_manifest",
    "parse_platform",
    "parse_platforms",
    "parse_reference",
    "select_platform",
    "sha256_digest",
]
