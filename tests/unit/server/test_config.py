"""``buildkitd.toml``: what is read, what is noted, what is wrong and where."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from crossdock.errors import ConfigError
from crossdock.server.config import Config, parse_duration, parse_size, read_config

if TYPE_CHECKING:
    from pathlib import Path

FULL = """\
debug = true
root = "/var/lib/x"
insecure-entitlements = ["network.host", "security.insecure"]

[log]
  format = "json"

[grpc]
  address = ["tcp://0.0.0.0:1234", "unix:///run/x.sock"]
  gid = 12
  [grpc.tls]
    cert = "/c.pem"
    key = "/k.pem"
    ca = "/ca.pem"

[history]
  maxAge = 172800
  maxEntries = 5

[worker.oci]
  enabled = true
  platforms = ["linux/amd64", "linux/arm64"]
  snapshotter = "auto"
  max-parallelism = 3
  gc = true
  [worker.oci.labels]
    "com.example" = "value"
  [[worker.oci.gcpolicy]]
    reservedSpace = "512MB"
    keepDuration = "48h"
    filters = ["type==source.local"]
  [[worker.oci.gcpolicy]]
    all = true
    maxUsedSpace = "20%"

[worker.containerd]
  enabled = false

[registry."docker.io"]
  mirrors = ["mirror.example:5000/hub"]
  http = true
  insecure = true
  ca = ["/ca.pem"]
  [[registry."docker.io".keypair]]
    key = "/k.pem"
    cert = "/c.pem"
"""


def read(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "buildkitd.toml"
    path.write_text(text)
    return read_config(path, 1_000_000)


def test_a_full_file_is_read(tmp_path: Path) -> None:
    config = read(tmp_path, FULL)
    assert config.debug
    assert config.root == "/var/lib/x"
    assert config.entitlements == ("network.host", "security.insecure")
    assert config.log_format == "json"
    assert config.addresses == ("tcp://0.0.0.0:1234", "unix:///run/x.sock")
    assert config.gid == 12
    assert config.tls == {"cert": "/c.pem", "key": "/k.pem", "ca": "/ca.pem"}
    assert (config.history_age_s, config.history_entries) == (172800.0, 5)
    assert config.platforms == ("linux/amd64", "linux/arm64")
    assert config.parallelism == 3
    assert config.labels == {"com.example": "value"}
    assert config.policies is not None
    first, second = config.policies
    assert (first.reserved_space, first.keep_duration_s, first.filters) == (
        512_000_000,
        172800.0,
        ("type==source.local",),
    )
    assert (second.all, second.max_used_space) == (True, 200_000)
    hub = config.registries["docker.io"]
    assert (hub.mirrors, hub.http, hub.insecure) == (("mirror.example:5000/hub",), True, True)
    assert (hub.ca_files, hub.client_pairs) == (("/ca.pem",), (("/c.pem", "/k.pem"),))


def test_what_has_no_effect_is_noted_with_its_line(tmp_path: Path) -> None:
    config = read(tmp_path, FULL)
    path = tmp_path / "buildkitd.toml"
    assert config.notes == [f"{path}:23: worker.oci.snapshotter has no effect here"]


@pytest.mark.parametrize(
    ("text", "where", "why"),
    [
        ("debug = 1", "1: debug", "expected true or false"),
        ("\nroot = true", "2: root", "expected a string"),
        ('[grpc]\naddress = "unix:///x"', "2: grpc.address", "expected a list"),
        ("[grpc]\n\naddress = [1]", "3: grpc.address", "list of strings"),
        ('[worker.oci]\nmax-parallelism = "two"', "2: worker.oci.max-parallelism", "expected a number"),
        ('[worker.oci]\nplatforms = ["a/b/c/d"]', "2: worker.oci.platforms", "a/b/c/d"),
        ('[worker.oci]\nmaxUsedSpace = "much"', "2: worker.oci.maxUsedSpace", "invalid size"),
        ('[[worker.oci.gcpolicy]]\nkeepDuration = "later"', "2: worker.oci.gcpolicy.keepDuration", "invalid duration"),
        ('[registry."a.b"]\nmirrors = 1', "2: registry.a.b.mirrors", "expected a list"),
        ('[registry."a.b"]\n[[registry."a.b".keypair]]\nkey = "x"', "registry.a.b.keypair", "key and cert"),
        ('[log]\nlevel = "loud"', "2: log.level", "unknown level"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_file_line_and_key(
    tmp_path: Path, text: str, where: str, why: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert f"buildkitd.toml:{where}" in str(caught.value) or where in str(caught.value)
    assert why in str(caught.value)


def test_malformed_toml_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="line 2"):
        read(tmp_path, "a = 1\nb = = 2\n")


def test_an_unknown_key_is_a_note(tmp_path: Path) -> None:
    assert read(tmp_path, "colour = 1").notes[0].endswith("colour is not known")


def test_collection_can_be_switched_off(tmp_path: Path) -> None:
    assert read(tmp_path, "[worker.oci]\ngc = false").policies == ()


@pytest.mark.parametrize(
    ("text", "seconds"), [("48h", 172800), ("1h30m", 5400), ("100ms", 0.1), (3600, 3600), ("1.5s", 1.5)]
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("10GB", 10**10), ("512MiB", 512 << 20), (7, 7), ("20%", 200), ("1.5k", 1500), ("3", 3)],
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text, 1000) == size


@pytest.mark.parametrize("text", ["", "x", "10 parsecs", True])
def test_malformed_sizes(text: object) -> None:
    with pytest.raises(ValueError, match="invalid size"):
        parse_size(text, 1000)
