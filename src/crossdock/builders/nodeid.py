"""The random id of this client, by which a daemon tells apart equally named contexts of different machines.

Spec: docker/buildx ``util/confutil/config.go`` (TryNodeIdentifier), ``build/opt.go`` (shared key).
"""

from __future__ import annotations

import contextlib
import os

from crossdock.builders.store import store_dir

__all__ = ["node_id", "shared_key"]


def node_id() -> str:
    """Return the id, made when there is none; empty where it cannot be kept."""
    path = os.path.join(store_dir(), ".buildNodeID")
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        pass
    made = os.urandom(8).hex()
    with contextlib.suppress(OSError):
        os.makedirs(store_dir(), mode=0o700, exist_ok=True)
        with open(path, "x", encoding="ascii") as file:
            file.write(made)
        return made
    return ""


def shared_key(context: str) -> str:
    """Return the key under which a daemon keeps a context between builds; buildx's own, so that both share it."""
    return f"{os.path.basename(os.path.abspath(context))}:{node_id()}"
