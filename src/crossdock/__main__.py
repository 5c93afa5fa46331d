"""The ``crossdock`` command, and the ``docker-buildx`` CLI plugin.

The plugin handshake (``docker-cli-plugin-metadata``) is answered before anything heavy is imported: the docker CLI
asks every plugin on every ``docker --help``.

Spec: docker/cli ``cli-plugins/metadata``.
"""

import sys

__all__ = ["main", "plugin_main"]

_METADATA_COMMAND = "docker-cli-plugin-metadata"
_METADATA = (
    '{"SchemaVersion":"0.1.0","Vendor":"Crossdock","Version":"v%s","ShortDescription":"Docker Buildx"}\n'
)


def main() -> int:
    """Run the command line of this process; returns the exit code."""
    args = sys.argv[1:]
    if args[:1] == [_METADATA_COMMAND]:
        return _print_metadata()
    from crossdock.cli.main import run

    return run(args, program=sys.argv[0])


def plugin_main() -> int:
    """Run as the docker CLI's ``buildx`` plugin; returns the exit code."""
    args = sys.argv[1:]
    if args[:1] == [_METADATA_COMMAND]:
        return _print_metadata()
    from crossdock.cli.main import run_plugin

    return run_plugin(args)


def _print_metadata() -> int:
    from crossdock._version import __version__

    sys.stdout.write(_METADATA % __version__)
    return 0


if __name__ == "__main__":
    sys.exit(main())
