"""What several commands share: finding the builder, prompts, notices, the timeout flag."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from crossdock.cli.declare import flag

if TYPE_CHECKING:
    from collections.abc import Callable

    from crossdock.api import Builder
    from crossdock.builders.model import NodeGroup
    from crossdock.builders.request import BuildRequest
    from crossdock.cli.declare import Globals

__all__ = ["chosen_builder", "confirm", "embedded_aware_builder", "enter_worker", "notice", "timeout_flag"]


def timeout_flag() -> Callable[[Any], Any]:
    """The ``--timeout`` of commands that ask builders how they are."""
    return flag(
        "--timeout",
        kind="duration",
        default="20s",
        help="Override the default timeout for loading builder status",
    )


def notice(text: str) -> None:
    """Tell the user something in one line."""
    sys.stderr.write(f"NOTICE: {text}\n")


def chosen_builder(
    globals_: Globals, name: str | None = None, *, request: BuildRequest | None = None
) -> NodeGroup:
    """Return the builder a command works on: its argument, ``--builder``, ``$BUILDX_BUILDER``, or the current one.

    Raises: BuilderError.
    """
    from crossdock.builders.select import current_builder, docker_or_built_in, find_builder

    wanted = name or globals_.builder
    if not wanted:
        return current_builder(plugin=globals_.plugin, notice=notice, request=request)
    if globals_.plugin and not name and not globals_.builder_from_flag and _is_docker_default(wanted):
        # `docker build` names its context's builder in $BUILDX_BUILDER: nobody chose it.
        return docker_or_built_in(notice, request)
    return find_builder(wanted)


def _is_docker_default(name: str) -> bool:
    from crossdock.builders.dockerconfig import current_context

    return name == current_context()


def embedded_aware_builder(globals_: Globals, request: BuildRequest | None = None) -> Builder:
    """Return the chosen builder; for an embedded one this process becomes the worker, so no thread may exist yet.

    Raises: BuilderError, SandboxError.
    """
    from crossdock.api import Builder
    from crossdock.builders.select import EMBEDDED

    builder = Builder(chosen_builder(globals_, request=request))
    if builder.driver == EMBEDDED:
        enter_worker()
    return builder


def enter_worker() -> None:
    """Move this process into the worker namespace.

    Raises: SandboxError.
    """
    from crossdock.engine.sandbox.worker import become_worker

    become_worker()


def confirm(question: str) -> bool:
    """Ask a yes/no question on the terminal; no is the default, and the answer of a closed input."""
    sys.stdout.write(f"{question} [y/N] ")
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
