"""BuildKit's frontend attributes (``build-arg:X``, ``platform``, ``context:name`` …) as conversion options.

Spec: moby/buildkit ``frontend/dockerui``; what buildx sends with a build.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from crossdock.dockerfile.contexts import HttpContext, InputContext, LocalContext, parse_context
from crossdock.dockerfile.convert.options import ConvertOptions
from crossdock.dockerfile.text import parse_bool
from crossdock.dockerfile.words import csv_fields
from crossdock.errors import NotSupported, UsageError
from crossdock.image.platform import local_platform, parse_platforms
from crossdock.llb.ops import HostIP, LinuxResources, NetMode, Ulimit
from crossdock.record import replace

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossdock.dockerfile.contexts import ContextSpec
    from crossdock.image.platform import Platform

__all__ = ["options_from_attrs"]

_NETWORKS = {"": NetMode.UNSET, "sandbox": NetMode.UNSET, "host": NetMode.HOST, "none": NetMode.NONE}
_RESOURCES = (
    # attribute, field, minimum; memory swap may also be -1
    ("memory", "memory", 1),
    ("memswap", "memory_swap", 1),
    ("cpushares", "cpu_shares", 1),
    ("cpuperiod", "cpu_period", 1),
    ("cpuquota", "cpu_quota", 1),
)


def options_from_attrs(
    attrs: Mapping[str, str],
    *,
    build_platforms: tuple[Platform, ...] = (),
    inputs: Mapping[str, InputContext] | None = None,
    session: str = "",
) -> ConvertOptions:
    """Read frontend attributes; unknown ones are ignored, as BuildKit does.

    ``inputs`` are the results that ``context:name=input:…`` and an input named ``context`` refer to.
    Raises: UsageError naming the attribute; NotSupported for what was removed from BuildKit.
    """
    inputs = inputs or {}
    build_args = _prefixed(attrs, "build-arg:")
    _refuse_removed(attrs, build_args)
    platforms = parse_platforms([attrs.get("platform", "")])
    return ConvertOptions(
        platforms=platforms,
        build_platforms=build_platforms or (local_platform(),),
        target=attrs.get("target", ""),
        build_args=build_args,
        labels=_prefixed(attrs, "label:"),
        main_context=_main_context(attrs, inputs),
        contexts=_contexts(attrs, inputs),
        no_cache=_no_cache(attrs),
        network=_network(attrs.get("force-network-mode", "")),
        extra_hosts=_extra_hosts(attrs.get("add-hosts", "")),
        shm_size=_number(attrs, "shm-size"),
        ulimits=_ulimits(attrs.get("ulimit", "")),
        cgroup_parent=attrs.get("cgroup-parent", ""),
        resources=_resources(attrs),
        hostname=build_args.get("BUILDKIT_SANDBOX_HOSTNAME") or attrs.get("hostname", ""),
        image_resolve_mode=_resolve_mode(attrs.get("image-resolve-mode", "")),
        multi_platform=_multi_platform(attrs, build_args, many=len(platforms) > 1),
        cache_namespace=build_args.get("BUILDKIT_CACHE_MOUNT_NS", ""),
        session=session,
    )


def _prefixed(attrs: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {k.removeprefix(prefix): v for k, v in attrs.items() if k.startswith(prefix)}


def _refuse_removed(attrs: Mapping[str, str], build_args: Mapping[str, str]) -> None:
    if attrs.get("override-copy-image"):
        summary = 'support for "override-copy-image" was removed in BuildKit 0.11'
        raise NotSupported(summary)
    try:
        disabled = parse_bool(build_args.get("BUILDKIT_DISABLE_FILEOP", "false"))
    except ValueError:
        disabled = False
    if disabled:
        summary = 'support for "BUILDKIT_DISABLE_FILEOP" build-arg was removed in BuildKit 0.11'
        raise NotSupported(summary)


def _main_context(attrs: Mapping[str, str], inputs: Mapping[str, InputContext]) -> ContextSpec | None:
    text = attrs.get(attrs.get("contextkey", "context"), "")
    if text:
        spec = parse_context(text) if "://" in text or "@" in text or text.startswith("github.com/") else None
        if spec is not None:
            return spec
    return inputs.get("context")


def _contexts(attrs: Mapping[str, str], inputs: Mapping[str, InputContext]) -> dict[str, ContextSpec]:
    out: dict[str, ContextSpec] = {}
    for name, text in _prefixed(attrs, "context:").items():
        if text.startswith("input:"):
            found = inputs.get(text.removeprefix("input:"))
            if found is None:
                summary = f"invalid input {text.removeprefix('input:')} for {name}"
                raise UsageError(summary)
            out[name] = found
            continue
        spec = parse_context(text)
        if isinstance(spec, LocalContext):
            spec = replace(spec, shared_key=attrs.get(f"sharedkey:localdir:{name}", ""))
        elif isinstance(spec, HttpContext):
            spec = replace(spec, archive=False)
        out[name] = spec
    return out


def _no_cache(attrs: Mapping[str, str]) -> tuple[str, ...] | None:
    text = attrs.get("no-cache")
    if text is None:
        return None
    return tuple(text.split(",")) if text else ()


def _network(text: str) -> NetMode:
    if text not in _NETWORKS:
        summary = f"invalid netmode {text}"
        raise UsageError(summary, hint="the network modes are default, none and host")
    return _NETWORKS[text]


def _fields(name: str, text: str) -> list[str]:
    try:
        return csv_fields(text) if text else []
    except ValueError as exc:
        summary = f"failed to parse {name}: {exc}"
        raise UsageError(summary) from None


def _extra_hosts(text: str) -> tuple[HostIP, ...]:
    out: list[HostIP] = []
    for field in _fields("additional hosts", text):
        host, equals, address = field.lower().partition("=")
        if not equals:
            summary = f"failed to parse additional hosts: invalid key-value pair {field}"
            raise UsageError(summary)
        try:
            out.append(HostIP(host, str(ipaddress.ip_address(address))))
        except ValueError:
            summary = f"failed to parse additional hosts: failed to parse IP {address}"
            raise UsageError(summary) from None
    return tuple(out)


def _number(attrs: Mapping[str, str], name: str) -> int:
    text = attrs.get(name, "")
    if not text:
        return 0
    try:
        return int(text)
    except ValueError:
        summary = f"failed to parse {name}: {text!r} is not a number"
        raise UsageError(summary) from None


def _ulimits(text: str) -> tuple[Ulimit, ...]:
    out: list[Ulimit] = []
    for field in _fields("ulimit", text):
        name, equals, values = field.partition("=")
        soft, colon, hard = values.partition(":")
        try:
            low = int(soft)
            high = int(hard) if colon else low
        except ValueError:
            equals = ""
            low = high = 0
        if not equals or not name or (low > high and high != -1):
            summary = f"failed to parse ulimit: invalid limit {field!r}"
            raise UsageError(summary, hint="write it as name=soft[:hard]")
        out.append(Ulimit(name, low, high))
    return tuple(out)


def _resources(attrs: Mapping[str, str]) -> LinuxResources | None:
    values: dict[str, int] = {}
    for attr, field, minimum in _RESOURCES:
        number = _number(attrs, attr)
        if not attrs.get(attr):
            continue
        if number < minimum and not (attr == "memswap" and number == -1):
            summary = f"failed to parse resource limits: invalid {attr} value: {number}: must be > 0"
            raise UsageError(summary)
        values[field] = number
    cpus, mems = attrs.get("cpusetcpus", ""), attrs.get("cpusetmems", "")
    for text in (cpus, mems):
        if text.strip("0123456789,-"):
            summary = f"failed to parse resource limits: invalid cpuset {text!r}"
            raise UsageError(summary, hint="write it as 0-2,4")
    if not values and not cpus and not mems:
        return None
    return LinuxResources(**values, cpuset_cpus=cpus, cpuset_mems=mems)


def _resolve_mode(text: str) -> str:
    if text not in ("", "default", "pull", "local"):
        summary = f"invalid image-resolve-mode: {text}"
        raise UsageError(summary)
    return text or "default"


def _multi_platform(attrs: Mapping[str, str], build_args: Mapping[str, str], *, many: bool) -> bool:
    text = build_args.get("BUILDKIT_MULTI_PLATFORM") or attrs.get("multi-platform", "")
    if not text:
        return many
    try:
        wanted = parse_bool(text)
    except ValueError:
        summary = f"invalid boolean value for multi-platform: {text}"
        raise UsageError(summary) from None
    if many and not wanted:
        summary = "conflicting config: returning multiple target platforms is not allowed"
        raise UsageError(summary)
    return wanted
