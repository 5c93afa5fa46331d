"""Options of the ``docker-container`` driver (``create --driver-opt``).

Spec: docker/buildx ``driver/docker-container/factory.go``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from crossdock.errors import UsageError
from crossdock.record import Record, field

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["ContainerOptions"]

DEFAULT_IMAGE = "moby/buildkit:buildx-stable-1"
_SIZE = re.compile(r"(-?\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?\Z", re.IGNORECASE)
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def _size(text: str) -> int:
    match = _SIZE.match(text)
    if match is None:
        raise ValueError
    return int(float(match[1]) * _UNITS[match[2].lower()])


def _bool(text: str) -> bool:
    lowered = text.lower()
    if lowered not in ("true", "false", "1", "0"):
        raise ValueError
    return lowered in ("true", "1")


def _restart(text: str) -> str:
    if not re.fullmatch(r"no|always|unless-stopped|on-failure(:\d+)?", text):
        raise ValueError
    return text


_FIELDS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "image": ("image", str),
    "network": ("network", str),
    "memory": ("memory", _size),
    "memory-swap": ("memory_swap", _size),
    "cpu-period": ("cpu_period", int),
    "cpu-quota": ("cpu_quota", int),
    "cpu-shares": ("cpu_shares", int),
    "cpuset-cpus": ("cpuset_cpus", str),
    "cpuset-mems": ("cpuset_mems", str),
    "cgroup-parent": ("cgroup_parent", str),
    "restart-policy": ("restart", _restart),
    "default-load": ("default_load", _bool),
    "allow-untrusted-image": ("allow_untrusted_image", _bool),
    "provenance-add-gha": ("provenance_add_gha", _bool),
}


class ContainerOptions(Record):
    """Parsed options; sizes in bytes, times in microseconds."""

    image: str = DEFAULT_IMAGE
    network: str = ""
    memory: int = 0
    memory_swap: int = 0
    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_shares: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    cgroup_parent: str = ""
    restart: str = "unless-stopped"
    default_load: bool = False
    #: accepted for compatibility: image signatures are not checked
    allow_untrusted_image: bool = False
    provenance_add_gha: bool = True
    env: Mapping[str, str] = field(default_factory=dict, hash=False)

    @classmethod
    def parse(cls, options: Mapping[str, str], *, builder: str) -> ContainerOptions:
        """Parse what ``create`` stored.

        Raises: UsageError naming the option and what it takes.
        """
        values: dict[str, Any] = {}
        env: dict[str, str] = {}
        for key, text in options.items():
            if key.startswith("env."):
                env[key.removeprefix("env.")] = text
                continue
            if key not in _FIELDS:
                summary = f"builder {builder!r}: invalid driver option {key} for docker-container driver"
                raise UsageError(summary, hint=f"options: {', '.join(sorted(_FIELDS))}, env.NAME")
            name, convert = _FIELDS[key]
            try:
                values[name] = convert(text)
            except ValueError as exc:
                summary = f"builder {builder!r}: invalid value {text!r} of driver option {key}"
                raise UsageError(summary) from exc
        return cls(**values, env=env)

    def restart_policy(self) -> dict[str, Any]:
        """Return the Engine's object."""
        name, _, count = self.restart.partition(":")
        return {"Name": name, **({"MaximumRetryCount": int(count)} if count else {})}

    def limits(self) -> dict[str, Any]:
        """Return the limits that were given, by the Engine's names."""
        pairs = {
            "Memory": self.memory,
            "MemorySwap": self.memory_swap,
            "CpuPeriod": self.cpu_period,
            "CpuQuota": self.cpu_quota,
            "CpuShares": self.cpu_shares,
            "CpusetCpus": self.cpuset_cpus,
            "CpusetMems": self.cpuset_mems,
        }
        return {k: v for k, v in pairs.items() if v}
