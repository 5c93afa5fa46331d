"""Annotations of manifests, indexes and their descriptors, from exporter attributes.

``annotation[-TYPE][[PLATFORM]].KEY``, TYPE one of ``manifest`` (default), ``manifest-descriptor``,
``index``, ``index-descriptor``.

Spec: BuildKit ``exporter/containerimage/exptypes/annotations.go``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from crossdock.errors import UsageError
from crossdock.image.platform import parse_platform
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossdock.image.platform import Platform

__all__ = ["NO_ANNOTATIONS", "Annotations"]

_KEY = r"annotation(?:-([a-z-]+))?(?:\[([A-Za-z0-9_/-]+)\])?\.(\S+)\Z"
_TYPES = ("manifest", "manifest-descriptor", "index", "index-descriptor")


class _Annotation(NamedTuple):
    type: str
    #: None: every platform
    platform: Platform | None
    key: str
    value: str


class Annotations:
    """The annotations of one exporter."""

    def __init__(self, items: tuple[_Annotation, ...] = ()) -> None:
        self._items = items

    @classmethod
    def split(cls, attrs: Mapping[str, str]) -> tuple[dict[str, str], Annotations | None]:
        """Return the other attributes, and the annotations if there are any.

        Raises: UsageError for an unknown type or platform.
        """
        rest: dict[str, str] = {}
        items: list[_Annotation] = []
        for name, value in attrs.items():
            match = re.match(_KEY, name) if name.startswith("annotation") else None
            if match is None:
                rest[name] = value
                continue
            kind, platform, key = match[1] or "manifest", match[2], match[3]
            if kind not in _TYPES:
                summary = f"unrecognized annotation type {kind!r} in {name!r}"
                raise UsageError(summary, hint=f"use one of {', '.join(_TYPES)}")
            items.append(_Annotation(kind, parse_platform(platform) if platform else None, key, value))
        return rest, cls(tuple(items)) if items else None

    @property
    def beyond_manifest(self) -> bool:
        """Whether there are others than those of manifests themselves."""
        return any(item.type != "manifest" for item in self._items)

    def check(self, platforms: list[Platform], *, indexed: bool) -> None:
        """Check against the result: its platforms, and whether it has an index.

        Raises: UsageError.
        """
        for item in self._items:
            if item.platform is not None and item.platform not in platforms:
                summary = f"invalid annotation: no platform {item.platform} found in source"
                raise UsageError(summary)
            if item.type.startswith("index") and not indexed:
                summary = "index annotations not supported for single platform export"
                raise UsageError(
                    summary, hint="build for several platforms, or set BUILDKIT_MULTI_PLATFORM=1"
                )

    def get(self, kind: str, platform: Platform | None = None) -> dict[str, str]:
        """Return the annotations of one type; those of ``platform`` go before those of every platform."""
        wanted = [item for item in self._items if item.type == kind]
        if kind.startswith("index"):
            return {item.key: item.value for item in wanted}
        found = {item.key: item.value for item in wanted if item.platform is None}
        found.update({item.key: item.value for item in wanted if item.platform == platform is not None})
        return found


NO_ANNOTATIONS = Annotations()
