"""Platforms as ``ls`` and ``inspect`` show them.

Spec: docker/buildx ``commands/ls.go`` (truncPlatforms), ``util/platformutil`` (FormatInGroups).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.image.platform import Platform

__all__ = ["platform_words", "shorten"]

_MAJOR = (
    "linux/amd64",
    "linux/arm64",
    "linux/arm",
    "linux/ppc64le",
    "linux/s390x",
    "linux/riscv64",
    "linux/mips64",
)


def platform_words(fixed: Sequence[Platform], offered: Sequence[Platform]) -> list[str]:
    """Fixed platforms first, each marked with ``*``, then what else the node offers."""
    words = {str(p.normalised()): "*" for p in fixed}
    for platform in offered:
        words.setdefault(str(platform.normalised()), "")
    return [name + mark for name, mark in words.items()]


def shorten(words: Sequence[str], limit: int = 4) -> str:
    """Show at most ``limit`` architectures, variants folded: ``linux/amd64 (+3), linux/arm64, (2 more)``."""
    groups: dict[str, list[str]] = {}
    for word in words:
        groups.setdefault("/".join(word.rstrip("*").split("/")[:2]), []).append(word)
    order = [m for m in _MAJOR if m in groups] + sorted(set(groups) - set(_MAJOR))
    shown, count = [], 0
    for name in order[:limit]:
        members = groups[name]
        count += len(members)
        mark = "*" if any(m.endswith("*") for m in members) else ""
        shown.append(members[0] if len(members) == 1 else f"{name}{mark} (+{len(members)})")
    if len(words) > count:
        shown.append(f"({len(words) - count} more)")
    return ", ".join(shown)
