"""Options of the ``kubernetes`` driver (``create --driver-opt``).

Spec: docker/buildx ``driver/kubernetes/factory.go``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from crossdock.errors import UsageError
from crossdock.record import Record, field

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["KubeOptions", "workload_name"]

DEFAULT_IMAGE = "moby/buildkit:buildx-stable-1"
DEFAULT_ROOTLESS_IMAGE = "moby/buildkit:buildx-stable-1-rootless"
DEFAULT_QEMU_IMAGE = "tonistiigi/binfmt:latest"
PLATFORM_ANNOTATION = "buildx.docker.com/platform"

_QUANTITY = re.compile(r"[+-]?\d+(\.\d+)?(([KMGTPE]i)|[munkKMGTPE]|([eE][+-]?\d+))?\Z")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_TOLERATION_KEYS = ("key", "operator", "value", "effect", "tolerationSeconds")


def _quantity(text: str) -> str:
    if text and not _QUANTITY.match(text):
        raise ValueError
    return text


def _bool(text: str) -> bool:
    lowered = text.lower()
    if lowered not in ("true", "false", "1", "0", "t", "f"):
        raise ValueError
    return lowered in ("true", "1", "t")


def _pairs(text: str) -> dict[str, str]:
    out: dict[str, str] = {}
    for item in text.strip('"').split(","):
        key, equals, value = item.partition("=")
        if not equals or "=" in value:
            raise ValueError
        out[key] = value
    return out


def _tolerations(text: str) -> tuple[Mapping[str, Any], ...]:
    out = []
    for entry in text.split(";"):
        toleration: dict[str, Any] = {}
        for key, value in _pairs(entry).items():
            if key not in _TOLERATION_KEYS:
                raise ValueError
            toleration[key] = int(value) if key == "tolerationSeconds" else value
        out.append(toleration)
    return tuple(out)


def _balance(text: str) -> str:
    if text not in ("sticky", "random"):
        raise ValueError
    return text


def _seconds(text: str) -> float:
    parts = _DURATION.findall(text)
    if not parts or "".join(n + u for n, u in parts) != text:
        raise ValueError
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


_FIELDS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "image": ("image", str),
    "namespace": ("namespace", str),
    "replicas": ("replicas", int),
    "requests.cpu": ("requests_cpu", _quantity),
    "requests.memory": ("requests_memory", _quantity),
    "requests.ephemeral-storage": ("requests_ephemeral_storage", _quantity),
    "limits.cpu": ("limits_cpu", _quantity),
    "limits.memory": ("limits_memory", _quantity),
    "limits.ephemeral-storage": ("limits_ephemeral_storage", _quantity),
    "persistent-volume-claim.requests.storage": ("persistent_storage", _quantity),
    "buildkit-root-volume-memory": ("root_volume_memory", _quantity),
    "rootless": ("rootless", _bool),
    "schedulername": ("scheduler", str),
    "serviceaccount": ("service_account", str),
    "nodeselector": ("node_selector", _pairs),
    "annotations": ("annotations", _pairs),
    "labels": ("labels", _pairs),
    "tolerations": ("tolerations", _tolerations),
    "loadbalance": ("load_balance", _balance),
    "qemu.install": ("qemu_install", _bool),
    "qemu.image": ("qemu_image", lambda text: text or DEFAULT_QEMU_IMAGE),
    "default-load": ("default_load", _bool),
    "timeout": ("timeout_s", _seconds),
}


class KubeOptions(Record):
    """Parsed options; quantities are Kubernetes' own texts."""

    image: str = ""
    namespace: str = ""
    replicas: int = 1
    requests_cpu: str = ""
    requests_memory: str = ""
    requests_ephemeral_storage: str = ""
    limits_cpu: str = ""
    limits_memory: str = ""
    limits_ephemeral_storage: str = ""
    persistent_storage: str = ""
    root_volume_memory: str = ""
    rootless: bool = False
    scheduler: str = ""
    service_account: str = ""
    node_selector: Mapping[str, str] = field(default_factory=dict, hash=False)
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    load_balance: str = "sticky"
    qemu_install: bool = False
    qemu_image: str = DEFAULT_QEMU_IMAGE
    default_load: bool = False
    timeout_s: float = 120.0
    env: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def daemon_image(self) -> str:
        """The image of the daemon: the one given, or the default for root or rootless."""
        return self.image or (DEFAULT_ROOTLESS_IMAGE if self.rootless else DEFAULT_IMAGE)

    @classmethod
    def parse(cls, options: Mapping[str, str], *, builder: str) -> KubeOptions:
        """Parse what ``create`` stored.

        Raises: UsageError naming the option and what is wrong with it.
        """
        values: dict[str, Any] = {}
        env: dict[str, str] = {}
        for key, text in options.items():
            if key.startswith("env.") and len(key) > 4:
                env[key.removeprefix("env.")] = text
                continue
            if key not in _FIELDS:
                summary = f"builder {builder!r}: invalid driver option {key} for kubernetes driver"
                raise UsageError(summary, hint=f"options: {', '.join(sorted(_FIELDS))}, env.NAME")
            name, convert = _FIELDS[key]
            try:
                values[name] = convert(text)
            except ValueError as exc:
                summary = f"builder {builder!r}: invalid value {text!r} of driver option {key}"
                raise UsageError(summary) from exc
        parsed = cls(**values, env=env)
        if PLATFORM_ANNOTATION in parsed.annotations:
            summary = f"the annotation {PLATFORM_ANNOTATION!r} is reserved and cannot be customized"
            raise UsageError(summary)
        if "app" in parsed.labels:
            summary = "the label 'app' is reserved and cannot be customized"
            raise UsageError(summary)
        return parsed


def workload_name(node: str) -> str:
    """Return the name of a node's Deployment: the node's, fit for Kubernetes.

    Raises: UsageError when nothing fit remains.
    """
    name = re.sub(r"[^a-z0-9-]+", "-", node.lower().replace("_", "-")).strip("-")
    if not name:
        summary = f"the node name {node!r} gives no valid Kubernetes name"
        raise UsageError(summary)
    return name[:63].rstrip("-")
