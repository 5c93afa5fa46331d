"""Which builder: by name, by choice, or by default.

- A name is a stored builder, the built-in ``embedded``, or a docker context.
- Without a name: the builder chosen with ``use``; else, for ``crossdock``, the built-in one; else, for the docker
  plugin, docker's own when its engine answers and this version has a driver for it, otherwise the built-in one with a
  notice.

Spec: docker/buildx ``store/storeutil/storeutil.go``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.builders.drivers.table import driver_spec
from crossdock.builders.model import Node, NodeGroup
from crossdock.builders.store import BuilderStore
from crossdock.errors import BuilderError

if TYPE_CHECKING:
    from collections.abc import Callable

    from crossdock.builders.request import BuildRequest
    from crossdock.builders.store import Transaction

__all__ = [
    "EMBEDDED",
    "built_in",
    "check_new_name",
    "current_builder",
    "default_driver",
    "docker_or_built_in",
    "find_builder",
    "list_all",
]

#: name of the built-in builder, and of its driver
EMBEDDED = "embedded"


def built_in() -> NodeGroup:
    """Return the builder that always exists."""
    node = Node(name=EMBEDDED, endpoint=EMBEDDED)
    return NodeGroup(name=EMBEDDED, driver=EMBEDDED, nodes=[node], built_in=True)


def find_builder(name: str, store: BuilderStore | None = None) -> NodeGroup:
    """Find a builder by name.

    Raises: BuilderError when there is none.
    """
    store = store or BuilderStore()
    if name == EMBEDDED:
        return built_in()
    if store.exists():
        with store.transaction() as txn:
            try:
                group = txn.get(name)
            except BuilderError:
                if _context_builder(name) is None:
                    raise
                group = None
        if group is not None:
            return group
    context = _context_builder(name)
    if context is None:
        summary = f"no builder {name!r} found"
        raise BuilderError(summary, hint="`ls` lists the builders, `create` makes one")
    return context


def _context_builder(name: str) -> NodeGroup | None:
    from crossdock.builders.dockerconfig import context_names

    if name not in context_names():
        return None
    node = Node(name=name, endpoint=name)
    return NodeGroup(name=name, driver="docker", nodes=[node], docker_context=True)


def current_builder(
    *,
    plugin: bool = False,
    notice: Callable[[str], None] | None = None,
    store: BuilderStore | None = None,
    request: BuildRequest | None = None,
) -> NodeGroup:
    """Return the builder to use when none was named; ``notice`` is told when docker's own was passed over.

    With a ``request``, docker's own is also passed over when its image store cannot do what is asked.
    """
    store = store or BuilderStore()
    if store.exists():
        from crossdock.builders.dockerconfig import current_endpoint_key

        with store.transaction() as txn:
            group = txn.current(current_endpoint_key())
        if group is not None:
            return group
    return docker_or_built_in(notice, request) if plugin else built_in()


def docker_or_built_in(
    notice: Callable[[str], None] | None = None, request: BuildRequest | None = None
) -> NodeGroup:
    """Prefer docker's own engine where it answers and can do what is asked."""
    from crossdock.builders.dockerconfig import current_context, endpoint_of
    from crossdock.builders.dockerengine import has_containerd_store, ping

    context = current_context()
    endpoint = endpoint_of(context)
    answer = ping(endpoint)
    if answer is None:
        why = "no Docker Engine answers"
    elif answer.builder_version == "1":
        why = "the Docker Engine has no BuildKit"
    elif request is not None and _is_demanding(request) and not has_containerd_store(endpoint):
        why = "the Docker Engine's image store holds one platform of an image and writes no OCI layouts"
    else:
        return _context_builder(context) or built_in()
    if notice is not None:
        notice(f"{why}: using the builder {EMBEDDED!r}")
    return built_in()


def _is_demanding(request: BuildRequest) -> bool:
    """Whether a build needs more than an engine with the classic image store can do."""
    from crossdock.image.platform import local_platform

    return (
        any(p != local_platform() for p in request.platforms)
        or any(o.type == "oci" or (o.type == "docker" and o.dest) for o in request.outputs)
        or any(c.get("type") != "inline" for c in request.cache_to)
        or any(v is not None for v in request.attests.values())
    )


def list_all(txn: Transaction) -> list[NodeGroup]:
    """All builders: stored ones, the built-in one, then docker contexts that no stored builder hides."""
    from crossdock.builders.dockerconfig import context_names

    stored = txn.list()
    names = {g.name for g in stored}
    builders = [*(g for g in stored if g.name != EMBEDDED), built_in()]
    for name in context_names():
        context = _context_builder(name) if name not in names else None
        if context is not None:
            builders.append(context)
    return sorted(builders, key=lambda g: (g.docker_context, g.built_in, g.name))


def check_new_name(name: str) -> None:
    """Refuse names that a stored builder must not have.

    Raises: BuilderError.
    """
    from crossdock.builders.dockerconfig import context_names

    if name in ("default", EMBEDDED):
        summary = f"{name} is a reserved name and cannot be used to identify builder instance"
        raise BuilderError(summary)
    if name in context_names():
        summary = f"instance name {name!r} already exists as context builder"
        raise BuilderError(summary)


def default_driver() -> str:
    """Choose the driver of a new builder: ``docker-container`` where an engine answers and it can be used."""
    if not driver_spec("docker-container").target:
        return EMBEDDED
    from crossdock.builders.dockerconfig import current_context, endpoint_of
    from crossdock.builders.dockerengine import ping

    return "docker-container" if ping(endpoint_of(current_context())) is not None else EMBEDDED
