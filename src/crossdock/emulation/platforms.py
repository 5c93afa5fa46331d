"""The platforms a machine offers, in the order and with the variants that buildx lists.

Spec: moby/buildkit ``util/archutil`` (which architectures, which variants); x86-64 psABI levels.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from crossdock.errors import EmulationError
from crossdock.image.platform import Platform, local_platform
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from crossdock.emulation.emulator import Emulator, Running

__all__ = ["LISTED", "Offer", "native_variants", "offered_platforms"]

#: what is listed beside the machine's own, in buildx's order
LISTED = (
    "amd64",
    "arm64",
    "riscv64",
    "ppc64",
    "ppc64le",
    "s390x",
    "386",
    "mips64le",
    "mips64",
    "loong64",
    "arm",
)
_ARM_VARIANTS = ("v7", "v6")
#: /proc/cpuinfo flags of each x86-64 level, beyond the one before
_AMD64_LEVELS = (
    ("v2", "cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3"),
    ("v3", "abm avx avx2 bmi1 bmi2 f16c fma movbe xsave"),
    ("v4", "avx512bw avx512cd avx512dq avx512f avx512vl"),
)
#: QEMU's default processor reaches level 3 since it has AVX2
_QEMU_AMD64_V3 = (7, 2)


class Offer(NamedTuple):
    """A platform and how it is run; ``problem`` when its probe failed."""

    platform: Platform
    running: Running | None
    problem: str = ""


def offered_platforms(emulator: Emulator, *, verify: bool = True) -> tuple[Offer, ...]:
    """List what can be run; with ``verify`` each architecture's probe is executed.

    An architecture without an emulator is left out; one whose probe fails is listed with the problem. Verifying takes
    some 10 ms per architecture.
    """
    here = local_platform()
    names = (here.architecture, *(name for name in LISTED if name != here.architecture))
    with ThreadPoolExecutor(max_workers=min(len(names), os.cpu_count() or 1)) as pool:
        found = list(pool.map(lambda name: _offer(emulator, name, verify=verify), names))
    offers: list[Offer] = []
    for name, offer in zip(names, found, strict=True):
        if offer is not None:
            running, problem = offer
            offers += [Offer(platform, running, problem) for platform in _variants(name, here, running)]
    return tuple(offers)


def _offer(emulator: Emulator, name: str, *, verify: bool) -> tuple[Running, str] | None:
    try:
        running = emulator.prepare(name)
        return running, emulator.probe(name).problem if verify else ""
    except EmulationError:
        return None


def _variants(name: str, here: Platform, running: Running) -> list[Platform]:
    if name == "arm":
        best = int(here.variant[1:] or 7) if here.architecture == "arm" else 7
        return [Platform("linux", "arm", variant) for variant in _ARM_VARIANTS if int(variant[1:]) <= best]
    if name == "amd64":
        levels = native_variants() if here.architecture == "amd64" else _emulated_levels(running)
        return [Platform("linux", "amd64", variant) for variant in ("", *levels)]
    return [Platform("linux", name, here.variant if name == here.architecture else "")]


def _emulated_levels(running: Running) -> tuple[str, ...]:
    version = running.emulator.version() if running.emulator is not None else ""
    numbers = tuple(map(int, version.split(".")[:2])) if version else (0,)
    return ("v2", "v3") if numbers >= _QEMU_AMD64_V3 else ("v2",)


def native_variants(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """Return the x86-64 levels above the base that this processor has."""
    flags: set[str] = set()
    with cpuinfo.open(encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("flags"):
                flags = set(line.partition(":")[2].split())
                break
    levels: list[str] = []
    for level, needed in _AMD64_LEVELS:
        if not flags.issuperset(needed.split()):
            break
        levels.append(level)
    return tuple(levels)
