"""Single blobs of registries and OCI layouts as files: ``docker-image+blob://`` and ``oci-layout+blob://``.

Spec: moby/buildkit ``source/containerblob``; attributes ``http.filename``, ``http.perm``, ``http.uid``, ``http.gid``,
``image.recordtype``, ``oci.session``, ``oci.store``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, cast

from crossdock.engine.cache.refs import Ref
from crossdock.engine.ops.base import BaseOp
from crossdock.engine.solver import CacheMap, KeyHasher
from crossdock.engine.sources.onefile import FileShape, file_layer, keep_blob, read_shape
from crossdock.errors import SolveError
from crossdock.image.descriptor import Descriptor
from crossdock.image.reference import parse_reference

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from crossdock.engine.ops.env import OpEnv
    from crossdock.engine.solver import OpContext, Result
    from crossdock.engine.sources.image import ImageSource
    from crossdock.image.digest import Digest
    from crossdock.llb.graph import Node
    from crossdock.llb.ops import SourceOp

__all__ = ["SCHEMES", "BlobSolverOp"]

SCHEMES = ("docker-image+blob", "oci-layout+blob")
_SHAPE = frozenset(["http.filename", "http.perm", "http.uid", "http.gid", "image.recordtype"])
_STORE = frozenset(["oci.session", "oci.store"])


class BlobSolverOp(BaseOp):
    """One blob, a file of one's own name. Raises: SolveError for a malformed source."""

    __slots__ = ("_digest", "_images", "_ref", "_shape", "_store")

    def __init__(self, node: Node, env: OpEnv, images: Callable[[], ImageSource]) -> None:
        super().__init__(node, env)
        op = cast("SourceOp", node.op)
        scheme, _, rest = op.identifier.partition("://")
        self._ref = parse_reference(rest)
        layout = scheme == "oci-layout+blob"
        unknown = sorted(set(op.attrs) - _SHAPE - (_STORE if layout else frozenset()))
        if unknown or self._ref.digest is None:
            what = f"unknown attribute {unknown[0]}" if unknown else "it has no digest"
            msg = f"invalid source {op.identifier}: {what}"
            raise self._error(msg)
        self._digest: Digest = self._ref.digest
        self._store = op.attrs.get("oci.store", "") if layout else ""
        if layout and not self._store:
            msg = "oci-layout blob source requires store id"
            raise self._error(msg)
        try:
            self._shape: FileShape = read_shape(op.attrs, default=self._digest.partition(":")[2])
        except ValueError as exc:
            msg = f"invalid source {op.identifier}: {exc}"
            raise self._error(msg) from exc
        self._images = images

    def cache_map(self, ctx: OpContext) -> CacheMap:  # noqa: ARG002
        """Key: the digest, and how the file is made of it."""
        self.env.pins[self.vertex] = self._digest
        hasher = KeyHasher("blob").text("digest", self._digest)
        self._shape.add_to(hasher)
        return CacheMap(hasher.finish())

    def execute(self, inputs: Sequence[Result], ctx: OpContext) -> Sequence[Result]:  # noqa: ARG002
        """Fetch the blob and put it into a layer."""
        env = self.env
        if not env.store.content.has(self._digest, env.lease):
            size, opened = self._open(ctx)
            blob = Descriptor("", self._digest, size)
            with opened as stream:
                keep_blob(env, blob, stream, self.vertex, ctx)
        description = f"blob {self._ref.repository}@{self._digest}"
        layer = file_layer(env, self._digest, self._shape, modified=0, description=description, ctx=ctx)
        return [Ref((layer,))]

    def _open(self, ctx: OpContext) -> tuple[int, BinaryIO]:
        if self._store:
            open_blob = self.env.layouts.get(self._store)
            if open_blob is None:
                msg = f"no OCI layout was given under the name {self._store}"
                raise self._error(msg)
            return -1, open_blob(self._digest)
        found = self._images().open_blob(self._ref, self._digest, ctx.cancel)
        if found is None:
            msg = f"{self._ref.repository} has no blob {self._digest}"
            raise self._error(msg)
        return found

    def _error(self, text: str) -> SolveError:
        return SolveError(text, vertex=self.vertex, vertex_name=self.node.name, source=self.node.source)
