"""What a build gave: digests, configs, and the exporter's response."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crossdock.record import Record, field

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from crossdock.image.config import ImageConfig
    from crossdock.image.platform import Platform
    from crossdock.progress.events import VertexWarning

__all__ = ["BuildResult", "BuiltImage", "BuiltIndex"]


class BuiltImage(Record):
    """The image of one platform."""

    platform: Platform
    config: ImageConfig
    #: digest of its manifest; ``""`` when no output made one
    digest: str = ""
    #: digest of its config, the image id
    config_digest: str = ""


class BuiltIndex(Record):
    """The index over all platforms."""

    digest: str
    media_type: str = ""
    size: int = 0


class BuildResult(Record):
    """Outcome of a build."""

    #: by platform, e.g. ``linux/arm64``
    images: Mapping[str, BuiltImage] = field(default_factory=dict)
    #: ``None`` for a single platform, or when no image was made
    index: BuiltIndex | None = None
    #: BuildKit's exporter response, e.g. ``containerimage.digest``; the content of ``--metadata-file``
    metadata: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[VertexWarning, ...] = ()

    @property
    def digest(self) -> str:
        """Digest of what a tag points to: the index, or the only manifest; ``""`` when no image was made."""
        return str(self.metadata.get("containerimage.digest", ""))

    @property
    def explanation(self) -> Sequence[Mapping[str, Any]]:
        """Why steps were not cached, for a build with ``explain``: ``step``, ``reasons``, ``files``, ``filesChanged``."""
        found: Sequence[Mapping[str, Any]] = self.metadata.get("crossdock.explain", ())
        return found

    @property
    def image_id(self) -> str:
        """Digest of the config, else :attr:`digest`: what ``--iidfile`` gets."""
        return str(self.metadata.get("containerimage.config.digest") or self.digest)
