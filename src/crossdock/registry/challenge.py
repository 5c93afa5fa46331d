"""Challenges: what a 401 asks for.

Imported when a registry asks for a login.

Spec: RFC 9110 section 11.3, 11.6.1.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Challenge", "parse_challenges"]

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 (RFC 9110's word for a word)
_PARAMETER = re.compile(rf'\s*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))\s*')
_SCHEME = re.compile(rf"[\s,]*({_TOKEN})(?=[\s,]|\Z)(?:[ \t]+[A-Za-z0-9._~+/-]+=*\s*(?=,|\Z))?")


class Challenge(NamedTuple):
    """One challenge of ``WWW-Authenticate``; scheme and parameter names in lower case."""

    scheme: str
    parameters: dict[str, str]


def parse_challenges(values: Iterable[str]) -> list[Challenge]:
    """Parse all challenges of a response; text that is none is skipped."""
    return [challenge for value in values for challenge in _challenges(value)]


def _challenges(text: str) -> Iterator[Challenge]:
    at = 0
    while (match := _SCHEME.match(text, at)) is not None:
        at = match.end()
        parameters: dict[str, str] = {}
        while (found := _PARAMETER.match(text, at)) is not None:
            name, quoted, plain = found.groups()
            value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            parameters.setdefault(name.lower(), value)
            at = found.end()
            if text[at : at + 1] != ",":
                break
            at += 1
        yield Challenge(match[1].lower(), parameters)
