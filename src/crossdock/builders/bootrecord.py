"""Whether an embedded builder was booted on this machine since it started, and what it found then.

The record is a cache of facts for ``ls`` and ``inspect``; removing it only makes the builder ``inactive``.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from crossdock._version import __version__
from crossdock.image.platform import Platform
from crossdock.record import NamedTuple
from crossdock.wholefile import write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BootRecord", "default_root", "has_records", "read_record", "remove_record", "write_record"]

_BOOT_ID = "/proc/sys/kernel/random/boot_id"


class BootRecord(NamedTuple):
    """What booting found."""

    platforms: tuple[Platform, ...]
    #: "platform: how it is run"
    notes: tuple[str, ...] = ()
    labels: Mapping[str, str] = {}


def default_root() -> str:
    """Directory of the store: ``$CROSSDOCK_ROOT``, ``/var/lib/crossdock`` for root, else below ``$XDG_DATA_HOME``."""
    explicit = os.environ.get("CROSSDOCK_ROOT")
    if explicit:
        return os.path.abspath(explicit)
    if os.geteuid() == 0:
        return "/var/lib/crossdock"
    data = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
    return os.path.join(data, "crossdock")


def _path(root: str, node: str) -> str:
    return os.path.join(root, "builders", f"{node}.json")


def _boot_id() -> str:
    try:
        with open(_BOOT_ID, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def read_record(root: str, node: str) -> BootRecord | None:
    """Return the record of a node, if it is of this boot and this version."""
    try:
        with open(_path(root, node), encoding="utf-8") as file:
            data = json.load(file)
        if data["boot"] != _boot_id() or data["version"] != __version__:
            return None
        platforms = tuple(Platform.from_json(p) for p in data["platforms"])
        return BootRecord(platforms, tuple(data["notes"]), dict(data["labels"]))
    except (OSError, ValueError, KeyError, TypeError):
        # A cache: what cannot be read counts as absent, and booting writes it anew.
        return None


def write_record(root: str, node: str, record: BootRecord) -> None:
    """Write the record of a node; atomic."""
    path = _path(root, node)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    body = {
        "boot": _boot_id(),
        "version": __version__,
        "platforms": [p.to_json() for p in record.platforms],
        "notes": list(record.notes),
        "labels": dict(record.labels),
    }
    write_whole(path, json.dumps(body).encode())


def has_records(root: str) -> bool:
    """Whether any node is on record as booted with this store: perhaps one of another user or configuration."""
    try:
        names = os.listdir(os.path.dirname(_path(root, "")))
    except OSError:
        return False
    return any(name.endswith(".json") for name in names)


def remove_record(root: str, node: str) -> None:
    """Forget that a node was booted."""
    try:
        os.unlink(_path(root, node))
    except FileNotFoundError:
        return
