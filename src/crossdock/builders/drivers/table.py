"""The drivers: one table, resolved on use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.errors import BuilderError, NotSupported
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from crossdock.builders.drivers.base import Driver
    from crossdock.builders.model import Node, NodeGroup

__all__ = ["DRIVERS", "DriverSpec", "driver_spec", "make_driver"]


class DriverSpec(NamedTuple):
    """What is known of a driver without importing it."""

    #: ``module:function(group, node) -> Driver``; empty while this version does not have it
    target: str
    #: a builder may have several nodes
    multi_node: bool = True
    #: ``create`` can make builders with it
    creatable: bool = True
    #: takes ``--buildkitd-flags`` and ``--buildkitd-config``
    takes_daemon_config: bool = True


DRIVERS: dict[str, DriverSpec] = {
    "embedded": DriverSpec(
        "crossdock.builders.drivers.embedded:make", multi_node=False, takes_daemon_config=False
    ),
    "docker": DriverSpec(
        "crossdock.builders.drivers.docker:make", multi_node=False, creatable=False, takes_daemon_config=False
    ),
    "docker-container": DriverSpec("crossdock.builders.drivers.docker_container:make"),
    "kubernetes": DriverSpec("crossdock.builders.drivers.kubernetes:make"),
    "remote": DriverSpec("crossdock.builders.drivers.remote:make", takes_daemon_config=False),
}


def driver_spec(name: str) -> DriverSpec:
    """Find a driver.

    Raises: BuilderError for an unknown name.
    """
    spec = DRIVERS.get(name)
    if spec is None:
        summary = f"failed to find driver {name!r}"
        raise BuilderError(summary, hint=f"drivers: {', '.join(DRIVERS)}")
    return spec


def make_driver(group: NodeGroup, node: Node) -> Driver:
    """Make the driver of one node.

    Raises: BuilderError for an unknown driver; NotSupported for one that this version cannot use.
    """
    spec = driver_spec(group.driver)
    if not spec.target:
        summary = (
            f"builder {group.name!r} uses the driver {group.driver!r}, which this version cannot use yet"
        )
        raise NotSupported(summary, hint="use the builder `embedded`: --builder embedded")
    from importlib import import_module

    module, _, attribute = spec.target.partition(":")
    try:
        make: Callable[[NodeGroup, Node], Driver] = getattr(import_module(module), attribute)
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] == "crossdock":
            raise
        summary = f"the driver {group.driver!r} needs the Python package {exc.name!r}"
        raise NotSupported(summary, hint="install it with: pip install 'crossdock[buildkit]'") from exc
    return make(group, node)
