"""How a server works: what flags and configuration come down to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.record import Record

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from crossdock.engine.store.gc import GCPolicy
    from crossdock.image.platform import Platform
    from crossdock.registry.config import HostConfig
    from crossdock.server.listen import Address, ServerTls

__all__ = ["ServerOptions"]


class ServerOptions(Record):
    """Everything a server is told."""

    addresses: tuple[Address, ...]
    #: folder of the store
    root: Path
    tls: ServerTls | None = None
    #: group that may use the unix sockets
    gid: int | None = None
    #: entitlements that clients may grant to their builds
    entitlements: frozenset[str] = frozenset()
    labels: Mapping[str, str] = {}
    #: platforms to announce; none = what the machine can run
    platforms: tuple[Platform, ...] = ()
    #: steps at work at once; 0 chooses by the machine
    parallelism: int = 0
    #: ``None`` = BuildKit's rules for the disk; empty = never collect
    policies: tuple[GCPolicy, ...] | None = None
    registries: Mapping[str, HostConfig] = {}
    history_entries: int = 50
    history_age_s: float = 48 * 3600
    #: ``debug``, ``info``, ``warn`` or ``error``
    log_level: str = "info"
    #: ``text`` or ``json``
    log_format: str = "text"
    #: what has no effect here, to be logged
    notes: tuple[str, ...] = ()
