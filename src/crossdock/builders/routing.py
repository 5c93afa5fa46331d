"""Which node builds what: every platform of a request goes to a node that offers it.

Spec: docker/buildx ``build/driver.go`` (node selection).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crossdock.errors import PlatformNotOffered
from crossdock.image.platform import local_platform, offers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.builders.drivers.base import Driver
    from crossdock.builders.model import Node, NodeGroup
    from crossdock.builders.request import BuildRequest
    from crossdock.builders.result import BuildResult
    from crossdock.cancel import CancelToken
    from crossdock.image.platform import Platform
    from crossdock.progress.events import EventSink

__all__ = ["check_fixed", "node_for_platform", "run_build", "with_default_outputs"]


def run_build(
    group: NodeGroup,
    nodes: Sequence[tuple[Node, Driver]],
    request: BuildRequest,
    sink: EventSink,
    cancel: CancelToken,
) -> BuildResult:
    """Route a request and run it.

    Platforms spread over several nodes are built at once and merged. Raises: PlatformNotOffered; what drivers raise.
    """
    request = _with_default_platform(group, with_default_outputs(group, request))
    if len(nodes) == 1:
        node, driver = nodes[0]
        check_fixed(group, node, request.platforms)
        return driver.build(request, sink, cancel)
    wanted = request.platforms or (local_platform(),)
    shares: dict[int, tuple[Driver, list[Platform]]] = {}
    known = _Known(sink, cancel)
    for platform in wanted:
        driver = _node_for(group, nodes, platform, known)
        shares.setdefault(id(driver), (driver, []))[1].append(platform)
    if len(shares) == 1:
        return next(iter(shares.values()))[0].build(request, sink, cancel)
    from crossdock.builders.merge import build_on_nodes

    return build_on_nodes([(d, tuple(ps)) for d, ps in shares.values()], request, sink, cancel)


def with_default_outputs(group: NodeGroup, request: BuildRequest) -> BuildRequest:
    """Without outputs, docker's own builder keeps the image, and one made with ``default-load`` loads it into docker."""
    if (
        request.outputs
        or request.call != "build"
        or os.environ.get("BUILDX_NO_DEFAULT_LOAD", "") in ("1", "true")
    ):
        return request
    from crossdock.builders.request import OutputSpec
    from crossdock.record import replace

    if group.driver == "docker":
        return replace(request, outputs=(OutputSpec(type="image"),))
    wanted = [(n.driver_opts or {}).get("default-load", "") in ("true", "1") for n in group.nodes]
    return replace(request, outputs=(OutputSpec(type="docker"),)) if any(wanted) else request


def _with_default_platform(group: NodeGroup, request: BuildRequest) -> BuildRequest:
    """Without ``--platform``, a builder with fixed platforms that lack this machine's builds its first one."""
    if request.platforms or len(group.nodes) != 1 or not group.nodes[0].platforms:
        return request
    here = local_platform()
    fixed = group.nodes[0].platforms
    if any(offers(p, here) for p in fixed):
        return request
    from crossdock.record import replace

    return replace(request, platforms=fixed[:1])


def check_fixed(group: NodeGroup, node: Node, platforms: Sequence[Platform]) -> None:
    """Refuse platforms outside those that the user fixed for a node.

    Raises: PlatformNotOffered naming them and how to get them.
    """
    if not node.platforms:
        return
    missing = [p for p in platforms if not any(offers(o, p) for o in node.platforms)]
    if missing:
        offered = ", ".join(map(str, node.platforms))
        summary = f"builder {group.name!r} does not offer {', '.join(map(str, missing))}: it was created for {offered}"
        wanted = ",".join(map(str, [*node.platforms, *missing]))
        raise PlatformNotOffered(
            summary,
            hint=f"use `create --name {group.name} --node {node.name} --platform {wanted}`, or another builder",
        )


class _Known:
    """What nodes offer, each asked once."""

    def __init__(self, sink: EventSink, cancel: CancelToken) -> None:
        self._sink = sink
        self._cancel = cancel
        self._platforms: dict[int, tuple[Platform, ...]] = {}

    def platforms(self, driver: Driver) -> tuple[Platform, ...]:
        """Everything a node can run, its own architecture first."""
        if id(driver) not in self._platforms:
            info = driver.info(self._cancel)
            if info.status != "running":
                driver.bootstrap(self._sink, self._cancel)
                info = driver.info(self._cancel)
            self._platforms[id(driver)] = info.platforms
        return self._platforms[id(driver)]


def node_for_platform(
    group: NodeGroup, nodes: Sequence[tuple[Node, Driver]], platform: Platform, cancel: CancelToken
) -> Driver:
    """Return the node that builds for a platform. Raises: PlatformNotOffered; what drivers raise."""
    from crossdock.progress.events import NullSink

    return _node_for(group, nodes, platform, _Known(NullSink(), cancel))


def _node_for(
    group: NodeGroup, nodes: Sequence[tuple[Node, Driver]], platform: Platform, known: _Known
) -> Driver:
    """Prefer a node that was given the platform, then one whose own it is, then one that can emulate it."""
    for node, driver in nodes:
        if any(offers(p, platform) for p in node.platforms):
            return driver
    offering = [d for _, d in nodes if any(offers(p, platform) for p in known.platforms(d))]
    for driver in offering:
        if known.platforms(driver)[0].architecture == platform.architecture:
            return driver
    if offering:
        return offering[0]
    summary = f"no node of builder {group.name!r} offers {platform}"
    raise PlatformNotOffered(summary, hint=f"`inspect {group.name} --bootstrap` lists what its nodes offer")
