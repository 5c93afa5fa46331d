"""Images as vertices: ``docker-image://`` sources.

Spec: moby/buildkit ``source/containerimage``; attributes ``image.resolvemode``, ``image.layerlimit``, ``image.checksum``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.engine.cache.refs import Ref
from crossdock.engine.ops.base import BaseOp
from crossdock.engine.ops.keying import platform_fields
from crossdock.engine.solver import CacheMap, KeyHasher
from crossdock.errors import SolveError
from crossdock.image.reference import parse_reference
from crossdock.llb.ops import SourceOp

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from crossdock.engine.ops.env import OpEnv
    from crossdock.engine.solver import OpContext, Result
    from crossdock.engine.sources.image import ImageSource, ResolvedImage
    from crossdock.image.platform import Platform
    from crossdock.llb.graph import Node

__all__ = ["ImageSolverOp"]

_SCHEME = "docker-image://"


class ImageSolverOp(BaseOp):
    """An image: layers that are noted, not fetched."""

    __slots__ = ("_attrs", "_images", "_limit", "_ref")

    def __init__(self, node: Node, env: OpEnv, images: Callable[[], ImageSource]) -> None:
        super().__init__(node, env)
        if not isinstance(node.op, SourceOp) or not node.op.identifier.startswith(_SCHEME):
            summary = "invalid image source"
            raise SolveError(summary, vertex=self.vertex)
        self._images = images
        self._attrs = node.op.attrs
        self._ref = parse_reference(node.op.identifier.removeprefix(_SCHEME))
        limit = self._attrs.get("image.layerlimit", "")
        if limit and not limit.isdecimal():
            summary = f"invalid image.layerlimit {limit!r}"
            raise SolveError(summary, vertex=self.vertex)
        self._limit = int(limit) if limit else None

    @property
    def platform(self) -> Platform:
        """Which of an index's images is meant."""
        return self.node.platform or self.env.platform

    def cache_map(self, ctx: OpContext) -> CacheMap:
        """Key: the digest the reference means, and the platform. A pinned reference asks nobody."""
        pinned = self._ref.digest
        digest = pinned if pinned is not None else self._resolve(ctx).digest
        wanted = self._attrs.get("image.checksum", "")
        if wanted and wanted != digest:
            summary = f"{self._ref} is {digest}, not {wanted}"
            raise SolveError(summary, vertex=self.vertex, vertex_name=self.node.name, source=self.node.source)
        self.env.pins[self.vertex] = digest
        hasher = KeyHasher("image").text("digest", digest)
        platform_fields(hasher, self.platform)
        hasher.number("layer limit", -1 if self._limit is None else self._limit)
        return CacheMap(hasher.finish())

    def execute(self, inputs: Sequence[Result], ctx: OpContext) -> Sequence[Result]:  # noqa: ARG002
        """Find the image and note its layers."""
        layers = self._images().add_layers(self._resolve(ctx), lease=self.env.lease)
        return [Ref(layers if self._limit is None else layers[: self._limit])]

    def _resolve(self, ctx: OpContext) -> ResolvedImage:
        mode = self._attrs.get("image.resolvemode", "default")
        return self._images().resolve(
            self._ref, platform=self.platform, mode=mode, lease=self.env.lease, cancel=ctx.cancel
        )
