"""HTTP proxies named by the environment.

Spec: the conventions of Go's ``golang.org/x/net/http/httpproxy``: lower-case names win, loopback is never
proxied, ``NO_PROXY`` holds hosts, domain suffixes, addresses, networks and ``*``. Both schemes are tunnelled.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from crossdock.errors import ConfigError
from crossdock.record import NamedTuple
from crossdock.secret import Secret

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from crossdock.registry.transport import Origin

__all__ = ["Proxy", "find_proxy"]

_MAX_HEAD = 16 * 1024


class Proxy(NamedTuple):
    """An HTTP proxy; ``login`` is ``user:password``."""

    host: str
    port: int
    login: Secret | None = None

    def tunnel(self, sock: socket.socket, origin: Origin, timeout_s: float) -> None:
        """Ask the proxy for a tunnel to ``origin`` over a connected socket.

        Raises: OSError when it refuses.
        """
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        lines = [f"CONNECT {host}:{origin.port} HTTP/1.1", f"Host: {host}:{origin.port}"]
        if self.login is not None:
            import base64  # few proxies ask

            lines.append("Proxy-Authorization: Basic " + base64.b64encode(self.login.reveal()).decode())
        sock.settimeout(timeout_s)
        sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            data = sock.recv(1)  # byte by byte: what follows the head belongs to TLS
            if not data or len(head) > _MAX_HEAD:
                msg = f"proxy {self.host}:{self.port} closed the connection"
                raise ConnectionError(msg)
            head += data
        parts = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
        if len(parts) < 2 or not parts[1].startswith("2"):
            answer = " ".join(parts[1:]) or "no HTTP answer"
            msg = f"proxy {self.host}:{self.port} refused the tunnel: {answer}"
            raise ConnectionError(msg)


def find_proxy(scheme: str, host: str, port: int, env: Mapping[str, str]) -> Proxy | None:
    """Return the proxy for an address, if the environment names one.

    Raises: ConfigError when the variable is not an ``http://`` URL.
    """
    name = f"{scheme}_proxy"
    value = env.get(name) or env.get(name.upper()) or ""
    if not value or _is_loopback(host):
        return None
    no_proxy = env.get("no_proxy") or env.get("NO_PROXY") or ""
    if any(_excludes(item.strip().lower(), host.lower(), port) for item in no_proxy.split(",")):
        return None
    try:
        url = urlsplit(value if "://" in value else f"http://{value}")
        proxy_port = url.port or 80
    except ValueError:
        url, proxy_port = urlsplit(""), 0
    if url.scheme != "http" or not url.hostname:
        summary = f"the proxy in {name.upper()} is not an http:// address"
        raise ConfigError(summary, hint=f"write it as {name.upper()}=http://host:port")
    login = None
    if url.username is not None:
        login = Secret(f"{unquote(url.username)}:{unquote(url.password or '')}")
    return Proxy(url.hostname, proxy_port, login)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    address = _address(host)
    return address is not None and address.is_loopback


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None


def _excludes(item: str, host: str, port: int) -> bool:
    if not item:
        return False
    if item == "*":
        return True
    address = _address(host)
    if "/" in item and address is not None:
        try:
            return address in ipaddress.ip_network(item, strict=False)
        except ValueError:
            return False
    name, colon, wanted_port = item.rpartition(":")
    if colon and wanted_port.isdigit() and _address(item) is None:
        if int(wanted_port) != port:
            return False
        item = name
    item = item.strip("[]").removeprefix("*")
    if item.startswith("."):
        return host.endswith(item)
    return host == item or host.endswith("." + item)
