"""What a build may be granted: an error that names the flag, before anything starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.errors import UsageError

if TYPE_CHECKING:
    from crossdock.builders.request import BuildRequest

__all__ = ["check_supported"]

_ENTITLEMENTS = frozenset(["network.host", "security.insecure", "device", "buildx.local.delete"])


def check_supported(request: BuildRequest) -> None:
    """Refuse what would otherwise be ignored. Raises: UsageError for an unknown entitlement."""
    for grant in request.allow:
        name = grant.partition("=")[0]
        if name not in _ENTITLEMENTS:
            summary = f"unknown entitlement {grant!r}"
            raise UsageError(summary, hint=f"entitlements: {', '.join(sorted(_ENTITLEMENTS))}")
