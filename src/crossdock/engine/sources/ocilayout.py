"""Images in OCI layouts as build sources: ``oci-layout://NAME@DIGEST``.

A layout is a function that opens blobs, which the caller gives under a name. Layers whose content the store has already are not
read again; the others are copied, verified, when a step or an output is built on the image.

Spec: moby/buildkit ``source/containerimage`` (OCI layouts); image-spec 1.1 image-layout.md; attributes ``oci.store``,
``oci.layerlimit`` (``oci.session`` names the client, which is the caller here).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, BinaryIO

from crossdock.engine.cache.refs import Ref
from crossdock.engine.ops.base import BaseOp
from crossdock.engine.ops.keying import platform_fields
from crossdock.engine.solver import CacheMap, KeyHasher
from crossdock.engine.sources.image import ImageFinder, has_bytes
from crossdock.engine.sources.onefile import keep_blob
from crossdock.engine.store.locks import OncePerKey
from crossdock.errors import ContextError, DigestMismatch, SolveError, UsageError
from crossdock.image.descriptor import Descriptor
from crossdock.image.digest import parse_digest
from crossdock.image.reference import parse_reference
from crossdock.llb.ops import SourceOp

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from crossdock.cancel import CancelToken
    from crossdock.engine.ops.env import OpEnv
    from crossdock.engine.solver import OpContext, Result
    from crossdock.engine.sources.image import ResolvedImage
    from crossdock.engine.store import LayerId, Lease, Store
    from crossdock.image.digest import Digest
    from crossdock.image.platform import Platform
    from crossdock.image.reference import Reference
    from crossdock.llb.graph import Node

    #: opens a blob for one pass; what is read is verified here
    OpenBlob = Callable[[Digest], BinaryIO]

__all__ = ["DirectoryLayout", "LayoutSolverOp", "resolve_layout"]

_SCHEME = "oci-layout://"
#: manifests, indexes and configs
_MAX_DOCUMENT_BYTES = 8 << 20
_KNOWN = frozenset(["oci.store", "oci.session", "oci.layerlimit"])


class DirectoryLayout:
    """A layout in a directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def open(self, digest: Digest, /) -> BinaryIO:
        """Open a blob."""
        path = self._root / "blobs" / digest.replace(":", "/")
        try:
            return path.open("rb")
        except OSError as exc:
            summary = f"the OCI layout {self._root} has no blob {digest}: {exc.strerror}"
            raise ContextError(summary, hint="the layout is incomplete: write it anew") from exc


def resolve_layout(
    ref: Reference,
    open_blob: OpenBlob,
    *,
    platform: Platform,
    store: Store,
    lease: Lease,
    cancel: CancelToken,
) -> ResolvedImage:
    """Find the image of ``platform`` below the digest of ``ref``.

    Raises: PlatformNotFound listing what there is; ContextError for a missing blob; DigestMismatch; LayerError.
    """
    if ref.digest is None:
        summary = f"the OCI layout {ref} is used without a digest"
        raise UsageError(summary)
    client = _Documents(open_blob)
    size = len(client.read(ref.digest))
    finder = ImageFinder(store, client, OncePerKey(), ref, ref.repository, lease, cancel)
    return finder.find(Descriptor("", ref.digest, size), platform)._replace(repository="")


class _Documents:
    """Gives the finder a layout's documents as a registry client would."""

    def __init__(self, open_blob: OpenBlob) -> None:
        self._open = open_blob

    def scoped(self, *, cancel: CancelToken) -> _Documents:
        cancel.check()
        return self

    def fetch_manifest(self, ref: Reference, /) -> tuple[Descriptor, bytes]:
        if ref.digest is None:
            summary = f"the OCI layout {ref} is used without a digest"
            raise UsageError(summary)
        raw = self.read(ref.digest)
        return Descriptor("", ref.digest, len(raw)), raw

    def fetch_blob(self, _ref: Reference, blob: Descriptor, /) -> bytes:
        return self.read(blob.digest)

    def read(self, digest: Digest) -> bytes:
        """Read a document. Raises: ContextError; DigestMismatch."""
        with self._open(digest) as file:
            raw = file.read(_MAX_DOCUMENT_BYTES + 1)
        if len(raw) > _MAX_DOCUMENT_BYTES:
            summary = f"blob {digest} of the OCI layout is larger than 8 MiB: no manifest or config"
            raise ContextError(summary)
        algorithm = digest.partition(":")[0]
        if f"{algorithm}:{hashlib.new(algorithm, raw).hexdigest()}" != digest:
            summary = f"blob {digest} of the OCI layout has other content"
            raise DigestMismatch(summary, hint="the layout is damaged: write it anew")
        return raw


class LayoutSolverOp(BaseOp):
    """An image of a layout."""

    __slots__ = ("_attrs", "_limit", "_ref")

    def __init__(self, node: Node, env: OpEnv) -> None:
        super().__init__(node, env)
        if not isinstance(node.op, SourceOp) or not node.op.identifier.startswith(_SCHEME):
            summary = "invalid OCI layout source"
            raise SolveError(summary, vertex=self.vertex)
        self._attrs = node.op.attrs
        self._ref = parse_reference(node.op.identifier.removeprefix(_SCHEME))
        limit = self._attrs.get("oci.layerlimit", "")
        unknown = sorted(set(self._attrs) - _KNOWN)
        if unknown or (limit and not limit.isdecimal()) or self._ref.digest is None:
            summary = (
                f"invalid OCI layout source {node.op.identifier}: {unknown or limit or 'it has no digest'}"
            )
            raise SolveError(summary, vertex=self.vertex)
        self._limit = int(limit) if limit else None

    @property
    def platform(self) -> Platform:
        """Which of an index's images is meant."""
        return self.node.platform or self.env.platform

    def cache_map(self, ctx: OpContext) -> CacheMap:  # noqa: ARG002
        """Key: that of an image of the same digest from a registry."""
        hasher = KeyHasher("image").text("digest", parse_digest(self._ref.digest or ""))
        platform_fields(hasher, self.platform)
        hasher.number("layer limit", -1 if self._limit is None else self._limit)
        return CacheMap(hasher.finish())

    def execute(self, inputs: Sequence[Result], ctx: OpContext) -> Sequence[Result]:  # noqa: ARG002
        """Note the image's layers, those with unknown content copied."""
        name = self._attrs.get("oci.store") or self._ref.repository
        open_blob = self.env.layouts.get(name)
        if open_blob is None:
            summary = f"no OCI layout was given under the name {name}"
            raise SolveError(summary, vertex=self.vertex, vertex_name=self.node.name, source=self.node.source)
        image = resolve_layout(
            self._ref,
            open_blob,
            platform=self.platform,
            store=self.env.store,
            lease=self.env.lease,
            cancel=ctx.cancel,
        )
        pairs = list(zip(image.diff_ids, image.manifest.layers, strict=True))[: self._limit]
        layers: list[LayerId] = []
        for diff_id, blob in pairs:
            layer_id = self.env.store.layers.find(diff_id, self.env.lease)
            if layer_id is None or not has_bytes(self.env.store, layer_id, self.env.lease):
                self._copy(open_blob, blob, ctx)
                layer_id = self.env.store.layers.add_remote(
                    self.env.lease, diff_id=diff_id, blob=blob, description=f"from the OCI layout {name}"
                )
            layers.append(layer_id)
        return [Ref(tuple(layers))]

    def _copy(self, open_blob: OpenBlob, blob: Descriptor, ctx: OpContext) -> None:
        content = self.env.store.content
        if content.has(blob.digest, self.env.lease):
            return
        with open_blob(blob.digest) as source:
            keep_blob(self.env, blob, source, self.vertex, ctx)
