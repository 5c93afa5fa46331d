"""How a server works: what flags and configuration come down to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.errors import UsageError
from crossdock.record import Record

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from crossdock.engine.sandbox.cdi import CdiOptions
    from crossdock.engine.sandbox.etcfiles import Dns
    from crossdock.engine.store.gc import GCPolicy
    from crossdock.image.platform import Platform
    from crossdock.registry.config import HostConfig
    from crossdock.server.listen import Address, ServerTls

__all__ = ["FrontendRules", "ServerOptions"]


class FrontendRules(Record):
    """Which frontends clients may use."""

    #: of ``dockerfile.v0``, ``gateway.v0``
    disabled: tuple[str, ...] = ()
    #: repositories that frontends in images may come from; none = any
    repositories: tuple[str, ...] = ()

    def check(self, frontend: str, image: str = "") -> None:
        """Refuse what is not allowed. Raises: UsageError."""
        if frontend in self.disabled:
            summary = f"frontend {frontend} is switched off by the daemon's configuration"
            raise UsageError(summary)
        if not image or not self.repositories:
            return
        from crossdock.image.reference import parse_reference

        wanted = parse_reference(image).repository
        if not any(parse_reference(allowed).repository == wanted for allowed in self.repositories):
            summary = f"frontend image {wanted} is not among those that the daemon's configuration allows"
            raise UsageError(summary)


class ServerOptions(Record):
    """Everything a server is told."""

    addresses: tuple[Address, ...]
    #: folder of the store
    root: Path
    tls: ServerTls | None = None
    #: owner of the unix sockets, and group that may use them
    uid: int | None = None
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
    #: bytes the store may hold, also while a step writes; 0 for no limit
    max_used_space: int = 0
    registries: Mapping[str, HostConfig] = {}
    #: what steps get that ask for no network in particular: ``host`` or ``isolated``
    network: str = "host"
    #: resolver of steps in place of the machine's
    dns: Dns | None = None
    #: control group of steps that ask for none
    cgroup_parent: str = ""
    #: where devices for steps are described; ``None`` is where they usually are
    cdi: CdiOptions | None = None
    #: name or path of the OCI runtime; ``""`` finds one
    runtime: str = ""
    #: seconds without a sign of life after which an emulated step is ended; ``None`` never
    hang_deadline_s: float | None = None
    #: seconds after which platforms are looked for again; ``None`` never
    platforms_age_s: float | None = None
    frontends: FrontendRules = FrontendRules()
    history_entries: int = 50
    history_age_s: float = 48 * 3600
    #: ``debug``, ``info``, ``warn`` or ``error``
    log_level: str = "info"
    #: ``text`` or ``json``
    log_format: str = "text"
    #: what has no effect here, to be logged
    notes: tuple[str, ...] = ()
