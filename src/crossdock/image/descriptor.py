"""Descriptors: media type, digest and size of a blob.

Spec: image-spec 1.1, descriptor.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crossdock.errors import LayerError
from crossdock.image.digest import Digest, parse_digest
from crossdock.image.platform import Platform
from crossdock.record import Record, field

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Descriptor"]


class Descriptor(Record, kw_only=False):
    """A reference to a blob; ``size`` in bytes."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    platform: Platform | None = None
    urls: tuple[str, ...] = ()
    artifact_type: str = ""
    data: str = ""

    def to_json(self) -> dict[str, object]:
        """Return the JSON object, in Go's field order."""
        out: dict[str, object] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.urls:
            out["urls"] = list(self.urls)
        if self.annotations:
            out["annotations"] = dict(sorted(self.annotations.items()))
        if self.data:
            out["data"] = self.data
        if self.platform is not None:
            out["platform"] = self.platform.to_json()
        if self.artifact_type:
            out["artifactType"] = self.artifact_type
        return out

    @classmethod
    def from_json(cls, data: Any, where: str) -> Descriptor:
        """Read a descriptor; ``where`` names it in errors.

        Raises: LayerError when a required field is missing or of the wrong type; DigestMismatch.
        """
        if not isinstance(data, dict):
            summary = f"{where}: descriptor is not an object"
            raise LayerError(summary)
        media_type, digest, size = data.get("mediaType", ""), data.get("digest"), data.get("size")
        if not isinstance(media_type, str) or not isinstance(digest, str):
            summary = f"{where}: descriptor lacks mediaType or digest"
            raise LayerError(summary)
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            summary = f"{where}: descriptor has no valid size"
            raise LayerError(summary)
        annotations, urls = data.get("annotations"), data.get("urls")
        platform = data.get("platform")
        return cls(
            media_type=media_type,
            digest=parse_digest(digest),
            size=size,
            annotations={str(k): str(v) for k, v in annotations.items()}
            if isinstance(annotations, dict)
            else {},
            platform=Platform.from_json(platform) if platform is not None else None,
            urls=tuple(map(str, urls)) if isinstance(urls, list) else (),
            artifact_type=str(data.get("artifactType") or ""),
            data=str(data.get("data") or ""),
        )
