"""What this client remembers of builds on BuildKit nodes, in buildx's files: where context and Dockerfile were.

A daemon's history names neither, so ``history`` of either program shows them from here.

Spec: docker/buildx ``localstate/localstate.go``: ``refs/<builder>/<node>/<ref>``.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from crossdock.builders.store import store_dir
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from crossdock.builders.request import BuildRequest

__all__ = ["LocalState", "read_state", "remove_state", "save_state"]


class LocalState(NamedTuple):
    """Of one build; empty where nothing is known."""

    context: str = ""
    dockerfile: str = ""


def _path(ref: str) -> str:
    return os.path.join(store_dir(), "refs", *ref.split("/"))


def save_state(ref: str, request: BuildRequest) -> None:
    """Remember a build, ``ref`` being ``builder/node/ref``; where that cannot be, only the remembering is lost."""
    context = request.context
    if context and context != "-" and "://" not in context and os.path.isdir(context):
        context = os.path.abspath(context)
    dockerfile = request.dockerfile
    if dockerfile and "://" not in dockerfile:
        dockerfile = os.path.abspath(dockerfile)
    state = {"Target": "default", "LocalPath": context, "DockerfilePath": dockerfile}
    path = _path(ref)
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(path, "w", encoding="utf-8", opener=_private) as file:
            json.dump(state, file)
    except OSError:
        return


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def read_state(ref: str) -> LocalState:
    """Return what is known of a build."""
    try:
        with open(_path(ref), encoding="utf-8") as file:
            data = json.load(file)
    except (OSError, ValueError):
        return LocalState()
    if not isinstance(data, dict):
        return LocalState()
    return LocalState(str(data.get("LocalPath") or ""), str(data.get("DockerfilePath") or ""))


def remove_state(ref: str) -> None:
    """Forget a build."""
    try:
        os.unlink(_path(ref))
    except OSError:
        return
