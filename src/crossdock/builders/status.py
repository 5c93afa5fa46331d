"""Ask the nodes of builders how they are: in parallel, within a time limit, errors as values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.builders.drivers.table import make_driver
from crossdock.cancel import CancelToken
from crossdock.errors import BuilderError, Cancelled, CrossdockError
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.builders.drivers.base import Driver, NodeInfo
    from crossdock.builders.model import Node, NodeGroup

__all__ = ["BuilderStatus", "NodeStatus", "load_status"]


class NodeStatus(NamedTuple):
    """A node with its driver and what it said; ``error`` when it could not be asked."""

    node: Node
    driver: Driver | None = None
    info: NodeInfo | None = None
    error: CrossdockError | None = None

    @property
    def status(self) -> str:
        """Status word for tables."""
        if self.error is not None:
            return "error"
        return self.info.status if self.info is not None else ""


class BuilderStatus(NamedTuple):
    """A builder with its nodes; ``error`` when no node could be asked at all."""

    group: NodeGroup
    nodes: tuple[NodeStatus, ...] = ()
    error: CrossdockError | None = None

    @property
    def inactive(self) -> bool:
        """Whether no node runs."""
        return not any(n.info is not None and n.info.status == "running" for n in self.nodes)


def load_status(groups: Sequence[NodeGroup], *, timeout_s: float, cancel: CancelToken) -> list[BuilderStatus]:
    """Ask all nodes of all builders; never raises for a node that does not answer."""
    found: dict[int, list[NodeStatus]] = {id(g): [] for g in groups}
    errors: dict[int, CrossdockError] = {}
    slow: list[tuple[NodeGroup, Node, Driver]] = []
    for group in groups:
        for node in group.nodes:
            try:
                driver = make_driver(group, node)
            except CrossdockError as exc:
                errors[id(group)] = exc
                break
            if group.driver == "embedded":
                found[id(group)].append(_ask(node, driver, cancel))
            else:
                slow.append((group, node, driver))
    for group, status in _ask_all(slow, timeout_s, cancel):
        found[id(group)].append(status)
    return [
        BuilderStatus(g, error=errors[id(g)]) if id(g) in errors else BuilderStatus(g, tuple(found[id(g)]))
        for g in groups
    ]


def _ask(node: Node, driver: Driver, cancel: CancelToken) -> NodeStatus:
    try:
        return NodeStatus(node, driver, driver.info(cancel))
    except Cancelled:
        raise
    except CrossdockError as exc:
        return NodeStatus(node, driver, error=exc)


def _ask_all(
    items: Sequence[tuple[NodeGroup, Node, Driver]], timeout_s: float, cancel: CancelToken
) -> list[tuple[NodeGroup, NodeStatus]]:
    """Ask remote nodes at once; those that are silent at the end of the time are told so."""
    if not items:
        return []
    import threading

    limit = CancelToken(cancel)
    timer = threading.Timer(
        timeout_s, lambda: limit.cancel(BuilderError(f"no answer within {timeout_s:g} seconds"))
    )
    timer.daemon = True
    answers: list[NodeStatus | None] = [None] * len(items)

    def ask(at: int, node: Node, driver: Driver) -> None:
        try:
            answers[at] = _ask(node, driver, limit)
        except Cancelled as exc:
            answers[at] = NodeStatus(node, driver, error=exc)

    threads = [
        threading.Thread(target=ask, args=(i, node, driver), daemon=True)
        for i, (_, node, driver) in enumerate(items)
    ]
    if timeout_s > 0:
        timer.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive() and not limit.cancelled:
            thread.join(0.05)
    timer.cancel()
    for thread in threads:
        thread.join(1.0)
    cancel.check()
    limit.close()
    silent = BuilderError(f"no answer within {timeout_s:g} seconds")
    return [
        (group, answers[i] or NodeStatus(node, driver, error=silent))
        for i, (group, node, driver) in enumerate(items)
    ]
