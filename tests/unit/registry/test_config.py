"""How registries are reached, by rule and by file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from crossdock.errors import ConfigError
from crossdock.registry import HostConfig, RegistryConfig
from crossdock.registry.config import default_cert_dirs, is_loopback, split_host

if TYPE_CHECKING:
    from pathlib import Path


def config(tmp_path: Path, **hosts: HostConfig) -> RegistryConfig:
    return RegistryConfig(hosts=hosts, cert_dirs=[tmp_path])


@pytest.mark.parametrize(
    ("domain", "insecure", "schemes"),
    [
        ("example.com", False, ("https",)),
        ("example.com:5000", False, ("https",)),
        ("example.com", True, ("https", "http")),
        ("localhost:5000", False, ("http", "https")),
        ("127.0.0.1:5000", False, ("http", "https")),
        ("127.1.2.3", False, ("http", "https")),
        ("[::1]:5000", False, ("http", "https")),
        ("localhost:443", False, ("https", "http")),
        ("127.evil.com", False, ("https",)),
        ("docker.io", False, ("https",)),
    ],
)
def test_schemes(tmp_path: Path, domain: str, insecure: bool, schemes: tuple[str, ...]) -> None:
    (endpoint,) = config(tmp_path).endpoints(domain, pull=True, insecure=insecure)
    assert endpoint.schemes == schemes
    assert endpoint.tls.verify is not insecure


@pytest.mark.parametrize(("http", "schemes"), [(True, ("http",)), (False, ("https",))])
def test_a_given_scheme_wins(tmp_path: Path, http: bool, schemes: tuple[str, ...]) -> None:
    for domain in ("a.io", "localhost:5000"):
        given = RegistryConfig(hosts={domain: HostConfig(http=http)}, cert_dirs=[tmp_path])
        assert given.endpoints(domain, pull=True)[0].schemes == schemes


def test_docker_hub_has_another_address(tmp_path: Path) -> None:
    (endpoint,) = config(tmp_path).endpoints("docker.io", pull=True)
    assert (endpoint.domain, endpoint.host, endpoint.port) == ("docker.io", "registry-1.docker.io", None)


def test_mirrors_come_first_and_only_for_pulls(tmp_path: Path) -> None:
    hosts = {"docker.io": HostConfig(mirrors=("m.io:5000", "h.io/proxy/hub"))}
    given = RegistryConfig(hosts=hosts, cert_dirs=[tmp_path])
    pulls = given.endpoints("docker.io", pull=True)
    assert [(e.domain, e.address, e.prefix, e.mirror) for e in pulls] == [
        ("m.io:5000", "m.io:5000", "/v2", True),
        ("h.io", "h.io", "/v2/proxy/hub", True),
        ("docker.io", "registry-1.docker.io", "/v2", False),
    ]
    assert given.endpoints("docker.io", pull=False) == pulls[-1:]


def test_certificates_of_docker_s_directory(tmp_path: Path) -> None:
    folder = tmp_path / "localhost:5000"
    folder.mkdir()
    for name in ("ca.crt", "second.crt", "client.cert", "client.key", "README"):
        (folder / name).touch()
    (endpoint,) = config(tmp_path).endpoints("localhost:5000", pull=True)
    assert endpoint.tls.ca_files == (str(folder / "ca.crt"), str(folder / "second.crt"))
    assert endpoint.tls.client_pairs == ((str(folder / "client.cert"), str(folder / "client.key")),)
    assert endpoint.tls.places == (str(folder),)
    assert endpoint.schemes == ("https", "http")  # certificates say that it speaks TLS


@pytest.mark.parametrize("name", ["client.cert", "client.key"])
def test_half_a_pair_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.io").mkdir()
    (tmp_path / "a.io" / name).touch()
    with pytest.raises(ConfigError, match="beside it"):
        config(tmp_path).endpoints("a.io", pull=True)


def test_several_directories_add_up(tmp_path: Path) -> None:
    for base in ("one", "two"):
        (tmp_path / base / "a.io").mkdir(parents=True)
        (tmp_path / base / "a.io/ca.crt").touch()
    given = RegistryConfig(cert_dirs=[tmp_path / "one", tmp_path / "two"])
    assert len(given.tls_for("a.io").ca_files) == 2


def test_directories_of_the_environment(tmp_path: Path) -> None:
    dirs = [str(path) for path in default_cert_dirs({"HOME": "/h", "DOCKER_CONFIG": "/d"})]
    assert dirs[:2] == ["/d/certs.d", "/h/.docker/certs.d"]
    assert "/etc/docker/certs.d" in dirs


HOSTS_TOML = """
server = "https://a.io"
[host."https://mirror.io:5000"]
  capabilities = ["pull", "resolve"]
  ca = "ca.pem"
[host."http://plain.io/prefix"]
  capabilities = ["pull", "resolve"]
  override_path = true
  skip_verify = true
  client = [["c.pem", "k.pem"]]
[host."https://push.io"]
  capabilities = ["push"]
"""


def test_hosts_toml(tmp_path: Path) -> None:
    (tmp_path / "a.io").mkdir()
    (tmp_path / "a.io/hosts.toml").write_text(HOSTS_TOML)
    pulls = config(tmp_path).endpoints("a.io", pull=True)
    assert [(e.address, e.schemes, e.prefix) for e in pulls] == [
        ("mirror.io:5000", ("https",), "/v2"),
        ("plain.io", ("http",), "/prefix"),
        ("a.io", ("https",), "/v2"),
    ]
    assert pulls[0].tls.ca_files == (str(tmp_path / "a.io/ca.pem"),)
    assert not pulls[1].tls.verify
    assert pulls[1].tls.client_pairs == ((str(tmp_path / "a.io/c.pem"), str(tmp_path / "a.io/k.pem")),)
    assert [e.address for e in config(tmp_path).endpoints("a.io", pull=False)] == ["push.io"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("server = ", "hosts.toml"),
        ('[host."https://m.io"]\nheader = {x = "y"}', "'header' is not supported"),
        ('[host."ftp://m.io"]', "invalid host"),
        ('[host."https://m.io"]\nclient = [["a", "b", "c"]]', "'client' is not"),
    ],
)
def test_a_wrong_hosts_toml_is_named(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "a.io").mkdir()
    (tmp_path / "a.io/hosts.toml").write_text(text)
    with pytest.raises(ConfigError, match=why):
        config(tmp_path).endpoints("a.io", pull=True)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("a.io", ("a.io", None)),
        ("a.io:80", ("a.io", 80)),
        ("[::1]", ("::1", None)),
        ("[::1]:80", ("::1", 80)),
    ],
)
def test_splitting_addresses(address: str, expected: tuple[str, int | None]) -> None:
    assert split_host(address) == expected


@pytest.mark.parametrize("address", ["a.io:x", "a.io:99999", "a.io:"])
def test_wrong_addresses(address: str) -> None:
    with pytest.raises(ConfigError):
        split_host(address)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("a.localhost", False),
        ("128.0.0.1", False),
        ("127.a", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
