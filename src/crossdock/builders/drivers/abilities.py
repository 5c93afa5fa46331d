"""What a daemon can do, and the attributes and refusals that follow from it.

Spec: docker/buildx ``build/opt.go`` (attestations, several outputs, host-gateway), ``commands/prune.go``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crossdock.builders.values import csv_line
from crossdock.errors import BuilderError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.builders.drivers.plan import Plan
    from crossdock.builders.request import BuildRequest
    from crossdock.buildkit.client import WorkerInfo
    from crossdock.errors import CrossdockError

__all__ = [
    "attestation_attrs",
    "check_attestations",
    "check_classic",
    "check_frontend",
    "check_outputs",
    "check_policy",
    "check_prune",
    "explained",
    "extra_hosts",
]

_ATTESTATIONS = "exporter.image.attestations"
_SEVERAL = "exporter.multiple"
_POLICY = "source.policy"
_FREE_SPACE = "gc.freespacefilter"
_GATEWAY_LABEL = "org.mobyproject.buildkit.worker.moby.host-gateway-ip"
_CLASSIC_HINT = "use --builder embedded, or switch the Engine to the containerd image store"
#: cache types and the versions that have them
_CACHES = {"gha": "v0.10", "s3": "v0.11", "azblob": "v0.11"}
#: what is asked of frontends, and the versions whose own frontend does it
_FRONTEND_CAPS = {
    "contexts": ("named contexts", "v0.10"),
    "gitquerystring": ("Git URLs with a query", "v0.24"),
}
_DEFAULT_PROVENANCE = "mode=min,inline-only=true"


def attestation_attrs(request: BuildRequest, *, classic: bool) -> dict[str, str]:
    """Return the ``attest:*`` attributes: those asked for, and provenance unless it was switched off.

    A daemon that knows none of them ignores them; :func:`check_attestations` refuses what was asked for then.
    Raises: UsageError for the value of ``BUILDX_NO_DEFAULT_ATTESTATIONS``.
    """
    attrs = {
        f"attest:{kind}": csv_line(f"{k}={v}" for k, v in params.items())
        for kind, params in request.attests.items()
        if params is not None
    }
    if not classic and "provenance" not in request.attests and not _switched_off():
        attrs["attest:provenance"] = _DEFAULT_PROVENANCE
    return attrs


def check_attestations(request: BuildRequest, caps: frozenset[str], *, classic: bool, name: str) -> None:
    """Refuse attestations that were asked for and cannot be made. Raises: BuilderError."""
    kinds = ", ".join(sorted(kind for kind, params in request.attests.items() if params is not None))
    if kinds and classic:
        summary = f"the Docker Engine's classic image store cannot keep attestations ({kinds})"
        raise BuilderError(summary, hint=_CLASSIC_HINT)
    if kinds and _ATTESTATIONS not in caps:
        raise _too_old(name, f"attestations ({kinds})", "v0.11")


def _switched_off() -> bool:
    text = os.environ.get("BUILDX_NO_DEFAULT_ATTESTATIONS", "")
    if text.lower() not in ("", "0", "f", "false", "1", "t", "true"):
        summary = f"invalid BUILDX_NO_DEFAULT_ATTESTATIONS {text!r}: not a boolean"
        raise UsageError(summary)
    return text.lower() in ("1", "t", "true")


def check_outputs(count: int, caps: frozenset[str], *, name: str) -> None:
    """Refuse several outputs where the daemon makes one. Raises: BuilderError."""
    if count > 1 and _SEVERAL not in caps:
        raise _too_old(name, f"{count} outputs of one build", "v0.13")


def check_policy(request: BuildRequest, caps: frozenset[str], *, name: str) -> None:
    """Refuse a source policy that the daemon would ignore. Raises: BuilderError."""
    if request.source_policy is not None and _POLICY not in caps:
        raise _too_old(name, "source policies", "v0.11")


def check_classic(request: BuildRequest) -> None:
    """Refuse what a Docker Engine's classic image store cannot do. Raises: BuilderError."""
    if len(request.platforms) > 1:
        summary = "the Docker Engine's classic image store cannot build several platforms at once"
        raise BuilderError(summary, hint=_CLASSIC_HINT)
    exported = [c.get("type", "registry") for c in request.cache_to if c.get("type") != "inline"]
    if exported:
        summary = f"the Docker Engine's classic image store cannot export a cache of type {exported[0]}"
        raise BuilderError(summary, hint=_CLASSIC_HINT)


def check_frontend(plan: Plan, caps: frozenset[str], *, name: str) -> None:
    """Refuse what a daemon's frontend is too old to be asked, and would ignore, unless it hands over to another frontend.

    Raises: BuilderError.
    """
    wanted = plan.attrs.get("frontend.caps", "")
    if not wanted or "frontend.caps" in caps or plan.frontend != "dockerfile.v0":
        return
    from crossdock.builders.localpaths import LocalFiles
    from crossdock.dockerfile.directives import detect_syntax

    text = LocalFiles(plan.directories).read_file(plan.attrs["filename"], local="dockerfile")
    if text is None or detect_syntax(text) is None:
        what, version = _FRONTEND_CAPS["contexts" if "contexts" in wanted else "gitquerystring"]
        raise _too_old(name, what, version)


def explained(exc: CrossdockError, *, name: str) -> BuilderError | None:
    """Return the clearer error of a refusal that means that the daemon is too old; ``None`` for any other."""
    for cap, (what, version) in _FRONTEND_CAPS.items():
        if f"unsupported frontend capability moby.buildkit.frontend.{cap}" in exc.summary:
            return _too_old(name, what, version)
    for kind, version in _CACHES.items():
        if f'cache exporter: "{kind}"' in exc.summary or f'cache importer: "{kind}"' in exc.summary:
            return _too_old(name, f"caches of type {kind}", version)
    return None


def check_prune(*, max_used_space: int, min_free_space: int, caps: frozenset[str], name: str) -> None:
    """Refuse limits that the daemon would ignore. Raises: BuilderError."""
    if (max_used_space or min_free_space) and _FREE_SPACE not in caps:
        what = "--max-used-space" if max_used_space else "--min-free-space"
        raise _too_old(name, what, "v0.17")


def _too_old(name: str, what: str, version: str) -> BuilderError:
    summary = f"{name}: the BuildKit daemon is too old for {what}"
    return BuilderError(summary, hint=f"BuildKit {version} or later is needed")


def extra_hosts(add_hosts: Sequence[str], workers: Sequence[WorkerInfo]) -> str:
    """Return the attribute of ``--add-host`` entries (``host:ip``, ``host=ip``, several addresses, IPv6 in brackets).

    ``host-gateway`` becomes the address that a Docker Engine tells.
    Raises: BuilderError where there is no such address; UsageError for a malformed entry.
    """
    pairs: list[str] = []
    host = ""
    for entry in add_hosts:
        name, separator, address = entry.partition("=" if "=" in entry else ":")
        if not separator or _is_address(entry):
            name, address = host, entry  # one more address of the host before
        host = name
        address = address.strip("[]")
        if address == "host-gateway":
            address = _gateway(host, workers)
        if not host or not _is_address(address):
            summary = f"invalid --add-host {entry!r}"
            raise UsageError(summary, hint="write host:ip, host=ip or host:host-gateway")
        pairs.append(f"{host}={address}")
    return ",".join(pairs)


def _gateway(host: str, workers: Sequence[WorkerInfo]) -> str:
    for worker in workers:
        address = worker.labels.get(_GATEWAY_LABEL, "")
        if _is_address(address):  # an Engine without a bridge tells none
            return address
    summary = "unable to derive the IP value for host-gateway: this builder's driver tells none"
    raise BuilderError(summary, hint=f"give an address: --add-host {host}:IP")


def _is_address(text: str) -> bool:
    from ipaddress import ip_address

    try:
        ip_address(text.strip("[]"))
    except ValueError:
        return False
    return True
