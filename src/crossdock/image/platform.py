"""Platforms: parsing, normalisation and matching, as containerd does them.

Spec: containerd/platforms ``platforms.go``, ``database.go``, ``compare.go``.
"""

from __future__ import annotations

import os
import re
from functools import cache

from crossdock.errors import UsageError
from crossdock.record import Record, replace

__all__ = [
    "Platform",
    "format_platforms",
    "local_platform",
    "match_order",
    "offers",
    "parse_platform",
    "parse_platforms",
]

_COMPONENT = re.compile(r"[A-Za-z0-9_.-]+\Z")
_KNOWN_OS = frozenset(
    [
        "aix",
        "android",
        "darwin",
        "dragonfly",
        "freebsd",
        "hurd",
        "illumos",
        "ios",
        "js",
        "linux",
        "nacl",
        "netbsd",
        "openbsd",
        "plan9",
        "solaris",
        "wasip1",
        "windows",
        "zos",
        "unknown",
    ]
)
_KNOWN_ARCH = frozenset(
    [
        "386",
        "amd64",
        "amd64p32",
        "arm",
        "armbe",
        "arm64",
        "arm64be",
        "ppc64",
        "ppc64le",
        "loong64",
        "mips",
        "mipsle",
        "mips64",
        "mips64le",
        "mips64p32",
        "mips64p32le",
        "ppc",
        "riscv",
        "riscv64",
        "s390",
        "s390x",
        "sparc",
        "sparc64",
        "wasm",
        "unknown",
    ]
)
#: names people and machines use -> (architecture, variant)
_ARCH_ALIASES: dict[str, tuple[str, str]] = {
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "x86": ("386", ""),
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv5l": ("arm", "v5"),
    "armv6l": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
    "armv8l": ("arm", "v7"),
    "powerpc64le": ("ppc64le", ""),
    "ppc64el": ("ppc64le", ""),
    "loongarch64": ("loong64", ""),
    "mips64el": ("mips64le", ""),
    "mipsel": ("mipsle", ""),
}


class Platform(Record, kw_only=False):
    """An operating system and architecture; values inside the program are normalised."""

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    def __str__(self) -> str:
        base = f"{self.os}({self.os_version})" if self.os_version else self.os
        return "/".join(part for part in (base, self.architecture, self.variant) if part)

    def normalised(self) -> Platform:
        """Return the canonical form: aliases resolved, default variants dropped (arm64/v8, amd64/v1)."""
        arch, variant = _normalise_arch(self.architecture, self.variant)
        os_name = _normalise_os(self.os)
        return replace(self, os=os_name, architecture=arch, variant=variant)

    def to_json(self) -> dict[str, object]:
        """Return the OCI descriptor's ``platform`` object, in Go's field order."""
        out: dict[str, object] = {"architecture": self.architecture, "os": self.os}
        if self.os_version:
            out["os.version"] = self.os_version
        if self.os_features:
            out["os.features"] = list(self.os_features)
        if self.variant:
            out["variant"] = self.variant
        return out

    @classmethod
    def from_json(cls, data: object) -> Platform:
        """Read an OCI ``platform`` object; missing parts become empty."""
        if not isinstance(data, dict):
            return cls("unknown", "unknown")
        features = data.get("os.features")
        return cls(
            os=str(data.get("os", "")),
            architecture=str(data.get("architecture", "")),
            variant=str(data.get("variant", "")),
            os_version=str(data.get("os.version", "")),
            os_features=tuple(map(str, features)) if isinstance(features, list) else (),
        )


def _normalise_os(name: str) -> str:
    lowered = name.lower()
    return "darwin" if lowered == "macos" else lowered


def _normalise_arch(arch: str, variant: str) -> tuple[str, str]:
    arch, variant = arch.lower(), variant.lower()
    if arch in _ARCH_ALIASES:
        alias, implied = _ARCH_ALIASES[arch]
        arch, variant = alias, (implied if alias != "arm64" and implied else variant)
    if arch == "386":
        return arch, ""
    if arch == "amd64":
        return arch, "" if variant == "v1" else variant
    if arch == "arm64":
        return arch, "" if variant in ("8", "v8", "v8.0") else variant
    if arch == "arm":
        if variant in ("", "7"):
            return arch, "v7"
        return arch, f"v{variant}" if variant in ("5", "6", "8") else variant
    return arch, variant


@cache
def local_platform() -> Platform:
    """Return the platform of this machine."""
    uname = os.uname()
    return Platform(uname.sysname, uname.machine).normalised()


def parse_platform(text: str) -> Platform:
    """Parse ``os[(version)]/arch[/variant]``, or one of the parts alone, or ``local``; normalised.

    Raises: UsageError when a part is malformed or unknown.
    """
    text = text.strip()
    if text == "local":
        return local_platform()
    parts = text.split("/")
    os_part, _, version = parts[0].partition("(")
    version = version.removesuffix(")")
    if len(parts) > 3 or not all(_COMPONENT.match(p) for p in (os_part, *parts[1:])):
        summary = f"invalid platform {text!r}"
        raise UsageError(
            summary, hint="write it as os/arch[/variant], for example linux/arm64 or linux/arm/v7"
        )
    here = local_platform()
    if len(parts) == 1:
        return _parse_single(os_part, version, here)
    variant = parts[2] if len(parts) == 3 else ""
    platform = Platform(os_part, parts[1], variant, version).normalised()
    if platform.os not in _KNOWN_OS or platform.architecture not in _KNOWN_ARCH:
        summary = f"unknown platform {text!r}: unknown operating system or architecture"
        raise UsageError(
            summary, hint="write it as os/arch[/variant], for example linux/arm64 or linux/arm/v7"
        )
    return platform


def _parse_single(word: str, version: str, here: Platform) -> Platform:
    os_name = _normalise_os(word)
    if os_name in _KNOWN_OS:
        if os_name == here.os:
            return replace(here, os_version=version)
        return Platform(os_name, here.architecture, here.variant, version)
    arch, variant = _normalise_arch(word, "")
    if arch in _KNOWN_ARCH:
        return Platform(here.os, arch, variant)
    summary = f"unknown operating system or architecture {word!r}"
    raise UsageError(summary, hint="write it as os/arch[/variant], for example linux/arm64 or linux/arm/v7")


def parse_platforms(values: tuple[str, ...] | list[str]) -> tuple[Platform, ...]:
    """Parse comma-separated lists, keeping order and dropping repeats.

    Raises: UsageError.
    """
    seen: dict[Platform, None] = {}
    for value in values:
        for item in value.split(","):
            if item.strip():
                seen.setdefault(parse_platform(item))
    return tuple(seen)


def format_platforms(platforms: tuple[Platform, ...]) -> str:
    """Join for display."""
    return ", ".join(map(str, platforms))


def match_order(wanted: Platform) -> tuple[Platform, ...]:
    """Return what satisfies ``wanted``, best first (containerd ``platformVector``).

    ``linux/arm/v7`` accepts v7, v6, v5; ``linux/amd64/v3`` accepts v3, v2, v1; ``linux/arm64/v9`` also v8 and
    32-bit arm is *not* a fallback for arm64 when an image is chosen for running under emulation.
    """
    wanted = wanted.normalised()
    base = replace(wanted, os_version="", os_features=())
    variant = wanted.variant
    if wanted.architecture == "arm" and re.fullmatch(r"v[5-9]", variant):
        return tuple(replace(base, variant=f"v{n}") for n in range(int(variant[1]), 4, -1))
    if variant and wanted.architecture == "amd64" and re.fullmatch(r"v[2-9]", variant):
        lower = tuple(replace(base, variant=f"v{n}") for n in range(int(variant[1]), 1, -1))
        return (*lower, replace(base, variant=""))
    if wanted.architecture == "arm64" and variant:
        return (base, replace(base, variant=""))
    return (base,)


def offers(offered: Platform, wanted: Platform) -> bool:
    """Whether a node that offers one platform offers the other too.

    64-bit ARM takes 32-bit ARM along, amd64 takes 386, and a variant takes the lower ones.
    Spec: containerd/platforms ``compare.go``, platformVector.
    """
    have, want = offered.normalised(), wanted.normalised()
    if have.os != want.os:
        return False
    if (have.architecture, want.architecture) in (("arm64", "arm"), ("amd64", "386")):
        return True
    return (
        any((want.architecture, want.variant) == (p.architecture, p.variant) for p in match_order(have))
        or have == want
    )
