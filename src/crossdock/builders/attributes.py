"""The attributes of a build that BuildKit's Dockerfile frontend and ours both read.

Spec: docker/buildx ``build/opt.go``; moby/buildkit ``frontend/dockerui``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossdock.builders.request import BuildRequest

__all__ = ["entitlements", "frontend_attributes"]


def frontend_attributes(request: BuildRequest) -> dict[str, str]:
    """Return the attributes that do not depend on where the build runs; contexts, attestations and exports are left out."""
    attrs = {f"build-arg:{k}": v for k, v in request.build_args.items()}
    attrs.update({f"label:{k}": v for k, v in request.labels.items()})
    simple = {
        "target": request.target,
        "platform": ",".join(map(str, request.platforms)),
        "add-hosts": ",".join(request.add_hosts),
        "shm-size": str(request.shm_size) if request.shm_size else "",
        "ulimit": ",".join(request.ulimits),
        "cgroup-parent": request.cgroup_parent,
        "image-resolve-mode": "pull" if request.pull else "",
        "multi-platform": "true" if request.multi_platform else "",
        "force-network-mode": request.network if request.network in ("host", "none") else "",
    }
    attrs.update({k: v for k, v in simple.items() if v})
    if request.no_cache:
        attrs["no-cache"] = ""
    elif request.no_cache_filter:
        attrs["no-cache"] = ",".join(request.no_cache_filter)
    return {**attrs, **_resources(request)} if request.resources else attrs


def _resources(request: BuildRequest) -> dict[str, str]:
    """The attributes of --resource are spelt without dashes, memory-swap shorter, and sizes are bytes."""
    return {
        key.replace("memory-swap", "memswap").replace("-", ""): _in_bytes(key, value)
        if key in ("memory", "memory-swap")
        else value
        for key, value in request.resources.items()
    }


def _in_bytes(key: str, value: str) -> str:
    from crossdock.builders.values import parse_bytes
    from crossdock.errors import UsageError

    try:
        return str(parse_bytes(value))
    except UsageError as exc:
        summary = f"resource {key}: {exc.summary}"
        raise UsageError(summary, hint=exc.hint) from exc


def entitlements(request: BuildRequest) -> tuple[str, ...]:
    """Return what the build is granted: what the client alone asks for left out, the host's network with ``--network``."""
    granted = [e for e in request.allow if not e.startswith("buildx.local")]
    if request.network == "host":
        granted.append("network.host")
    return tuple(dict.fromkeys(granted))
