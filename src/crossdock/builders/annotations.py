"""``--annotation`` as exporter attributes.

Spec: docker/buildx ``util/buildflags/export.go``; moby/buildkit ``exporter/containerimage/exptypes``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from crossdock.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["annotation_attrs"]

_ANNOTATION_TYPE = re.compile(r"([a-z-]+)(\[[A-Za-z0-9_/-]+\])?\Z")


def annotation_attrs(annotations: Sequence[str]) -> dict[str, str]:
    """Read ``[type[platform],…:]key=value`` into exporter attributes.

    Raises: UsageError.
    """
    out: dict[str, str] = {}
    for text in annotations:
        name, equals, value = text.partition("=")
        if not equals:
            summary = f"invalid annotation {text!r}, expected key=value"
            raise UsageError(summary)
        types, colon, key = name.partition(":")
        if not colon:
            out[f"annotation.{name}"] = value
            continue
        for item in types.split(","):
            match = _ANNOTATION_TYPE.match(item)
            if match is None:
                summary = f"invalid annotation type {item!r}, expected type and optional platform in square brackets"
                raise UsageError(summary)
            out[f"annotation-{match[1]}{match[2] or ''}.{key}"] = value
    return out
