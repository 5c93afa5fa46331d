"""The instructions of a Dockerfile, one module per kind; each is loaded when a file first uses it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from crossdock.dockerfile.instructions.base import Instruction, Statement

__all__ = ["KEYWORDS", "parser_of"]

_PACKAGE = "crossdock.dockerfile.instructions"

#: keyword -> module and function that reads it
KEYWORDS: dict[str, tuple[str, str]] = {
    "ADD": ("copy", "parse_add"),
    "ARG": ("arg", "parse"),
    "CMD": ("command", "parse_cmd"),
    "COPY": ("copy", "parse_copy"),
    "ENTRYPOINT": ("command", "parse_entrypoint"),
    "ENV": ("env", "parse_env"),
    "EXPOSE": ("simple", "parse_expose"),
    "FROM": ("from_", "parse"),
    "HEALTHCHECK": ("healthcheck", "parse"),
    "LABEL": ("env", "parse_label"),
    "MAINTAINER": ("simple", "parse_maintainer"),
    "ONBUILD": ("onbuild", "parse"),
    "RUN": ("run", "parse"),
    "SHELL": ("command", "parse_shell"),
    "STOPSIGNAL": ("simple", "parse_stopsignal"),
    "USER": ("simple", "parse_user"),
    "VOLUME": ("simple", "parse_volume"),
    "WORKDIR": ("simple", "parse_workdir"),
}

_loaded: dict[str, Callable[[Statement], Instruction]] = {}


def parser_of(keyword: str) -> Callable[[Statement], Instruction] | None:
    """Return the parse function of an upper-case keyword; ``None`` when there is no such instruction."""
    found = _loaded.get(keyword)
    if found is None and keyword in KEYWORDS:
        module, function = KEYWORDS[keyword]
        found = _loaded[keyword] = getattr(import_module(f"{_PACKAGE}.{module}"), function)
    return found
