"""Image references: ``[domain/]path[:tag][@digest]``, normalised as docker does.

Spec: distribution/reference ``normalize.go`` and ``regexp.go``.
"""

from __future__ import annotations

import re

from crossdock.errors import DigestMismatch, UsageError
from crossdock.image.digest import Digest, parse_digest
from crossdock.record import Record, replace

__all__ = ["Reference", "parse_reference"]

_PATH_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_PATH_COMPONENT}(?:/{_PATH_COMPONENT})*\Z")
_DOMAIN_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"(?:{_DOMAIN_LABEL}(?:\.{_DOMAIN_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_IMAGE_ID = re.compile(r"[0-9a-f]{64}\Z")
_DEFAULT_DOMAIN = "docker.io"


class Reference(Record, kw_only=False):
    """A normalised reference; ``str()`` is the canonical text with the domain."""

    domain: str
    path: str
    tag: str | None = None
    digest: Digest | None = None

    def __str__(self) -> str:
        return self.repository + self._suffix

    @property
    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    @property
    def repository(self) -> str:
        """Domain and path."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar(self) -> str:
        """The short form docker shows: no ``docker.io/`` and no ``library/``."""
        if self.domain != _DEFAULT_DOMAIN:
            return str(self)
        path = self.path.removeprefix("library/") if self.path.count("/") == 1 else self.path
        return path + self._suffix

    def with_default_tag(self) -> Reference:
        """Add ``latest`` when there is neither tag nor digest."""
        return self if self.tag or self.digest else replace(self, tag="latest")

    def with_digest(self, digest: Digest) -> Reference:
        """Return the same reference pinned to ``digest``."""
        return replace(self, digest=digest)

    @property
    def object(self) -> str:
        """What the registry is asked for: the digest if there is one, else the tag (default ``latest``)."""
        return self.digest or self.tag or "latest"


def parse_reference(text: str) -> Reference:
    """Parse and normalise a reference.

    Raises: UsageError, naming what is wrong with it.
    """
    rest, at, digest_text = text.partition("@")
    digest = _digest(digest_text, text) if at else None
    if _IMAGE_ID.match(text):
        summary = f"invalid reference {text!r}: a name cannot be 64 hexadecimal digits"
        raise UsageError(summary, hint="to name an image by its digest, write NAME@sha256:DIGEST")
    domain, path = _split_domain(rest)
    tag: str | None = None
    colon = path.rfind(":")
    if colon >= 0:
        path, tag = path[:colon], path[colon + 1 :]
        if not _TAG.match(tag):
            summary = f"invalid reference {text!r}: invalid tag {tag!r}"
            raise UsageError(summary, hint="a tag has at most 128 letters, digits, '_', '.' and '-'")
    if domain == _DEFAULT_DOMAIN and "/" not in path:
        path = f"library/{path}"
    if not _DOMAIN.match(domain) or not _PATH.match(path) or len(path) > 255:
        hint = (
            "repository names are lower case"
            if path != path.lower()
            else "write it as [host[:port]/]name[:tag]"
        )
        summary = f"invalid reference {text!r}: invalid reference format"
        raise UsageError(summary, hint=hint)
    return Reference(domain, path, tag, digest)


def _digest(digest: str, text: str) -> Digest:
    try:
        return parse_digest(digest)
    except DigestMismatch as exc:
        summary = f"invalid reference {text!r}: {exc.summary}"
        raise UsageError(summary, hint=exc.hint) from exc


def _split_domain(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    is_domain = slash and ("." in first or ":" in first or first == "localhost" or first.lower() != first)
    if not is_domain:
        return _DEFAULT_DOMAIN, name
    return (_DEFAULT_DOMAIN if first == "index.docker.io" else first), rest
