"""How layers are compressed: a value, parsed from exporter attributes.

Spec: BuildKit exporter attributes ``compression``, ``compression-level``, ``force-compression``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.errors import NotSupported, UsageError
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["COMPRESSION_ATTRS", "Compression", "parse_bool"]

#: exporter attributes that :meth:`Compression.from_attrs` reads
COMPRESSION_ATTRS = frozenset({"compression", "compression-level", "force-compression"})

_LEVELS = {"uncompressed": range(1), "gzip": range(10), "zstd": range(23)}
_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})


class Compression(NamedTuple):
    """Compression of layer blobs; ``level`` None is the type's default."""

    #: ``gzip``, ``zstd`` or ``uncompressed``
    type: str = "gzip"
    level: int | None = None
    #: recompress layers that already have a blob of another type
    force: bool = False

    @property
    def label(self) -> str:
        """Type and level, e.g. ``gzip:default``: layers written with the same have the same bytes."""
        return f"{self.type}:{'default' if self.level is None else self.level}"

    @classmethod
    def from_attrs(cls, attrs: Mapping[str, str]) -> Compression:
        """Read the three attributes; absent ones take their defaults.

        Raises: UsageError naming the attribute and value; NotSupported for ``estargz``.
        """
        kind = attrs.get("compression", "gzip")
        if kind in ("estargz", "nydus"):
            summary = f"compression={kind} is not supported"
            raise NotSupported(summary, hint="use gzip, zstd or uncompressed")
        if kind not in _LEVELS:
            summary = f"invalid value {kind!r} for compression: unsupported compression type"
            raise UsageError(summary, hint="use gzip, zstd or uncompressed")
        level = _parse_level(kind, attrs["compression-level"]) if "compression-level" in attrs else None
        force = parse_bool("force-compression", attrs.get("force-compression", "false"))
        return cls(kind, level, force)


def _parse_level(kind: str, text: str) -> int | None:
    try:
        level = int(text)
    except ValueError as exc:
        summary = f"non-integer value {text!r} specified for compression-level"
        raise UsageError(summary) from exc
    if kind == "uncompressed":
        return None
    allowed = _LEVELS[kind]
    if level not in allowed:
        summary = f"invalid value {level} for compression-level with {kind}"
        raise UsageError(summary, hint=f"use a number from 0 to {allowed.stop - 1}")
    return level


def parse_bool(key: str, text: str) -> bool:
    """Parse a boolean attribute as Go's ``strconv.ParseBool`` does; empty means true.

    Raises: UsageError naming the key.
    """
    if text in _TRUE or not text:
        return True
    if text in _FALSE:
        return False
    summary = f"non-bool value {text!r} specified for {key}"
    raise UsageError(summary, hint="use true or false")
