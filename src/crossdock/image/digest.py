"""Digests: distinct types made by one validating constructor.

Spec: image-spec 1.1, descriptor.md "Digests".
"""

from __future__ import annotations

import re
from typing import NewType

from crossdock.errors import DigestMismatch
from crossdock.hashing import sha256

__all__ = ["ChainId", "DiffId", "Digest", "chain_ids", "digest_hex", "parse_digest", "sha256_digest"]

#: digest of bytes as stored or sent (compressed, for a layer)
Digest = NewType("Digest", str)
#: digest of a layer's uncompressed tar
DiffId = NewType("DiffId", str)
#: digest of a stack of layers, image-spec config.md "Layer ChainID"
ChainId = NewType("ChainId", str)

_SHA256 = re.compile(r"sha256:[0-9a-f]{64}\Z")
_OTHER = r"sha(384:[0-9a-f]{96}|512:[0-9a-f]{128})\Z"


def parse_digest(text: str) -> Digest:
    """Validate ``algorithm:hex``.

    Raises: DigestMismatch when it is not a sha256, sha384 or sha512 digest.
    """
    if _SHA256.match(text) or re.match(_OTHER, text):
        return Digest(text)
    summary = f"invalid digest: {text[:100]!r}"
    raise DigestMismatch(summary, hint="a digest is sha256: and 64 hexadecimal digits")


def sha256_digest(data: bytes) -> Digest:
    """Digest of ``data``."""
    return Digest("sha256:" + sha256(data).hexdigest())


def digest_hex(digest: str) -> str:
    """Return the part after the algorithm."""
    return digest.partition(":")[2]


def chain_ids(diff_ids: tuple[DiffId, ...]) -> tuple[ChainId, ...]:
    """Return the chain id at each level of a stack, bottom first."""
    chain: list[ChainId] = []
    for diff_id in diff_ids:
        if not chain:
            chain.append(ChainId(diff_id))
        else:
            text = f"{chain[-1]} {diff_id}".encode()
            chain.append(ChainId("sha256:" + sha256(text).hexdigest()))
    return tuple(chain)
