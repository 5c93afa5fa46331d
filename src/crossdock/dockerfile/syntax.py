"""``# syntax=``: which frontend a file asks for. Every version of ``docker/dockerfile`` is served here.

Spec: moby/buildkit ``frontend/dockerui`` (``BUILDKIT_SYNTAX``), ``frontend/dockerfile/parser/directives.go``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.dockerfile.directives import detect_syntax
from crossdock.errors import DigestMismatch, UsageError
from crossdock.image.reference import parse_reference

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["foreign_frontend", "is_served"]

#: repositories of the official frontend
_OURS = frozenset(["docker.io/docker/dockerfile", "docker.io/docker/dockerfile-upstream"])


def foreign_frontend(data: bytes, name: str, build_args: Mapping[str, str]) -> str:
    """Return the image whose frontend the build argument ``BUILDKIT_SYNTAX``, or else the file, asks for.

    ``""`` when ours serves it.
    """
    text = build_args.get("BUILDKIT_SYNTAX", "").strip()
    if not text:
        found = detect_syntax(data, name)
        text = found.value if found is not None else ""
    text = text.partition(" ")[0]
    return "" if not text or is_served(text) else text


def is_served(text: str) -> bool:
    """Whether this frontend serves what a file asks for by ``text``."""
    if text == "dockerfile.v0":
        return True
    try:
        return parse_reference(text).repository in _OURS
    except (UsageError, DigestMismatch):
        return False
