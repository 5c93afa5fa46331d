"""Make and change stored builders.

Spec: docker/buildx ``builder/builder.go`` (Create, Leave), ``util/confutil/container.go`` (LoadConfigFiles).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crossdock.builders.change import NodeChange
from crossdock.builders.drivers.table import driver_spec
from crossdock.builders.embedded.settings import STEP_OPTIONS, step_settings
from crossdock.builders.model import NodeGroup
from crossdock.builders.select import EMBEDDED, check_new_name, default_driver
from crossdock.builders.store import BuilderStore
from crossdock.errors import BuilderError

if TYPE_CHECKING:
    from crossdock.builders.store import Transaction

__all__ = ["CreateOptions", "create", "leave"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateOptions:
    """What ``create`` was asked for; empty = choose."""

    name: str = ""
    driver: str = ""
    node: str = ""
    platforms: tuple[str, ...] = ()
    #: docker context, or address of an engine or of BuildKit
    endpoint: str = ""
    driver_opts: dict[str, str] | None = None
    daemon_flags: list[str] | None = None
    #: path of a buildkitd.toml
    daemon_config: str = ""
    #: add a node to an existing builder
    append: bool = False
    #: make it the current builder
    use: bool = False


def create(options: CreateOptions) -> NodeGroup:
    """Make a builder, or change or add a node of an existing one; stores it.

    Raises: BuilderError, UsageError (platforms).
    """
    from crossdock.builders.dockerconfig import current_endpoint_key

    if options.append and not options.name:
        summary = "append requires a builder name"
        raise BuilderError(summary)
    if not options.append and options.name:
        check_new_name(options.name)
    with BuilderStore().transaction() as txn:
        name = options.name or _random_name(txn)
        group = txn.get(name)
        driver = _driver_of(options, group)
        _check_existing(options, group, name, driver)
        if group is None:
            group = NodeGroup(name=name, driver=driver)
        endpoint, given = _endpoint(options, driver, group)
        _check_single_node(options, group, driver)
        change = NodeChange(
            name=options.node,
            endpoint=endpoint,
            endpoint_given=given,
            platforms=options.platforms,
            driver_opts=_checked_driver_opts(options, driver),
            flags=_daemon_flags(options, driver),
            files=_config_files(options, driver),
        )
        group.update(change, append=options.append)
        txn.save(group)
        if options.use:
            txn.set_current(current_endpoint_key(), group.name)
    return group


def leave(name: str, node: str) -> None:
    """Remove a node of a stored builder.

    Raises: BuilderError.
    """
    with BuilderStore().transaction() as txn:
        group = txn.get(name)
        if group is None:
            summary = f"failed to find instance {name!r} for leave"
            raise BuilderError(summary)
        group.leave(node)
        txn.remove_node_state(group.name, node)
        txn.save(group)


def _driver_of(options: CreateOptions, group: NodeGroup | None) -> str:
    driver = options.driver
    if not driver and group is not None:
        driver = group.driver
    if not driver and not options.endpoint and os.environ.get("BUILDKIT_HOST"):
        driver = "remote"
    driver = driver or default_driver()
    if not driver_spec(driver).creatable:
        summary = f"additional instances of driver {driver!r} cannot be created"
        raise BuilderError(summary)
    return driver


def _check_existing(options: CreateOptions, group: NodeGroup | None, name: str, driver: str) -> None:
    if group is None:
        if options.append:
            summary = f"failed to find instance {options.name!r} for append"
            raise BuilderError(summary)
        return
    if not options.node and not options.append:
        summary = f"existing instance for {name!r} but no append mode"
        raise BuilderError(
            summary, hint="specify the node name with --node to change it, or --append to add a node"
        )
    if driver != group.driver:
        summary = f"existing instance for {name!r} but has mismatched driver {group.driver!r}"
        raise BuilderError(summary)


def _check_single_node(options: CreateOptions, group: NodeGroup, driver: str) -> None:
    if options.append and group.nodes and not driver_spec(driver).multi_node:
        summary = f"a builder with the driver {driver!r} has one node"
        raise BuilderError(summary, hint="it runs foreign platforms itself; --append is for remote nodes")


def _endpoint(options: CreateOptions, driver: str, group: NodeGroup) -> tuple[str, bool]:
    if driver == EMBEDDED:
        if options.endpoint:
            summary = f"the embedded driver takes no endpoint: {options.endpoint!r}"
            raise BuilderError(summary)
        return EMBEDDED, False
    if driver == "remote":
        return _remote_endpoint(options), True
    if driver == "kubernetes":
        from urllib.parse import urlencode

        if options.endpoint:
            summary = f"kubernetes driver does not support endpoint args {options.endpoint!r}"
            raise BuilderError(summary)
        node = options.node or f"{group.name}{len(group.nodes)}"
        query = urlencode({"deployment": node, "kubeconfig": os.environ.get("KUBECONFIG", "")})
        return f"kubernetes:///{group.name}?{query}", False
    return _docker_endpoint(options)


def _remote_endpoint(options: CreateOptions) -> str:
    endpoint = options.endpoint or os.environ.get("BUILDKIT_HOST", "")
    if not endpoint:
        summary = "no remote endpoint provided"
        raise BuilderError(summary, hint="give it as argument, for example tcp://host:1234")
    schemes = ("tcp", "unix", "ssh", "docker-container", "kube-pod", "npipe", "podman-container")
    if endpoint.partition("://")[0] not in schemes:
        summary = f"unrecognized url scheme: {endpoint}"
        raise BuilderError(summary, hint=f"schemes: {', '.join(schemes)}")
    return endpoint


def _docker_endpoint(options: CreateOptions) -> tuple[str, bool]:
    from crossdock.builders.dockerconfig import context_names, current_endpoint_key, endpoint_of

    wanted = options.endpoint
    if not wanted:
        return current_endpoint_key(), False
    if wanted in context_names():
        return (endpoint_of(wanted).host if wanted == "default" else wanted), True
    if "://" in wanted:
        return wanted, True
    summary = f"failed to parse endpoint {wanted}"
    raise BuilderError(summary, hint="give a docker context or an address such as tcp://host:2376")


def _daemon_flags(options: CreateOptions, driver: str) -> list[str] | None:
    spec = driver_spec(driver)
    flags = options.daemon_flags
    if not spec.takes_daemon_config and flags:
        summary = f"the driver {driver!r} does not support --buildkitd-flags"
        raise BuilderError(summary)
    if driver not in ("docker-container", "kubernetes"):
        return flags
    allowed = [f for f in flags or () if f.startswith("--allow-insecure-entitlement")]
    host_network = driver == "docker-container" and (options.driver_opts or {}).get("network") == "host"
    named = any("network.host" in f for f in flags or ())
    if (host_network and not named) or not (allowed or _config_allows_host(options)):
        return [*(flags or ()), "--allow-insecure-entitlement=network.host"]
    return flags


def _config_allows_host(options: CreateOptions) -> bool:
    path = options.daemon_config or _default_config()
    if not path:
        return False
    import tomllib

    try:
        with open(path, "rb") as file:
            data = tomllib.load(file)
    except tomllib.TOMLDecodeError as exc:
        summary = f"{path}: {exc}"
        raise BuilderError(summary) from exc
    return "network.host" in (data.get("insecure-entitlements") or ())


def _default_config() -> str:
    from crossdock.builders.store import store_dir

    path = os.path.join(store_dir(), "buildkitd.default.toml")
    return path if os.path.isfile(path) else ""


def _config_files(options: CreateOptions, driver: str) -> dict[str, bytes] | None:
    """Read the daemon's config; the certificate files that it names travel with it."""
    if not driver_spec(driver).takes_daemon_config:
        if options.daemon_config:
            summary = f"the driver {driver!r} does not support --buildkitd-config"
            raise BuilderError(summary)
        return None
    path = options.daemon_config or _default_config()
    if not path:
        return None
    from crossdock.builders.daemonconfig import load_config_files

    return load_config_files(path)


_EMBEDDED_OPTIONS = frozenset(["root", "default-load", "max-used-space", *STEP_OPTIONS])


def _checked_driver_opts(options: CreateOptions, driver: str) -> dict[str, str] | None:
    if driver == EMBEDDED:
        unknown = sorted(set(options.driver_opts or ()) - _EMBEDDED_OPTIONS)
        if unknown:
            summary = f"invalid driver option {unknown[0]} for embedded driver"
            raise BuilderError(summary, hint=f"options: {', '.join(sorted(_EMBEDDED_OPTIONS))}")
        step_settings(options.driver_opts or {}, {})
        if limit := (options.driver_opts or {}).get("max-used-space"):
            from crossdock.builders.values import parse_bytes

            parse_bytes(limit)
        root = (options.driver_opts or {}).get("root")
        if root is not None and options.driver_opts is not None:
            return {**options.driver_opts, "root": os.path.abspath(root)}
    return options.driver_opts


_ADJECTIVES = [
    "brave",
    "calm",
    "clever",
    "eager",
    "fair",
    "gentle",
    "happy",
    "keen",
    "kind",
    "lively",
    "lucid",
    "merry",
    "noble",
    "proud",
    "quick",
    "sharp",
]
_NOUNS = [
    "badger",
    "beacon",
    "comet",
    "delta",
    "ember",
    "falcon",
    "garnet",
    "harbor",
    "island",
    "juniper",
    "lantern",
    "meadow",
    "nebula",
    "otter",
    "pine",
]


def _random_name(txn: Transaction) -> str:
    import secrets

    for attempt in range(64):
        name = f"{secrets.choice(_ADJECTIVES)}_{secrets.choice(_NOUNS)}"
        name += str(secrets.randbelow(10)) if attempt else ""
        if txn.get(name) is None:
            return name
    summary = "failed to generate a free name"
    raise BuilderError(summary, hint="give --name")
