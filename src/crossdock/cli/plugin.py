"""``plugin``: put Crossdock in place as the docker CLI's ``buildx``.

The plugin is a small script, so that it starts as fast as Python does; it runs this installation.

Spec: docker/cli ``cli-plugins/manager`` (directories and their order).
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from crossdock.cli.command import Group, SubCommand, flag
from crossdock.cli.command import command as make_command
from crossdock.errors import ConfigError, translate
from crossdock.wholefile import write_whole

if TYPE_CHECKING:
    from crossdock.cli.command import Globals

__all__ = ["command", "install", "status", "uninstall"]

_NAME = "docker-buildx"
_MARK = b"# Crossdock as the docker CLI plugin"
_SYSTEM_DIRS = (
    "/usr/local/lib/docker/cli-plugins",
    "/usr/local/libexec/docker/cli-plugins",
    "/usr/lib/docker/cli-plugins",
    "/usr/libexec/docker/cli-plugins",
)
_MAX_SHEBANG = 127
_BODY = """{mark} `buildx`; made by `crossdock plugin install`.
import sys

sys.path[0:1] = {path!r}
from crossdock.__main__ import plugin_main

sys.exit(plugin_main())
"""

command = Group(
    "plugin",
    help="Install Crossdock as the docker CLI's buildx plugin",
    table={
        "install": SubCommand("crossdock.cli.plugin:install", "Put docker-buildx in place"),
        "status": SubCommand("crossdock.cli.plugin:status", "Show which buildx the docker CLI finds"),
        "uninstall": SubCommand("crossdock.cli.plugin:uninstall", "Remove docker-buildx"),
    },
    builder=False,
)


def _system_flag() -> object:
    return flag("--system", kind="bool", help="For all users, in /usr/local/lib/docker/cli-plugins")


@make_command("install [OPTIONS]", builder=False)
@flag("--force", kind="bool", help="Replace another buildx, keeping it as docker-buildx.orig")
@flag("--system", kind="bool", help="For all users, in /usr/local/lib/docker/cli-plugins")
def install(_globals: Globals, force: bool, system: bool) -> None:
    """Put docker-buildx in place"""
    path = _target(system=system)
    with translate({OSError: lambda exc: _refuse(path, exc)}):
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        if os.path.lexists(path) and not _is_ours(path):
            if not force:
                summary = f"{path} is another buildx"
                raise ConfigError(summary, hint="--force replaces it and keeps it as docker-buildx.orig")
            os.replace(path, path + ".orig")
        write_whole(path, _script().encode(), mode=0o755)
        os.chmod(path, 0o755)  # noqa: S103 - a program for everybody, whatever the umask
    sys.stdout.write(f"installed {path}\n")


@make_command("uninstall [OPTIONS]", builder=False)
@flag("--system", kind="bool", help="The one for all users, in /usr/local/lib/docker/cli-plugins")
def uninstall(_globals: Globals, system: bool) -> None:
    """Remove docker-buildx"""
    path = _target(system=system)
    if not os.path.lexists(path):
        sys.stdout.write(f"{path} does not exist\n")
        return
    if not _is_ours(path):
        summary = f"{path} is another buildx; it was left alone"
        raise ConfigError(summary)
    with translate({OSError: lambda exc: _refuse(path, exc)}):
        os.unlink(path)
        if os.path.lexists(path + ".orig"):
            os.replace(path + ".orig", path)
            sys.stdout.write(f"restored {path}\n")
            return
    sys.stdout.write(f"removed {path}\n")


@make_command("status", builder=False)
def status(_globals: Globals) -> None:
    """Show which buildx the docker CLI finds"""
    found = False
    for directory in _directories():
        path = os.path.join(directory, _NAME)
        if os.path.lexists(path):
            kind = "crossdock" if _is_ours(path) else "another buildx"
            sys.stdout.write(f"{path}: {kind}{'' if found else ' (in use)'}\n")
            found = True
    if not found:
        sys.stdout.write("docker has no buildx; `crossdock plugin install` puts Crossdock in place\n")


def _directories() -> list[str]:
    from crossdock.builders.dockerconfig import config_dir, load_config

    extra = load_config().get("cliPluginsExtraDirs") or []
    user = os.path.join(config_dir(), "cli-plugins")
    return [*map(str, extra), user, *_SYSTEM_DIRS]


def _target(*, system: bool) -> str:
    from crossdock.builders.dockerconfig import config_dir

    directory = _SYSTEM_DIRS[0] if system else os.path.join(config_dir(), "cli-plugins")
    return os.path.join(directory, _NAME)


def _is_ours(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return _MARK in file.read(4096)
    except OSError:
        return False


def _refuse(path: str, exc: BaseException) -> ConfigError:
    return ConfigError(f"cannot write {path}: {exc}", hint="leave out --system, or run as root")


def _script() -> str:
    """Return the plugin: run by this interpreter, finding this installation even where PYTHONPATH differs."""
    import crossdock

    package = os.path.dirname(os.path.dirname(os.path.abspath(crossdock.__file__)))
    # sys.path[0] would be docker's plugin directory; a package that site finds by itself needs nothing in its place.
    path = [] if _found_by_site(package) else [package]
    body = _BODY.format(mark=_MARK.decode(), path=path)
    python = sys.executable
    if " " in python or len(python) + 2 > _MAX_SHEBANG:
        return f'#!/bin/sh\n"exec" "{python}" "$0" "$@"\n{body}'
    return f"#!{python}\n{body}"


def _found_by_site(package: str) -> bool:
    import site

    places = [*site.getsitepackages(), site.getusersitepackages()]
    return os.path.realpath(package) in {os.path.realpath(p) for p in places}
