"""``/etc/resolv.conf`` and ``/etc/hosts`` of a step, as text.

Spec: moby/buildkit ``executor/oci/{resolvconf,hosts}.go``; resolv.conf(5).
"""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from crossdock.errors import UsageError
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.llb.ops import HostIP

__all__ = ["DEFAULT_HOSTNAME", "Dns", "hosts_text", "resolv_text"]

DEFAULT_HOSTNAME = "buildkitsandbox"
#: asked when the host names no server that a step could reach
_PUBLIC_SERVERS = ("8.8.8.8", "8.8.4.4")


class Dns(NamedTuple):
    """A resolver in place of the machine's; what is empty stays the machine's."""

    nameservers: Sequence[str] = ()
    options: Sequence[str] = ()
    search: Sequence[str] = ()


def hosts_text(hostname: str, extra: Sequence[HostIP]) -> str:
    """Return the hosts file; ``host-gateway`` becomes an address of this machine.

    Raises: UsageError for an address that is none.
    """
    lines = [
        f"127.0.0.1\tlocalhost {hostname or DEFAULT_HOSTNAME}",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        *(f"{_address(entry)}\t{entry.host}" for entry in extra),
    ]
    return "\n".join(lines) + "\n"


def _address(entry: HostIP) -> str:
    if entry.ip == "host-gateway":
        return _own_address()
    try:
        return str(ipaddress.ip_address(entry.ip.strip("[]")))
    except ValueError as exc:
        summary = f"invalid IP address {entry.ip!r} for extra host {entry.host!r}"
        raise UsageError(summary, hint="write --add-host name:1.2.3.4 or name:host-gateway") from exc


def _own_address() -> str:
    """Return the address this machine would reach others from; loopback when it has no route (nothing is sent)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def resolv_text(
    *, host_network: bool, nameserver: str = "", dns: Dns | None = None, root: Path = Path("/")
) -> str:
    """Return the resolver configuration for a step.

    With the host's network it is the host's own file. Otherwise systemd-resolved's stub is replaced by what it asks,
    and servers on loopback, which the step could not reach, are left out. With a ``nameserver``, which passes on to the
    host's, it is the only one. ``dns`` wins over all of this.
    """
    text = _read(root / "etc/resolv.conf")
    if dns is not None:
        text = _with_dns(text, dns)
        if dns.nameservers:
            return text
    if host_network and _servers(text):
        return text
    if nameserver:
        rest = [line for line in text.splitlines() if line.split()[:1] != ["nameserver"]]
        return "\n".join([*rest, f"nameserver {nameserver}"]) + "\n"
    if _servers(text) == ["127.0.0.53"]:
        text = _read(root / "run/systemd/resolve/resolv.conf") or text
    kept = [line for line in text.splitlines() if not _on_loopback(line)]
    if not any(line.split()[:1] == ["nameserver"] for line in kept):
        kept += [f"nameserver {server}" for server in _PUBLIC_SERVERS]
    return "\n".join(kept) + "\n"


def _with_dns(text: str, dns: Dns) -> str:
    """Return a configuration with what ``dns`` gives in place of what the machine's says of it."""
    given = {
        "nameserver": [f"nameserver {server}" for server in dns.nameservers],
        "search": [f"search {' '.join(dns.search)}"] if dns.search else [],
        "options": [f"options {' '.join(dns.options)}"] if dns.options else [],
    }
    # `domain` and `search` exclude each other: the last one counts.
    replaced = {name for name, lines in given.items() if lines} | ({"domain"} if dns.search else set())
    kept = [line for line in text.splitlines() if not replaced & set(line.split()[:1])]
    return "\n".join([*kept, *(line for lines in given.values() for line in lines)]) + "\n"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _servers(text: str) -> list[str]:
    rows = (line.split() for line in text.splitlines())
    return [row[1] for row in rows if len(row) > 1 and row[0] == "nameserver"]


def _on_loopback(line: str) -> bool:
    row = line.split()
    if len(row) < 2 or row[0] != "nameserver":
        return False
    try:
        return ipaddress.ip_address(row[1].partition("%")[0]).is_loopback
    except ValueError:
        return False
