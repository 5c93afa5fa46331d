"""``history``: the builds that BuildKit nodes remember.

Spec: docker/buildx ``commands/history``.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

from crossdock.cli.command import Group, SubCommand, flag
from crossdock.cli.command import command as make_command
from crossdock.cli.common import chosen_builder
from crossdock.errors import NotSupported, UsageError

if TYPE_CHECKING:
    import click

    from crossdock.builders.model import NodeGroup
    from crossdock.builders.records import FoundRecord
    from crossdock.cli.command import Globals

__all__ = ["command", "export", "logs", "ls", "rm", "trace"]

_HEADERS = {
    "Ref": "BUILD ID",
    "Name": "NAME",
    "Status": "STATUS",
    "CreatedAt": "CREATED AT",
    "Duration": "DURATION",
    "Link": "LINK",
}
_TABLE = "table {{.Ref}}\t{{.Name}}\t{{.Status}}\t{{.CreatedAt}}\t{{.Duration}}"
_NAME_WIDTH = 36


class _HistoryGroup(Group):
    """Reads ``inspect attachment`` as one command: ``inspect`` itself takes a reference."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[:2] == ["inspect", "attachment"]:
            found = self.get_command(ctx, "inspect-attachment")
            return "inspect attachment", found, args[2:]
        return super().resolve_command(ctx, args)


command = _HistoryGroup(
    "history",
    help="Commands to work on build records",
    table={
        "export": SubCommand("crossdock.cli.history:export", "Export build records into a bundle"),
        "import": SubCommand(
            "crossdock.cli.historydesktop:import_", "Import build records into Docker Desktop"
        ),
        "inspect": SubCommand("crossdock.cli.historyinspect:inspect", "Inspect a build record"),
        "inspect-attachment": SubCommand(
            "crossdock.cli.historyinspect:attachment", "Inspect a build record attachment", hidden=True
        ),
        "logs": SubCommand("crossdock.cli.history:logs", "Print the logs of a build record"),
        "ls": SubCommand("crossdock.cli.history:ls", "List build records"),
        "open": SubCommand("crossdock.cli.historydesktop:open_", "Open a build record in Docker Desktop"),
        "rm": SubCommand("crossdock.cli.history:rm", "Remove build records"),
        "trace": SubCommand("crossdock.cli.history:trace", "Show the OpenTelemetry trace of a build record"),
    },
)


@make_command("ls [OPTIONS]")
@flag("--filter", kind="stringArray", help='Provide filter values (e.g., "status=error")')
@flag("--format", default="table", help="Format the output")
@flag("--local", kind="bool", help="List records for current repository only")
@flag("--no-trunc", kind="bool", help="Don't truncate output")
def ls(globals_: Globals, filter: tuple[str, ...], format: str, local: bool, no_trunc: bool) -> None:
    """List build records"""
    from crossdock.builders.records import find_records, parse_filters
    from crossdock.cli.table import format_rows, is_table

    filters = [*filter, *([f"repository={_repository()}"] if local else [])]
    keep = parse_filters(filters)
    records = keep(find_records(chosen_builder(globals_)))
    rows = [_row(r, table=is_table(format), no_trunc=no_trunc) for r in records]
    objects = [_object(r) for r in records]
    sys.stdout.write(format_rows(format, rows, default_table=_TABLE, headers=_HEADERS, json_rows=objects))


def _row(found: FoundRecord, *, table: bool, no_trunc: bool) -> dict[str, Any]:
    import time

    from crossdock.cli.values import human_duration

    name, record = found.name, found.record
    if table and not no_trunc and len(name) > _NAME_WIDTH:
        name = name[: _NAME_WIDTH - 3] + "..."
    age = max(0.0, (time.time_ns() - record.created_ns) / 1e9)
    return {
        "Ref": record.ref,
        "Name": name,
        "Status": record.status,
        "CreatedAt": f"{human_duration(age)} ago",
        "Duration": duration_text(found.duration_s) + ("+" if record.completed_ns is None else ""),
        "Link": f"docker-desktop://dashboard/build/{found.ref}",
    }


def _object(found: FoundRecord) -> dict[str, Any]:
    record = found.record
    out: dict[str, Any] = {
        "cached_steps": record.cached_steps,
        "completed_steps": record.completed_steps,
        "created_at": stamp(record.created_ns),
        "name": found.name,
        "ref": found.ref,
        "status": record.status,
        "total_steps": record.total_steps,
    }
    if record.completed_ns is not None:
        out["completed_at"] = stamp(record.completed_ns)
    return dict(sorted(out.items()))


def duration_text(seconds: float) -> str:
    """Format as buildx does: ``0.2s``, ``2m  3s``, ``1h  2m``."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:2}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:2}m"


def stamp(time_ns: int) -> str:
    """Format a time as Go's JSON does."""
    from datetime import UTC, datetime

    text = datetime.fromtimestamp(time_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f"{time_ns % 10**9:09}".rstrip("0")
    return f"{text}.{fraction}Z" if fraction else f"{text}Z"


def _repository() -> str:
    """The origin of the Git repository here, as builds record it. Raises: UsageError outside one."""
    import subprocess

    try:
        done = subprocess.run(
            ["git", "config", "--get", "remote.origin.url"], capture_output=True, text=True, check=False
        )
    except OSError as exc:
        summary = f"--local needs git: {exc.strerror}"
        raise UsageError(summary) from exc
    if done.returncode != 0:
        summary = "--local: this is no Git repository with a remote `origin`"
        raise UsageError(summary)
    return done.stdout.strip()


@make_command("logs [OPTIONS] [REF]", args=(0, 1))
@flag("--progress", default="plain", help="Set type of progress output (plain, rawjson, tty)")
def logs(globals_: Globals, args: tuple[str, ...], progress: str) -> None:
    """Print the logs of a build record"""
    from crossdock.builders.records import find_one
    from crossdock.buildkit.history import record_events
    from crossdock.cli.interrupt import interruptible
    from crossdock.progress.display import Display, make_printer

    if progress not in ("plain", "rawjson", "tty"):
        summary = f"invalid progress mode {progress}"
        raise UsageError(summary, hint="modes: plain, rawjson, tty")
    found = find_one(chosen_builder(globals_), args[0] if args else "")
    with (
        found.client() as client,
        interruptible(plugin=globals_.plugin) as cancel,
        cancel.waking(client.close),
        Display(make_printer(progress, sys.stdout)) as display,
    ):
        for event in record_events(client, found.record):
            cancel.check()
            display.emit(event)


@make_command("rm [OPTIONS] [REF...]", args=(0, None))
@flag("--all", "all_", kind="bool", help="Remove all build records")
def rm(globals_: Globals, args: tuple[str, ...], all_: bool) -> None:
    """Remove build records"""
    from crossdock.builders.localstate import remove_state
    from crossdock.buildkit.history import delete_record

    for found in _chosen(globals_, args, all_=all_):
        with found.client() as client:
            delete_record(client, found.record.ref)
        remove_state(found.ref)


def _chosen(globals_: Globals, refs: tuple[str, ...], *, all_: bool) -> list[FoundRecord]:
    from crossdock.builders.records import find_one, find_records

    if all_ and refs:
        summary = "cannot specify refs when using --all"
        raise UsageError(summary)
    group = chosen_builder(globals_)
    if all_:
        return [r for r in find_records(group, limit=0) if r.record.completed_ns is not None]
    if not refs:
        summary = "at least one reference is needed"
        raise UsageError(summary, hint="name builds as `history ls` does, or use --all")
    return [find_one(group, ref) for ref in refs]


@make_command("export [OPTIONS] [REF...]", args=(0, None))
@flag("--all", "all_", kind="bool", help="Export all build records for the builder")
@flag("--finalize", kind="bool", help="Ensure build records are finalized before exporting")
@flag("-o", "--output", "output", help="Output file path")
def export(globals_: Globals, args: tuple[str, ...], all_: bool, finalize: bool, output: str | None) -> None:
    """Export build records into a bundle that Docker Desktop can show"""
    import os
    import tempfile

    from crossdock.builders.bundle import write_bundle
    from crossdock.errors import ExportError, translate

    if not output and sys.stdout.isatty():
        summary = "refusing to write a bundle to the terminal"
        raise UsageError(summary, hint="name a file with -o, or redirect standard output")
    records = _chosen(globals_, args if args or all_ else ("",), all_=all_)
    if not output or output == "-":
        sys.stdout.flush()
        write_bundle(records, sys.stdout.buffer, finalize=finalize)
        sys.stdout.buffer.flush()
        return

    def refuse(exc: BaseException) -> ExportError:
        return ExportError(f"cannot write {output}: {exc}")

    with translate({OSError: refuse}):
        folder = os.path.dirname(os.path.abspath(output))
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".dockerbuild-", delete=False) as file:
            try:
                write_bundle(records, file, finalize=finalize)  # type: ignore[arg-type]  # what open() gives
                file.flush()
                os.replace(file.name, output)
            except BaseException:
                os.unlink(file.name)
                raise


@make_command("trace [OPTIONS] [REF]", args=(0, 1))
@flag("--addr", default="127.0.0.1:0", help="Address to bind the UI server")
@flag("--compare", help="Compare with another build record")
def trace(globals_: Globals, args: tuple[str, ...], addr: str, compare: str | None) -> None:
    """Show the OpenTelemetry trace of a build record"""
    import json

    group = chosen_builder(globals_)
    shown = _trace(group, args[0] if args else "")
    if compare is None and not sys.stdout.isatty():
        sys.stdout.write(json.dumps(shown, indent=2, ensure_ascii=False) + "\n")
        return
    from crossdock.builders.desktop import open_url
    from crossdock.cli.interrupt import interruptible
    from crossdock.cli.traceviewer import TraceViewer
    from crossdock.errors import BuilderError, Cancelled

    traces = [_trace(group, compare)] if compare is not None else []
    viewer = TraceViewer(addr, {t["data"][0]["traceID"]: t for t in [*traces, shown]})
    sys.stderr.write(f"Trace available at {viewer.url}\n")
    with contextlib.suppress(Cancelled), interruptible(plugin=globals_.plugin) as cancel:
        with contextlib.suppress(BuilderError, NotSupported):
            open_url(viewer.url)  # where there is no browser, its address was told
        viewer.serve(cancel)


def _trace(group: NodeGroup, ref: str) -> dict[str, Any]:
    """Return the trace of a finished build. Raises: BuilderError when there is none."""
    from crossdock.builders.records import find_one
    from crossdock.builders.tracejson import jaeger_trace
    from crossdock.buildkit.history import finalize_record, read_blob
    from crossdock.errors import BuilderError

    found = find_one(group, ref)
    if found.record.completed_ns is None:
        summary = f"build {found.record.ref} is not completed: only completed builds have a trace"
        raise BuilderError(summary, hint="wait for its end, or name another")
    with found.client() as client:
        if found.record.trace is None:
            # A daemon writes it some seconds after the build, or when it is told to.
            finalize_record(client, found.record.ref)
            found = find_one(group, found.ref)
        if found.record.trace is None:
            summary = f"build {found.record.ref} has no trace"
            raise BuilderError(summary, hint="a daemon keeps traces of finished builds, from v0.11 on")
        raw = b"".join(read_blob(client, found.record.trace))
    converted = jaeger_trace(raw)
    if not converted["data"]:
        summary = f"the trace of build {found.record.ref} is empty"
        raise BuilderError(summary)
    return converted
