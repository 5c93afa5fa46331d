"""Commands with the manners of the docker CLI, on top of click.

What differs from plain click: the layout of help, flags with Go's types (``--push=false``, ``-t=name``), the wording
of usage errors, aliases, and sub-commands imported only when they run. Not for: what the commands do.

Spec: docker/cli ``cli/cobra.go``; spf13/pflag ``flag.go`` (FlagUsagesWrapped).
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, cast

import click

from crossdock.cli.declare import FALSE, TRUE, Declared, Globals, command, flag
from crossdock.errors import UsageError
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.cli.declare import FlagSpec
    from crossdock.cli.help import FlagLine

__all__ = [
    "Command",
    "Flag",
    "Globals",
    "Group",
    "SubCommand",
    "as_click",
    "command",
    "experimental",
    "flag",
    "go_style",
]


def experimental() -> bool:
    """Whether ``BUILDX_EXPERIMENTAL`` reveals hidden commands and flags."""
    return os.environ.get("BUILDX_EXPERIMENTAL", "").lower() in ("1", "true", "t")


class Flag(click.Option):
    """An option that knows its Go type name, for help and reference pages."""

    def __init__(self, *names: str, kind: str, shown_default: str = "", **attrs: Any) -> None:
        super().__init__(names, **attrs)
        #: pflag's type name; ``bool`` takes no argument
        self.kind = kind
        self.shown_default = shown_default

    @property
    def takes_value(self) -> bool:
        """Whether a value follows."""
        return not self.is_flag and not self.count

    @property
    def long(self) -> str:
        """The ``--name`` form."""
        return next(o for o in self.opts if o.startswith("--"))

    @property
    def short(self) -> str:
        """The ``-x`` form, or ``""``."""
        return next((o for o in self.opts if not o.startswith("--")), "")

    def line(self) -> FlagLine:
        """Return what help shows of it."""
        from crossdock.cli.help import FlagLine

        return FlagLine(self.short, self.long, "" if self.kind == "bool" else self.kind, self._text())

    def _text(self) -> str:
        if not self.shown_default:
            return self.help or ""
        quoted = f'"{self.shown_default}"' if self.kind == "string" else self.shown_default
        return f"{self.help} (default {quoted})"


def _flag(spec: FlagSpec) -> Flag:
    """Make click's form of a declared flag."""
    attrs: dict[str, Any] = {"help": spec.help or None, "hidden": spec.hidden}
    if spec.kind == "bool":
        attrs |= {"is_flag": True, "default": spec.default == "true"}
    elif spec.repeated:
        attrs["multiple"] = True
    elif spec.kind in ("bytes", "duration"):
        from crossdock.cli.values import BYTES, DURATION

        attrs |= {"type": BYTES if spec.kind == "bytes" else DURATION, "default": spec.default or "0"}
    elif spec.default:
        attrs["default"] = spec.default
    return Flag(*spec.names, kind=spec.kind, shown_default=spec.default, **attrs)


class Command(click.Command):
    """A command: help in docker's layout, Go-style flag values, checked number of arguments."""

    #: e.g. ``build [OPTIONS] PATH | URL | -``
    usage_line: str = ""
    arg_range: tuple[int, int | None] = (0, 0)
    aliases: tuple[str, ...] = ()
    builder_flag: bool = True

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the flags; refuse a wrong number of arguments in docker's words."""
        rest = super().parse_args(ctx, go_style(args, self.get_params(ctx)))
        given = cast("tuple[str, ...]", ctx.params.get("args", ()))
        low, high = self.arg_range
        if len(given) < low or (high is not None and len(given) > high):
            from crossdock.cli.help import format_usage_error

            raise format_usage_error(ctx.command_path, self.usage(ctx), low, high)
        return rest

    def usage(self, ctx: click.Context) -> str:
        """Return the usage line with the whole command path."""
        parent = ctx.command_path.rpartition(" ")[0]
        return f"{parent} {self.usage_line or self.name}".strip()

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write help in docker's layout."""
        formatter.write(f"Usage:  {self.usage(ctx)}\n\n{self.help}\n")
        if self.aliases:
            parent = ctx.command_path.rpartition(" ")[0]
            names = ", ".join(f"{parent} {alias}" for alias in (self.name or "", *self.aliases))
            formatter.write(f"\nAliases:\n  {names}\n")
        formatter.write(self._flags_text(ctx))

    def _flags_text(self, ctx: click.Context) -> str:
        from crossdock.cli.help import format_flags

        flags = [p for p in self.get_params(ctx) if isinstance(p, Flag) and not p.hidden]
        return "\nOptions:\n" + format_flags([f.line() for f in flags])


def as_click(declared: Declared) -> Command:
    """Make click's form of a declared command."""
    function, args = declared.function, declared.args
    params: list[click.Parameter] = [_flag(spec) for spec in declared.flags]
    params += _persistent_flags(builder=declared.builder)
    params.sort(key=lambda p: p.long.lstrip("-") if isinstance(p, Flag) else "")
    params.append(click.Argument(["args"], nargs=-1, type=click.UNPROCESSED))

    def call(**values: Any) -> Any:
        globals_ = click.get_current_context().find_object(Globals)
        if globals_ is None:
            msg = "a command ran without its root"
            raise UsageError(msg)
        if args == (0, 0):
            del values["args"]
        return function(globals_, **values)

    made = Command(
        name=declared.usage.split()[0],
        params=params,
        callback=call,
        help=(function.__doc__ or "").strip(),
        hidden=declared.hidden,
        context_settings={"help_option_names": []},
    )
    made.usage_line, made.arg_range = declared.usage, args
    made.aliases, made.builder_flag = declared.aliases, declared.builder
    return made


def _persistent_flags(*, builder: bool) -> list[click.Parameter]:
    flags: list[click.Parameter] = [
        Flag(
            "-D",
            "--debug",
            kind="bool",
            is_flag=True,
            expose_value=False,
            help="Enable debug logging",
            callback=_set_debug,
        ),
        Flag(
            "-h",
            "--help",
            kind="bool",
            is_flag=True,
            expose_value=False,
            is_eager=True,
            hidden=True,
            help="Show this help",
            callback=_show_help,
        ),
    ]
    if builder:
        text = "Override the configured builder instance"
        flags.append(Flag("--builder", kind="string", expose_value=False, help=text, callback=_set_builder))
    return flags


def _set_debug(ctx: click.Context, _param: click.Parameter, value: object) -> None:
    globals_ = ctx.find_object(Globals)
    if value and globals_ is not None:
        globals_.debug = True


def _set_builder(ctx: click.Context, _param: click.Parameter, value: object) -> None:
    globals_ = ctx.find_object(Globals)
    if value and globals_ is not None:
        globals_.builder, globals_.builder_from_flag = str(value), True


def _show_help(ctx: click.Context, _param: click.Parameter, value: object) -> None:
    if value and not ctx.resilient_parsing:
        sys.stdout.write(ctx.get_help() + "\n")
        ctx.exit()


class SubCommand(NamedTuple):
    """Where a sub-command lives and what help shows of it without importing it."""

    target: str
    short: str
    aliases: tuple[str, ...] = ()
    hidden: bool = False
    experimental: bool = False
    #: has sub-commands of its own; listed under "Management Commands"
    group: bool = False


class Group(click.Group):
    """A group whose sub-commands are imported when they run."""

    def __init__(
        self, name: str, *, help: str, table: dict[str, SubCommand], builder: bool = True, footer: str = ""
    ) -> None:
        super().__init__(
            name=name,
            help=help,
            params=sorted(_persistent_flags(builder=builder), key=lambda p: cast("Flag", p).long),
            invoke_without_command=True,
            callback=_group_called,
            context_settings={"help_option_names": []},
            subcommand_metavar="COMMAND",
        )
        self.table = table
        self.footer = footer
        self._by_alias = {alias: name for name, sub in table.items() for alias in sub.aliases}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the flags before the sub-command."""
        return super().parse_args(ctx, go_style(args, self.get_params(ctx), interspersed=False))

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Names of all sub-commands, hidden ones too."""
        return sorted(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a sub-command."""
        sub = self.table.get(self._by_alias.get(cmd_name, cmd_name))
        if sub is None or (sub.experimental and not experimental()):
            return None
        from importlib import import_module

        module, _, attribute = sub.target.partition(":")
        found = getattr(import_module(module), attribute or "command")
        return as_click(found) if isinstance(found, Declared) else cast("click.Command", found)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the sub-command; an unknown one shows help and is an error."""
        name = args[0]
        found = self.get_command(ctx, name)
        if found is None:
            if name.startswith("-"):
                ctx.fail(f"unknown flag: {name}")
            sys.stdout.write(ctx.get_help() + "\n")
            sys.stdout.flush()
            summary = f'unknown command: "{name}"'
            raise UsageError(summary, hint=_did_you_mean(name, self.table))
        return found.name, found, args[1:]

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write help in docker's layout."""
        from crossdock.cli.help import format_flags

        formatter.write(f"Usage:  {ctx.command_path} [OPTIONS] COMMAND\n\n{self.help}\n")
        flags = [p.line() for p in self.get_params(ctx) if isinstance(p, Flag) and not p.hidden]
        formatter.write("\nOptions:\n" + format_flags(flags))
        visible = {
            n: s for n, s in self.table.items() if not s.hidden and (not s.experimental or experimental())
        }
        width = max(map(len, visible), default=0) + 2
        for title, wanted in (("Management Commands", True), ("Commands", False)):
            rows = [f"  {n:<{width}}{s.short}\n" for n, s in sorted(visible.items()) if s.group is wanted]
            if rows:
                formatter.write(f"\n{title}:\n" + "".join(rows))
        formatter.write(f"\nRun '{ctx.command_path} COMMAND --help' for more information on a command.\n")
        if self.footer and not experimental():
            formatter.write(f"\n{self.footer}\n")


def _group_called() -> None:
    ctx = click.get_current_context()
    if ctx.invoked_subcommand is None:
        sys.stdout.write(ctx.get_help() + "\n")


def _did_you_mean(word: str, names: Sequence[str] | dict[str, SubCommand]) -> str | None:
    from difflib import get_close_matches

    close = get_close_matches(word, [*names], n=1)
    return f"did you mean {close[0]!r}?" if close else None


def go_style(args: list[str], params: Sequence[click.Parameter], *, interspersed: bool = True) -> list[str]:
    """Rewrite pflag's spellings that click does not read: ``--switch=BOOL`` and ``-x=value``.

    Raises: UsageError for a switch with a value that is not a Go boolean.
    """
    flags = {name: p for p in params if isinstance(p, Flag) for name in p.opts}
    out: list[str] = []
    rest = iter(args)
    for arg in rest:
        if arg == "--" or not arg.startswith("-") or arg == "-":
            if arg == "--" or not interspersed:
                return [*out, arg, *rest]
            out.append(arg)
            continue
        name, equals, value = arg.partition("=")
        known = flags.get(name)
        if known is None:
            out.append(_glued_short(arg, flags))
        elif known.is_flag and equals:
            if value not in TRUE | FALSE:
                summary = f'invalid argument "{value}" for "{_both_names(known)}" flag: not a boolean'
                raise UsageError(summary, hint="write true or false")
            out += [name] if value in TRUE else known.secondary_opts[:1]
        elif known.is_flag or equals:
            out += [name, value] if equals else [name]
        else:
            out.append(arg)
            out += [v for v in (next(rest, None),) if v is not None]
    return out


def _glued_short(arg: str, flags: dict[str, Flag]) -> str:
    known = flags.get(arg[:2])
    if known is not None and not known.is_flag and not arg.startswith("--") and arg[2:3] == "=":
        return arg[:2] + arg[3:]
    return arg


def _both_names(known: Flag) -> str:
    return ", ".join(n for n in (known.short, known.long) if n)
