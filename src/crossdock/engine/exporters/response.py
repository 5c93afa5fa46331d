"""BuildKit's response keys for images.

Spec: BuildKit ``exporter/containerimage/exptypes/types.go``; the descriptor is the object itself here, base64 of it there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.engine.exporters.model import BuiltImage
    from crossdock.image.descriptor import Descriptor

__all__ = ["image_response"]


def image_response(
    image: BuiltImage, names: Sequence[str], *, descriptor: Descriptor | None = None
) -> dict[str, object]:
    """Return ``containerimage.digest``, ``.config.digest`` (of a single image), ``.descriptor`` and ``image.name``."""
    response: dict[str, object] = {
        "containerimage.digest": image.descriptor.digest,
        "containerimage.descriptor": (descriptor or image.descriptor).to_json(),
    }
    if image.index is None:
        response["containerimage.config.digest"] = image.platforms[0].manifest.config.digest
    if names:
        response["image.name"] = ",".join(names)
    return response
