"""Run one command line: set up, dispatch, turn every outcome into text and an exit code.

Exit codes: 0 success, 1 failure (usage errors too, as buildx), 100 defect, 102 no space, 130 cancelled.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from crossdock.cli.declare import Globals
from crossdock.errors import Cancelled, CrossdockError, InternalError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import click

__all__ = ["run", "run_plugin"]

_EXIT_SIGPIPE = 141


def run(args: Sequence[str], *, program: str) -> int:
    """Run as a stand-alone command; called ``buildkitd`` or ``buildctl`` it stands in for those."""
    name = os.path.basename(program)
    if name in ("__main__.py", ""):
        name = "crossdock"
    if name == "buildctl":
        return _run_buildctl(args)
    if name == "buildkitd":
        if list(args) in (["--version"], ["-v"]):
            from crossdock.cli.buildctl import print_daemon_version

            return print_daemon_version()
        args, name = ["serve", *args], "crossdock"
    return _run(list(args), Globals(program=name, plugin=False))


def _run_buildctl(args: Sequence[str]) -> int:
    from crossdock.cli.buildctl import run as run_buildctl

    try:
        return run_buildctl(args)
    except CrossdockError as exc:
        return _report(exc, debug=False)


def run_plugin(args: Sequence[str]) -> int:
    """Run as ``docker buildx``: docker's own global flags come before the word ``buildx``."""
    from crossdock.cli.dockerargs import split_docker_args

    globals_ = Globals(program="docker buildx", plugin=True)
    try:
        rest = split_docker_args(list(args), globals_)
    except CrossdockError as exc:
        return _report(exc, debug=globals_.debug)
    return _run(rest, globals_)


def _run(args: list[str], globals_: Globals) -> int:
    try:
        code = _dispatch(args, globals_)
        sys.stdout.flush()
    except CrossdockError as exc:
        return _report(exc, debug=globals_.debug)
    except KeyboardInterrupt:
        return _report(Cancelled(), debug=False)
    except BrokenPipeError:
        # The reader went away: whatever is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return _EXIT_SIGPIPE
    except Exception as exc:  # noqa: BLE001 - the top of the process: the one place that must catch all
        return _report(_defect(exc), debug=globals_.debug)
    return code


#: commands whose plain lines are read without click, for the time that takes; see ``cli.declare``
_QUICK = frozenset(["build", "b"])


def _dispatch(args: list[str], globals_: Globals) -> int:
    if args and args[0] in _QUICK:
        from crossdock.cli.build import command
        from crossdock.cli.declare import read_plain

        line = read_plain(command, args[1:])
        if line is not None:
            globals_.debug = globals_.debug or line.debug
            if line.builder:
                globals_.builder, globals_.builder_from_flag = line.builder, True
            done = command.function(globals_, args=line.args, **line.values)
            return done if isinstance(done, int) else 0
    return _dispatch_by_click(args, globals_)


def _dispatch_by_click(args: list[str], globals_: Globals) -> int:
    import click

    from crossdock.cli.root import make_root

    root = make_root()
    try:
        with root.make_context(globals_.program, args, obj=globals_) as ctx:
            code = root.invoke(ctx)
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except click.Abort as exc:
        raise Cancelled from exc
    except click.ClickException as exc:
        raise _usage_error(exc) from exc
    return code if isinstance(code, int) else 0


def _usage_error(exc: click.ClickException) -> CrossdockError:
    import click

    ctx = getattr(exc, "ctx", None)
    hint = f"run '{ctx.command_path} --help' for more information" if ctx is not None else None
    if isinstance(exc, click.NoSuchOption):
        name = exc.option_name
        summary = (
            f"unknown flag: {name}" if name.startswith("--") else f"unknown shorthand flag: {name[1:]!r}"
        )
        if exc.possibilities:
            hint = f"did you mean {min(exc.possibilities)}?"
        return UsageError(summary, hint=hint)
    if isinstance(exc, click.BadOptionUsage) and "requires an argument" in exc.message:
        return UsageError(f"flag needs an argument: {exc.option_name}", hint=hint)
    return UsageError(exc.format_message(), hint=hint)


def _defect(exc: Exception) -> InternalError:
    error = InternalError(
        f"unexpected {type(exc).__name__}: {exc}",
        hint="this is a defect of crossdock; run again with --debug and report what it prints",
    )
    error.__cause__ = exc
    return error


def _report(error: CrossdockError, *, debug: bool) -> int:
    from crossdock.cli.render import render_error

    try:
        sys.stdout.flush()
        sys.stderr.write(render_error(error, debug=debug))
        sys.stderr.flush()
    except BrokenPipeError:
        return _EXIT_SIGPIPE
    return error.exit_code
