"""Generated hosts and resolver files."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import pytest

from crossdock.engine.sandbox.etcfiles import Dns, hosts_text, resolv_text
from crossdock.errors import UsageError
from crossdock.llb.ops import HostIP

if TYPE_CHECKING:
    from pathlib import Path


def test_hosts_name_the_sandbox_and_the_extra_hosts() -> None:
    assert hosts_text("", (HostIP("db", "10.0.0.1"), HostIP("six", "[fe80::1]"))) == (
        "127.0.0.1\tlocalhost buildkitsandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n10.0.0.1\tdb\nfe80::1\tsix\n"
    )


def test_host_gateway_is_an_address_of_this_machine() -> None:
    line = hosts_text("h", (HostIP("me", "host-gateway"),)).splitlines()[-1]
    assert ipaddress.ip_address(line.split("\t")[0]).version == 4


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="invalid IP address 'nope' for extra host 'x'"):
        hosts_text("", (HostIP("x", "nope"),))


@pytest.mark.parametrize(
    ("host", "resolved", "with_host_network", "expected"),
    [
        pytest.param("nameserver 10.0.0.2\nsearch a\n", None, False, "nameserver 10.0.0.2\nsearch a\n", id="as the host's"),
        pytest.param("nameserver 127.0.0.53\n", "nameserver 9.9.9.9\n", False, "nameserver 9.9.9.9\n", id="what systemd-resolved asks"),
        pytest.param("nameserver 127.0.0.53\n", "nameserver 9.9.9.9\n", True, "nameserver 127.0.0.53\n", id="the stub, with the host's network"),
        pytest.param("nameserver ::1\nnameserver 127.0.0.1\n", None, False, "nameserver 8.8.8.8\nnameserver 8.8.4.4\n", id="loopback only: public ones"),
        pytest.param("options ndots:1\nnameserver 127.0.0.1\nnameserver 10.0.0.2\n", None, False, "options ndots:1\nnameserver 10.0.0.2\n", id="loopback among others is left out"),
        pytest.param(None, None, False, "nameserver 8.8.8.8\nnameserver 8.8.4.4\n", id="no file"),
        pytest.param("nameserver fe80::1%eth0\n", None, False, "nameserver fe80::1%eth0\n", id="an address with a zone"),
    ],
)  # fmt: skip
def test_resolver(
    tmp_path: Path, host: str | None, resolved: str | None, with_host_network: bool, expected: str
) -> None:
    for name, text in (("etc/resolv.conf", host), ("run/systemd/resolve/resolv.conf", resolved)):
        if text is not None:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
    assert resolv_text(host_network=with_host_network, root=tmp_path) == expected


def test_a_configured_resolver_wins_over_the_machines(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/resolv.conf").write_text("nameserver 127.0.0.1\ndomain old.example\noptions timeout:1\n")
    text = resolv_text(
        host_network=True, dns=Dns(nameservers=("192.0.2.1",), search=("new.example",)), root=tmp_path
    )
    assert text == "options timeout:1\nnameserver 192.0.2.1\nsearch new.example\n"


def test_a_configured_search_list_leaves_the_machines_servers(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/resolv.conf").write_text("nameserver 192.0.2.7\nsearch old.example\n")
    text = resolv_text(host_network=False, dns=Dns(search=("new.example",)), root=tmp_path)
    assert text.split("\n")[:2] == ["nameserver 192.0.2.7", "search new.example"]
