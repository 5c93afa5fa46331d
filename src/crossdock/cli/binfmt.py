"""``binfmt``: the host's own handlers for foreign programs. Builds need none of it."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossdock.cli.command import Group, SubCommand, flag
from crossdock.cli.command import command as make_command
from crossdock.errors import EmulationError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.cli.command import Globals
    from crossdock.emulation.architectures import Architecture
    from crossdock.emulation.handlers import Handler

__all__ = ["command", "install", "ls", "uninstall", "verify"]

command = Group(
    "binfmt",
    help="Manage host-wide QEMU handlers. Builds need none: they register their own",
    table={
        "install": SubCommand("crossdock.cli.binfmt:install", "Register QEMU for the whole machine"),
        "ls": SubCommand("crossdock.cli.binfmt:ls", "List registered handlers"),
        "uninstall": SubCommand("crossdock.cli.binfmt:uninstall", "Remove handlers"),
        "verify": SubCommand("crossdock.cli.binfmt:verify", "Run a program of each architecture"),
    },
    builder=False,
)


@make_command("install [OPTIONS] [ARCH...|all]", args=(0, None), builder=False)
@flag(
    "-c", "--credential", kind="bool", help="Take credentials from the program, so that setuid works (flag C)"
)
@flag("--persistent", kind="bool", help="Also register at every boot, through /etc/binfmt.d")
@flag("--preserve-argv0", kind="bool", help="Hand on argv[0] (flag P; needs Linux 5.12 and QEMU 6.0)")
@flag("--reset", kind="bool", help="Replace handlers that are registered already")
def install(
    _globals: Globals,
    args: tuple[str, ...],
    credential: bool,
    persistent: bool,
    preserve_argv0: bool,
    reset: bool,
) -> None:
    """Register QEMU for the whole machine"""
    from crossdock.emulation.host import HostBinfmt, wanted_architectures
    from crossdock.emulation.qemu import QemuBinaries

    wanted = wanted_architectures(args)
    done = HostBinfmt().install(
        wanted,
        binaries=QemuBinaries.discover(),
        flags="F" + "C" * credential + "P" * preserve_argv0,
        reset=reset,
        persistent=persistent,
        skip_missing=not args or list(args) == ["all"],
    )
    for entry in done:
        sys.stdout.write(f"{entry.architecture}: {entry.handler} -> {entry.interpreter} {entry.what}\n")


@make_command("uninstall [OPTIONS] ARCH...|HANDLER...|all", args=(1, None), builder=False)
def uninstall(_globals: Globals, args: tuple[str, ...]) -> None:
    """Remove handlers"""
    from crossdock.emulation.host import HostBinfmt

    host = HostBinfmt()
    names = {handler.name for handler in host.handlers()}
    wanted = _architectures([word for word in args if word not in names])
    removed = host.uninstall(wanted, names=[word for word in args if word in names])
    for name in removed:
        sys.stdout.write(f"removed {name}\n")
    if not removed:
        sys.stdout.write("no such handler is registered\n")


def _architectures(words: Sequence[str]) -> tuple[Architecture, ...]:
    from crossdock.emulation.host import wanted_architectures

    return wanted_architectures(words) if words else ()


@make_command("ls [OPTIONS]", builder=False)
@flag("--format", default="table", help='"table" or "json"')
def ls(_globals: Globals, format: str) -> None:
    """List registered handlers"""
    from crossdock.emulation.host import HostBinfmt

    host = HostBinfmt()
    rows = [_row(handler) for handler in host.handlers()]
    if not host.mounted:
        sys.stderr.write("NOTICE: binfmt_misc is not mounted: `crossdock binfmt install` mounts it\n")
    _print(rows, format)


@make_command("verify [OPTIONS] [ARCH...|all]", args=(0, None), builder=False)
@flag("--format", default="table", help='"table" or "json"')
def verify(_globals: Globals, args: tuple[str, ...], format: str) -> None:
    """Run a program of each architecture"""
    from crossdock.emulation.host import HostBinfmt, wanted_architectures
    from crossdock.emulation.probes import run_probe

    handlers = HostBinfmt().handlers()
    wanted = wanted_architectures(args)
    if not args:
        wanted = tuple(arch for arch in wanted if any(h.accepts(arch) for h in handlers))
        if not wanted:
            summary = "no handler for a foreign architecture is registered"
            raise EmulationError(
                summary, hint="`crossdock binfmt install all` registers QEMU for the whole machine"
            )
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="crossdock-probe-") as folder:
        for arch in wanted:
            handler = next((h for h in handlers if h.enabled and h.accepts(arch)), None)
            result = run_probe(arch, Path(folder))
            rows.append(
                {
                    "arch": arch.name,
                    "handler": handler.name if handler else "",
                    "interpreter": handler.interpreter if handler else "",
                    "ok": result.ran,
                    "problem": result.problem,
                }
            )
    _print(rows, format)
    failed = [row["arch"] for row in rows if not row["ok"]]
    if failed:
        summary = f"programs of {', '.join(failed)} do not run"
        raise EmulationError(
            summary,
            hint="`crossdock binfmt install` registers QEMU; `crossdock doctor` says which package has it",
        )


def _row(handler: Handler) -> dict[str, Any]:
    from crossdock.emulation.architectures import ARCHITECTURES

    arch = next((arch.name for arch in ARCHITECTURES if handler.accepts(arch)), "")
    return {
        "name": handler.name,
        "arch": arch,
        "enabled": handler.enabled,
        "interpreter": handler.interpreter,
        "flags": handler.flags,
        "offset": handler.offset,
        "magic": handler.magic.hex(),
        "mask": handler.mask.hex(),
        "extension": handler.extension,
    }


def _print(rows: list[dict[str, Any]], form: str) -> None:
    if form == "json":
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    if form != "table":
        summary = f"unknown format {form!r}"
        raise UsageError(summary, hint='use "table" or "json"')
    from crossdock.cli.table import align_columns

    if not rows:
        return
    shown = [key for key in rows[0] if any(row[key] not in ("", None) for row in rows)]
    cells = [[key.upper() for key in shown], *([_cell(row[key]) for key in shown] for row in rows)]
    sys.stdout.write("".join(line.rstrip() + "\n" for line in align_columns(cells, gap=3)))


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
