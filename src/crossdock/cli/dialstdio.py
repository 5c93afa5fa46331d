"""``dial-stdio``: this process' standard streams become a connection to a builder's BuildKit.

Spec: docker/buildx ``commands/dial_stdio.go``.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from crossdock.cli.command import command as make_command
from crossdock.cli.command import flag
from crossdock.cli.common import chosen_builder
from crossdock.errors import NotSupported

if TYPE_CHECKING:
    from crossdock.builders.drivers.buildkit import BuildKitDriver
    from crossdock.buildkit.transport import ByteStream
    from crossdock.cli.command import Globals

__all__ = ["command"]

_BLOCK = 256 * 1024


@make_command("dial-stdio [OPTIONS]")
@flag("--platform", help="Target platform: this is used for node selection")
@flag("--progress", default="none", help="Set type of progress output (auto, plain, rawjson, tty)")
def command(globals_: Globals, platform: str | None, progress: str) -> None:
    """Proxy current stdio streams to builder instance"""
    from crossdock.cli.interrupt import interruptible
    from crossdock.progress.display import Display, make_printer

    # Only this process' own words may come before the stream, and they go to stderr.
    with (
        interruptible(plugin=globals_.plugin) as cancel,
        Display(make_printer(progress, sys.stderr, phase="Booting")) as display,
    ):
        driver = _driver(globals_, platform or os.environ.get("DOCKER_DEFAULT_PLATFORM", ""))
        driver.prepare(display, cancel)
        stream = driver.dial()
        with cancel.waking(stream.close):
            _join(stream)
        cancel.check()


def _driver(globals_: Globals, platform: str) -> BuildKitDriver:
    from crossdock.builders.drivers.buildkit import BuildKitDriver
    from crossdock.builders.drivers.table import make_driver
    from crossdock.builders.routing import node_for_platform
    from crossdock.cancel import CancelToken
    from crossdock.image import parse_platform

    group = chosen_builder(globals_)
    nodes = [(node, make_driver(group, node)) for node in group.nodes]
    chosen = nodes[0][1]
    if platform and len(nodes) > 1:
        chosen = node_for_platform(group, nodes, parse_platform(platform), CancelToken())
    if not isinstance(chosen, BuildKitDriver):
        summary = f"builder {group.name!r} has no BuildKit to connect to"
        raise NotSupported(summary, hint="name another with --builder")
    return chosen


def _join(far: ByteStream) -> None:
    """Copy both ways until the daemon's side ends."""
    import threading

    def outward() -> None:
        try:
            while data := os.read(0, _BLOCK):
                far.sendall(data)
        except OSError:
            far.close()
            return
        far.shutdown_write()

    threading.Thread(target=outward, daemon=True, name="dial-stdin").start()
    try:
        while data := far.recv(_BLOCK):
            view = memoryview(data)
            while view:
                view = view[os.write(1, view) :]
    finally:
        far.close()
