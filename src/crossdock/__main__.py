"""The ``crossdock`` command, and the ``docker-buildx`` CLI plugin.

The plugin handshake (``docker-cli-plugin-metadata``) is answered before anything heavy is imported: the docker CLI
asks every plugin on every ``docker --help``.

Spec: docker/cli ``cli-plugins/metadata``.
"""

import gc
import os
import sys

__all__ = ["main", "plugin_main"]

_METADATA_COMMAND = "docker-cli-plugin-metadata"
_INTERRUPTED = 130
_METADATA = (
    '{"SchemaVersion":"0.1.0","Vendor":"Crossdock","Version":"v%s","ShortDescription":"Docker Buildx"}\n'
)


def main() -> int:
    """Run the command line of this process; returns the exit code."""
    args = sys.argv[1:]
    if args[:1] == [_METADATA_COMMAND]:
        return _print_metadata()
    _spare_collections()
    try:
        from crossdock.cli.main import run

        return _leave(run(args, program=sys.argv[0]))
    except KeyboardInterrupt:
        return _interrupted()


def plugin_main() -> int:
    """Run as the docker CLI's ``buildx`` plugin; returns the exit code."""
    args = sys.argv[1:]
    if args[:1] == [_METADATA_COMMAND]:
        return _print_metadata()
    _spare_collections()
    try:
        from crossdock.cli.main import run_plugin

        return _leave(run_plugin(args))
    except KeyboardInterrupt:
        return _interrupted()


def _interrupted() -> int:
    """Ctrl-C while there was nothing to undo: before the command began, or when it was over."""
    sys.stderr.write("ERROR: cancelled\n")
    return _INTERRUPTED


def _spare_collections() -> None:
    """Collect garbage less often than every 700 objects: importing makes 100,000, all to stay. Saves 10 ms."""
    gc.set_threshold(50_000, 20, 20)


def _leave(code: int) -> int:
    """End at once where nothing but the interpreter's own tidying is left to do, which takes 20 ms.

    All that must be undone is undone by context managers. Other threads still at work are waited for the long way.
    """
    threading = sys.modules.get("threading")
    if threading is None or threading.active_count() == 1:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError):
            return code
        os._exit(code)
    return code


def _print_metadata() -> int:
    from crossdock._version import __version__

    sys.stdout.write(_METADATA % __version__)
    return 0


if __name__ == "__main__":
    sys.exit(main())
