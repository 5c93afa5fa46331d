"""``CMD``, ``ENTRYPOINT`` and ``SHELL``: exec form (a JSON array) or shell form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.dockerfile.instructions.base import Instruction

if TYPE_CHECKING:
    from crossdock.dockerfile.instructions.base import Statement

__all__ = ["Cmd", "Entrypoint", "Shell", "parse_cmd", "parse_entrypoint", "parse_shell"]


class Cmd(Instruction):
    """``CMD``; a shell form has one argument."""

    args: tuple[str, ...]
    json: bool


class Entrypoint(Instruction):
    """``ENTRYPOINT``; a shell form has one argument."""

    args: tuple[str, ...]
    json: bool


class Shell(Instruction):
    """``SHELL``: what later shell forms are run with."""

    args: tuple[str, ...]


def command_args(s: Statement) -> tuple[tuple[str, ...], bool]:
    """Return the arguments and whether they were in exec form.

    Raises: DockerfileError.
    """
    args = s.json()
    if args is not None:
        return tuple(args), True
    return ((s.rest,) if s.rest else ()), False


def parse_cmd(s: Statement) -> Cmd:
    """Read a CMD.

    Raises: DockerfileError.
    """
    s.no_flags()
    args, json = command_args(s)
    return Cmd(**s.common(), args=args, json=json)


def parse_entrypoint(s: Statement) -> Entrypoint:
    """Read an ENTRYPOINT.

    Raises: DockerfileError.
    """
    s.no_flags()
    args, json = command_args(s)
    return Entrypoint(**s.common(), args=args, json=json)


def parse_shell(s: Statement) -> Shell:
    """Read a SHELL.

    Raises: DockerfileError.
    """
    s.no_flags()
    args, json = command_args(s)
    if not args:
        message = "SHELL requires at least one argument"
        raise s.error(message)
    if not json:
        message = "SHELL requires the arguments to be in JSON form"
        raise s.error(message, s.rest, hint='for example SHELL ["/bin/bash", "-c"]')
    return Shell(**s.common(), args=args)
