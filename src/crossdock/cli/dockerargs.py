"""Docker's global flags, as the docker CLI passes them to its plugins.

The plugin gets docker's whole command line: ``--context x buildx build .``. What the flags mean for us is expressed
in the environment variables that docker itself reads, so the rest of the program has one place to look.

Spec: docker/cli ``cli/flags/options.go``, ``cli-plugins/plugin/plugin.go``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crossdock.errors import UsageError

if TYPE_CHECKING:
    from crossdock.cli.command import Globals

__all__ = ["split_docker_args"]

_VALUE_FLAGS = {
    "--config": "DOCKER_CONFIG",
    "--context": "DOCKER_CONTEXT",
    "-c": "DOCKER_CONTEXT",
    "--host": "DOCKER_HOST",
    "-H": "DOCKER_HOST",
    "--log-level": "",
    "-l": "",
    "--tlscacert": "CROSSDOCK_DOCKER_TLS_CA",
    "--tlscert": "CROSSDOCK_DOCKER_TLS_CERT",
    "--tlskey": "CROSSDOCK_DOCKER_TLS_KEY",
}
_SWITCHES = {"--tls": "DOCKER_TLS", "--tlsverify": "DOCKER_TLS_VERIFY"}


def split_docker_args(args: list[str], globals_: Globals) -> list[str]:
    """Consume docker's flags up to ``buildx``; return what belongs to us.

    Raises: UsageError when the word ``buildx`` does not come.
    """
    at = 0
    while at < len(args):
        arg = args[at]
        name, equals, value = arg.partition("=")
        if arg == "buildx":
            return args[at + 1 :]
        if name in ("-D", "--debug"):
            globals_.debug = value not in ("false", "0")
        elif name in _SWITCHES:
            os.environ[_SWITCHES[name]] = "" if value in ("false", "0") else "1"
        elif name in _VALUE_FLAGS:
            if not equals:
                at += 1
                value = args[at] if at < len(args) else ""
            if _VALUE_FLAGS[name]:
                os.environ[_VALUE_FLAGS[name]] = value
        elif not arg.startswith("-"):
            break
        at += 1
    summary = "this is the docker CLI plugin `buildx`: run it as `docker buildx`"
    raise UsageError(summary, hint="or run `crossdock` itself")
