"""Global arguments: platform arguments, ARGs before the first FROM, build arguments, proxies.

Spec: Dockerfile reference "ARG", "Automatic platform ARGs in the global scope", "Predefined ARGs".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.dockerfile.expand import ExpandError, expand
from crossdock.errors import DockerfileError
from crossdock.llb.ops import ProxyEnv

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from crossdock.dockerfile.convert.stage import Capture
    from crossdock.dockerfile.instructions.arg import Arg
    from crossdock.image.platform import Platform

__all__ = ["META_ONLY", "global_args", "platform_args", "proxy_env"]

#: arguments that steer SBOM scans and never reach the environment
META_ONLY = frozenset(["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"])

_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")


def platform_args(
    build: Platform, target: Platform, overrides: Mapping[str, str], stage: str
) -> dict[str, str]:
    """Return the predefined platform arguments."""
    plain_build = (
        str(build)
        if not build.os_version
        else "/".join(p for p in (build.os, build.architecture, build.variant) if p)
    )
    values = {
        "BUILDPLATFORM": plain_build,
        "BUILDOS": build.os,
        "BUILDOSVERSION": build.os_version,
        "BUILDARCH": build.architecture,
        "BUILDVARIANT": build.variant,
        "TARGETPLATFORM": str(target),
        "TARGETOS": target.os,
        "TARGETOSVERSION": target.os_version,
        "TARGETARCH": target.architecture,
        "TARGETVARIANT": target.variant,
        "TARGETSTAGE": stage or "default",
    }
    return {name: overrides.get(name, value) for name, value in values.items()}


def global_args(
    base: Mapping[str, str],
    declared: Sequence[Arg],
    build_args: Mapping[str, str],
    escape: str,
    capture: Capture | None = None,
) -> dict[str, str]:
    """Return the arguments that FROM can use.

    Raises: DockerfileError when a default cannot be expanded.
    """
    args = dict(base)
    for instruction in declared:
        for item in instruction.items:
            value = item.value
            used: tuple[str, ...] = ()
            if item.name in build_args:
                value = build_args[item.name]
            elif value is not None:
                try:
                    result = expand(value, args, escape=escape)
                except ExpandError as exc:
                    raise DockerfileError(str(exc), source=instruction.where) from None
                value, used = result.text, result.matched
            if value is not None:
                args.pop(item.name, None)
                args[item.name] = value
            if capture is not None:
                previous = capture.args.get(item.name)
                if item.name in used:
                    inherited = previous[3] if previous else ()
                    used = tuple(dict.fromkeys((*(n for n in used if n != item.name), *inherited)))
                capture.args[item.name] = (value or "", item.description, instruction.where, used)
    return args


def proxy_env(build_args: Mapping[str, str]) -> ProxyEnv | None:
    """Return the proxy settings among the build arguments; they stay out of history and cache."""
    found: dict[str, str] = {}
    for name in sorted(build_args):
        if name.lower() in _PROXIES:
            found[name.lower()] = build_args[name]
    return ProxyEnv(**found) if found else None
