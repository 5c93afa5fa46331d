"""How commands and their flags are declared, and a quick reader of plain command lines. No click here.

A build that is cached spends a sixth of its time on importing click and making its objects. So commands are declared as
values; :func:`read_plain` reads the flags of a command line in which everything is as it should be, and says that it
does not know otherwise. What it does not know (help, mistakes, unusual spellings) click reads, from the same values
(``cli.command``), so there is one table of flags and one source of error messages.

Spec: spf13/pflag ``flag.go``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["FALSE", "TRUE", "Declared", "FlagSpec", "Globals", "PlainLine", "command", "flag", "read_plain"]

#: Go's booleans
TRUE = frozenset(["1", "t", "T", "true", "TRUE", "True"])
FALSE = frozenset(["0", "f", "F", "false", "FALSE", "False"])
_REPEATED = frozenset(["stringArray", "strings", "filter", "ulimit", "list"])


class Globals:
    """What the root options and the way of invocation say; one per process, shared by all commands."""

    __slots__ = ("builder", "builder_from_flag", "debug", "plugin", "program")

    def __init__(self, *, program: str, plugin: bool, debug: bool = False) -> None:
        #: how the user calls us, e.g. ``docker buildx``
        self.program = program
        #: run by the docker CLI
        self.plugin = plugin
        self.builder: str | None = os.environ.get("BUILDX_BUILDER") or None
        self.builder_from_flag = False
        self.debug = debug


class FlagSpec(NamedTuple):
    """A flag as declared."""

    #: ``--name``, ``-x``, ``--name/--no-name``, and the name of the value where it is not that of the flag
    names: tuple[str, ...]
    #: pflag's type name
    kind: str
    #: the text shown in help
    default: str
    help: str
    hidden: bool

    @property
    def repeated(self) -> bool:
        """Whether it may be given several times, and its value is a tuple."""
        return self.kind in _REPEATED

    @property
    def value_name(self) -> str:
        """The keyword under which a command gets the value."""
        named = [name for name in self.names if not name.startswith("-")]
        if named:
            return named[0]
        long = next((name for name in self.names if name.startswith("--")), self.names[0])
        return long.partition("/")[0].lstrip("-").replace("-", "_")


class Declared:
    """A command: a function ``(globals_, args, **flags)``, and how it is called."""

    __slots__ = ("aliases", "args", "builder", "flags", "function", "hidden", "usage")

    def __init__(
        self,
        function: Callable[..., Any],
        flags: tuple[FlagSpec, ...],
        *,
        usage: str,
        args: tuple[int, int | None],
        aliases: tuple[str, ...],
        builder: bool,
        hidden: bool,
    ) -> None:
        self.function = function
        self.flags = flags
        #: starts with the command's name
        self.usage = usage
        #: least and greatest number of arguments
        self.args = args
        self.aliases = aliases
        #: whether it has ``--builder``
        self.builder = builder
        self.hidden = hidden


def flag(
    *names: str, kind: str = "string", default: str = "", help: str = "", hidden: bool = False
) -> Callable[[Any], Any]:
    """Declare a flag: ``kind`` is pflag's type name and chooses how the value is read.

    ``bool`` is a switch, ``stringArray``/``strings``/``filter``/``ulimit``/``list`` may be repeated, ``bytes`` and
    ``duration`` become integers and seconds; anything else is a string. ``default`` is the text shown in help.
    """

    def decorate(function: Any) -> Any:
        function.__dict__.setdefault("__crossdock_flags__", []).insert(
            0, FlagSpec(names, kind, default, help, hidden)
        )
        return function

    return decorate


def command(
    usage: str,
    *,
    args: tuple[int, int | None] = (0, 0),
    aliases: tuple[str, ...] = (),
    builder: bool = True,
    hidden: bool = False,
) -> Callable[[Callable[..., Any]], Declared]:
    """Declare a command: a function ``(globals_, args, **flags)``; its docstring is the help.

    ``usage`` starts with the command's name; ``builder`` adds the persistent ``--builder`` flag. ``args`` is left out
    of the call for a command without arguments.
    """

    def decorate(function: Callable[..., Any]) -> Declared:
        flags = tuple(function.__dict__.get("__crossdock_flags__", ()))
        return Declared(
            function, flags, usage=usage, args=args, aliases=aliases, builder=builder, hidden=hidden
        )

    return decorate


class PlainLine(NamedTuple):
    """What a command line says, when it is plain."""

    args: tuple[str, ...]
    #: by keyword, defaults included
    values: dict[str, Any]
    debug: bool
    builder: str


def read_plain(declared: Declared, words: Sequence[str]) -> PlainLine | None:
    """Read the words after a command's name; ``None`` for anything but known flags, well spelt, and enough arguments."""
    table = {name: spec for spec in declared.flags for name in spec.names if "/" not in name}
    persistent = {"-D": _DEBUG, "--debug": _DEBUG, "--builder": _BUILDER if declared.builder else None}
    given: dict[FlagSpec, list[str]] = {}
    args: list[str] = []
    rest = iter(words)
    for word in rest:
        if not word.startswith("-") or word == "-":
            args.append(word)
            continue
        if word == "--":
            args += rest
            break
        name, equals, value = word.partition("=")
        spec = persistent.get(name) or table.get(name)
        if spec is None:
            return None
        if spec.kind == "bool":
            value = value if equals else "true"
            if value not in TRUE and value not in FALSE:
                return None
        elif not equals:
            following = next(rest, None)
            if following is None:
                return None
            value = following
        given.setdefault(spec, []).append(value)
    low, high = declared.args
    if len(args) < low or (high is not None and len(args) > high):
        return None
    debug, builder = given.pop(_DEBUG, ["false"])[-1] in TRUE, given.pop(_BUILDER, [""])[-1]
    values = {spec.value_name: _value(spec, given.get(spec, ())) for spec in declared.flags}
    return PlainLine(tuple(args), values, debug, builder)


_DEBUG = FlagSpec(("-D", "--debug"), "bool", "", "Enable debug logging", hidden=False)
_BUILDER = FlagSpec(("--builder",), "string", "", "Override the configured builder instance", hidden=False)


def _value(spec: FlagSpec, given: Sequence[str]) -> Any:
    """Return what the command gets. Raises: UsageError for bytes or a duration that are none."""
    if spec.repeated:
        return tuple(given)
    last = given[-1] if given else spec.default
    if spec.kind == "bool":
        return last in TRUE
    if spec.kind in ("bytes", "duration"):
        from crossdock.builders.values import parse_bytes, parse_duration

        text = last if given else last or "0"
        return parse_bytes(text) if spec.kind == "bytes" else parse_duration(text)
    return last if given or spec.default else None
