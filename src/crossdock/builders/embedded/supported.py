"""What the embedded engine does not do yet: one clear error that names the flag, before anything starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.errors import NotSupported, UsageError
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from crossdock.builders.request import BuildRequest

__all__ = ["check_supported"]

_ENTITLEMENTS = frozenset(["network.host", "security.insecure", "buildx.local.delete"])


class _Refusal(NamedTuple):
    flag: str
    why: str


def check_supported(request: BuildRequest) -> None:
    """Refuse what would otherwise be ignored.

    Raises: NotSupported naming the flag; UsageError for an unknown entitlement.
    """
    for refusal in _refusals(request):
        summary = f"{refusal.flag} is not supported by the embedded builder yet: {refusal.why}"
        raise NotSupported(summary, hint="use a BuildKit builder for this build: --builder NAME")
    for grant in request.allow:
        name = grant.partition("=")[0]
        if name not in _ENTITLEMENTS:
            summary = f"unknown entitlement {grant!r}"
            raise UsageError(summary, hint=f"entitlements: {', '.join(sorted(_ENTITLEMENTS))}")


def _refusals(request: BuildRequest) -> list[_Refusal]:
    found: list[_Refusal] = []
    found += [
        _Refusal("--allow device", "it passes no devices into steps")
        for grant in request.allow
        if grant.partition("=")[0] == "device"
    ]
    return found
