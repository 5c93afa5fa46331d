"""``install`` and ``uninstall``: the old alias ``docker builder`` → ``buildx`` in docker's config.

Spec: docker/buildx ``commands/install.go``.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from crossdock.cli.command import command as make_command
from crossdock.errors import ConfigError, translate
from crossdock.wholefile import write_whole

if TYPE_CHECKING:
    from crossdock.cli.command import Globals

__all__ = ["install", "uninstall"]


@make_command("install", builder=False, hidden=True)
def install(_globals: Globals) -> None:
    """Install buildx as a 'docker builder' alias"""
    from crossdock.builders.dockerconfig import load_config

    config = load_config()
    config["aliases"] = {**(config.get("aliases") or {}), "builder": "buildx"}
    _save(config)


@make_command("uninstall", builder=False, hidden=True)
def uninstall(_globals: Globals) -> None:
    """Uninstall the 'docker builder' alias"""
    from crossdock.builders.dockerconfig import load_config

    config = load_config()
    aliases = dict(config.get("aliases") or {})
    if aliases.pop("builder", None) is None:
        return
    config["aliases"] = aliases
    if not aliases:
        del config["aliases"]
    _save(config)


def _save(config: dict[str, Any]) -> None:
    """Write docker's config as docker does: tab-indented, atomic, mode kept."""
    from crossdock.builders.dockerconfig import config_dir

    path = os.path.realpath(os.path.join(config_dir(), "config.json"))

    def refuse(exc: BaseException) -> ConfigError:
        return ConfigError(f"cannot write {path}: {exc}")

    with translate({OSError: refuse}):
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        mode = os.stat(path).st_mode & 0o777 if os.path.exists(path) else 0o600
        write_whole(path, json.dumps(config, indent="\t", ensure_ascii=False).encode(), mode=mode)
