"""``# syntax=``: which frontend a file asks for. Every version of ``docker/dockerfile`` is served here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.dockerfile.directives import detect_syntax
from crossdock.errors import DigestMismatch, NotSupported, UsageError
from crossdock.image.reference import parse_reference
from crossdock.record import Record

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossdock.dockerfile.directives import Directive
    from crossdock.dockerfile.tree import Dockerfile
    from crossdock.errors import SourceRange

__all__ = ["SyntaxRequest", "check_syntax", "is_served", "requested_syntax"]

#: repositories of the official frontend
_OURS = frozenset(["docker.io/docker/dockerfile", "docker.io/docker/dockerfile-upstream"])


class SyntaxRequest(Record):
    """The frontend a file asks for."""

    #: the reference as written
    text: str
    #: tag, e.g. ``1.7-labs``; "" when there is none
    version: str
    #: whether this frontend serves it
    served: bool
    where: SourceRange | None


def requested_syntax(dockerfile: Dockerfile, build_args: Mapping[str, str]) -> SyntaxRequest | None:
    """Return what the build argument ``BUILDKIT_SYNTAX`` or the file asks for; ``None`` = nothing."""
    text = build_args.get("BUILDKIT_SYNTAX", "").strip()
    where = None
    if not text:
        data = dockerfile.file.text.encode("utf-8", "surrogateescape")
        directive = dockerfile.directive("syntax") or _other_forms(data, dockerfile.file.name)
        if directive is None:
            return None
        text, where = directive.value, directive.where
    text = text.partition(" ")[0]
    if text == "dockerfile.v0":
        return SyntaxRequest(text=text, version="", served=True, where=where)
    try:
        ref = parse_reference(text)
    except (UsageError, DigestMismatch):
        return SyntaxRequest(text=text, version="", served=False, where=where)
    return SyntaxRequest(text=text, version=ref.tag or "", served=ref.repository in _OURS, where=where)


def is_served(text: str) -> bool:
    """Whether this frontend serves what a file asks for by ``text``."""
    if text == "dockerfile.v0":
        return True
    try:
        return parse_reference(text).repository in _OURS
    except (UsageError, DigestMismatch):
        return False


def _other_forms(data: bytes, name: str) -> Directive | None:
    return detect_syntax(data, name) if data.startswith((b"//", b"{", b"#!")) else None


def check_syntax(dockerfile: Dockerfile, build_args: Mapping[str, str]) -> None:
    """Raise NotSupported when another frontend image is asked for."""
    request = requested_syntax(dockerfile, build_args)
    if request is None or request.served:
        return
    summary = f"the frontend image {request.text} cannot be run: only docker/dockerfile is served, by Crossdock itself"
    hint = "remove the syntax line, or build with BUILDKIT_SYNTAX=docker/dockerfile:1 if the file needs nothing else"
    raise NotSupported(summary, hint=hint, source=request.where)
