"""What backends may use of the engine they serve."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from crossdock.cancel import CancelToken
    from crossdock.registry.client import RegistryClient

__all__ = ["Surroundings"]


class Surroundings(NamedTuple):
    """What there is around a backend."""

    client: Callable[[CancelToken], RegistryClient]
    #: folder for lock files, shared by all that use the store
    locks: Path
    environ: Mapping[str, str]
