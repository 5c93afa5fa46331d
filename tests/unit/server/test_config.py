"""``buildkitd.toml``: what is read, what is noted, what is wrong and where."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from crossdock.errors import ConfigError
from crossdock.server.config import Config, read_config
from crossdock.server.configvalues import parse_duration, parse_size, parse_storage

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


#: every key that buildkitd reads
EVERYTHING = """\
debug = true
trace = true
root = "/r"
insecure-entitlements = ["network.host"]
proxyNetwork = true
provenanceEnvDir = "/p"
[log]
format = "text"
level = "warn"
[grpc]
address = ["unix:///s"]
debugAddress = "127.0.0.1:1"
uid = 3
gid = 4
securityDescriptor = "x"
[grpc.tls]
cert = "c"
key = "k"
ca = "a"
[otel]
socketPath = "/o"
[cdi]
disabled = true
specDirs = ["/cdi"]
autoAllowed = ["a/b"]
[dns]
nameservers = ["1.1.1.1"]
options = ["edns0"]
searchDomains = ["a.example"]
[history]
maxAge = "1h"
maxEntries = 3
[worker.oci]
enabled = true
labels = { a = "b" }
platforms = ["linux/amd64"]
snapshotter = "auto"
rootless = false
noProcessSandbox = false
userRemapUnsupported = ""
binary = "runc"
proxySnapshotterPath = ""
defaultCgroupParent = "builds"
apparmor-profile = ""
selinux = false
max-parallelism = 4
gc = true
gckeepstorage = "1GB"
reservedSpace = "1GB"
maxUsedSpace = "10GB"
minFreeSpace = "5%"
networkMode = "cni"
cniConfigPath = "/cni"
cniBinaryPath = "/bin"
cniPoolSize = 2
bridgeName = "b"
bridgeSubnet = "10.0.0.0/8"
[worker.oci.stargzSnapshotter]
noprefetch = true
[[worker.oci.gcpolicy]]
all = true
filters = ["type==regular"]
keepDuration = "48h"
keepBytes = "1GB"
reservedSpace = 1
maxUsedSpace = 2
minFreeSpace = 3
[worker.containerd]
address = "/c"
enabled = false
labels = { a = "b" }
platforms = ["linux/amd64"]
namespace = "n"
snapshotter = "auto"
rootless = false
apparmor-profile = ""
selinux = false
max-parallelism = 4
defaultCgroupParent = ""
gc = true
reservedSpace = 1
networkMode = "auto"
cniConfigPath = ""
cniBinaryPath = ""
cniPoolSize = 0
bridgeName = ""
bridgeSubnet = ""
[worker.containerd.runtime]
name = "runc"
[[worker.containerd.gcpolicy]]
all = true
[registry."docker.io"]
mirrors = ["m"]
http = true
insecure = true
ca = ["c"]
tlsconfigdir = ["d"]
[[registry."docker.io".keypair]]
key = "k"
cert = "c"
[frontend."dockerfile.v0"]
enabled = false
[frontend."gateway.v0"]
enabled = true
allowedRepositories = ["docker/dockerfile"]
[system]
platformsCacheMaxAge = "1h"
maxRegistryConcurrency = 8
[cache.gha.sign]
command = ["x"]
"""
NOTED_OF_OCI = (
    *("snapshotter", "rootless", "noProcessSandbox", "userRemapUnsupported", "proxySnapshotterPath"),
    *(
        "apparmor-profile",
        "selinux",
        "cniConfigPath",
        "cniBinaryPath",
        "cniPoolSize",
        "bridgeName",
        "bridgeSubnet",
    ),
    "stargzSnapshotter",
)
NOTED_OF_CONTAINERD = (
    *(
        "address",
        "labels",
        "platforms",
        "namespace",
        "snapshotter",
        "rootless",
        "apparmor-profile",
        "selinux",
    ),
    *("max-parallelism", "defaultCgroupParent", "gc", "networkMode", "cniConfigPath", "cniBinaryPath"),
    *("cniPoolSize", "bridgeName", "bridgeSubnet", "runtime", "gcpolicy"),
)


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
        512 << 20,
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
    assert config.notes[0] == f"{path}:23: worker.oci.snapshotter has no effect here"


def test_files_that_are_not_there_are_noted_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "there.pem").touch()
    text = f'''
[registry."a.b"]
ca = ["{tmp_path}/there.pem", "{tmp_path}/gone.pem"]
[worker.oci]
binary = "{tmp_path}/runtime"
'''
    path = tmp_path / "buildkitd.toml"
    assert sorted(read(tmp_path, text).notes) == [
        f"{path}:3: registry.a.b.ca names {tmp_path}/gone.pem, which is not there",
        f"{path}:5: worker.oci.binary names {tmp_path}/runtime, which is no program here: steps cannot run",
    ]


@pytest.mark.parametrize(
    ("text", "where", "why"),
    [
        ("debug = 1", "1: debug", "expected true or false"),
        ('insecure-entitlements = ["all"]', "1: insecure-entitlements", "invalid entitlement 'all'"),
        ('[registry]\n"a.b" = "c"', "2: registry.a.b", "expected a table"),
        ("registry = 1", "1: registry", "expected a table"),
        ('[worker.oci]\nenabled = "yes"', "2: worker.oci.enabled", "expected true or false"),
        ("[worker.containerd]\nenabled = 3", "2: worker.containerd.enabled", "expected true or false"),
        ("[worker.oci]\ngc = 3", "2: worker.oci.gc", "expected true or false"),
        ('[worker.oci]\nminFreeSpace = "150%"', "2: worker.oci.minFreeSpace", "invalid size"),
        ("\nroot = true", "2: root", "expected a string"),
        ('[grpc]\naddress = "unix:///x"', "2: grpc.address", "expected a list"),
        ("[grpc]\n\naddress = [1]", "3: grpc.address", "list of strings"),
        ('[grpc]\naddress = ["gopher://x"]', "2: grpc.address", "invalid address 'gopher://x'"),
        ('[grpc]\naddress = ["tcp://h:99999"]', "2: grpc.address", "99999 is no port"),
        ('[worker.oci]\nmax-parallelism = "two"', "2: worker.oci.max-parallelism", "expected a number"),
        ('[worker.oci]\nplatforms = ["a/b/c/d"]', "2: worker.oci.platforms", "a/b/c/d"),
        ('[worker.oci]\nmaxUsedSpace = "much"', "2: worker.oci.maxUsedSpace", "invalid size"),
        ('[[worker.oci.gcpolicy]]\nkeepDuration = "later"', "2: worker.oci.gcpolicy.keepDuration", "invalid duration"),
        ('[registry."a.b"]\nmirrors = 1', "2: registry.a.b.mirrors", "expected a list"),
        ('[registry."a.b"]\n[[registry."a.b".keypair]]\nkey = "x"', "registry.a.b.keypair", "key and cert"),
        ('[worker.oci]\nnetworkMode = "cloud"', "2: worker.oci.networkMode", "expected auto, host"),
        ('[worker.oci]\ncniPoolSize = "x"', "2: worker.oci.cniPoolSize", "expected a number"),
        ('[worker.oci]\ngcpolicy = [1]', "2: worker.oci.gcpolicy", "expected a table"),
        ('[[worker.oci.gcpolicy]]\nfilters = ["a=>b"]', "2: worker.oci.gcpolicy.filters", "filter"),
        ('[dns]\nnameservers = ["one"]', "2: dns.nameservers", "one"),
        ('[history]\nmaxEntries = -1', "2: history.maxEntries", "0 or more"),
        ('[system]\nplatformsCacheMaxAge = "old"', "2: system.platformsCacheMaxAge", "invalid duration"),
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


def test_every_key_of_buildkitd_is_known_and_has_its_type_checked(tmp_path: Path) -> None:
    config = read(tmp_path, EVERYTHING)
    assert not [note for note in config.notes if note.endswith("is not known")]
    noted = {
        note.split(": ")[1].split(" ")[0] for note in config.notes if note.endswith("has no effect here")
    }
    assert noted == {
        *(
            "proxyNetwork",
            "provenanceEnvDir",
            "grpc.debugAddress",
            "grpc.securityDescriptor",
            "otel.socketPath",
        ),
        *("cache.gha", "system.maxRegistryConcurrency"),
        *(f"worker.oci.{key}" for key in NOTED_OF_OCI),
        *(f"worker.containerd.{key}" for key in NOTED_OF_CONTAINERD),
    }
    assert config.dns is not None
    assert (*config.dns.nameservers, *config.dns.options, *config.dns.search) == (
        "1.1.1.1",
        "edns0",
        "a.example",
    )
    assert (config.runtime, config.cgroup_parent, config.network) == ("runc", "builds", "isolated")
    assert config.disabled_frontends == ("dockerfile.v0",)
    assert config.frontend_repositories == ("docker/dockerfile",)
    assert (config.uid, config.platforms_age_s) == (3, 3600.0)


def test_the_second_of_several_tables_is_named_with_its_own_line(tmp_path: Path) -> None:
    text = '[[worker.oci.gcpolicy]]\nkeepBytes = "1GB"\n[[worker.oci.gcpolicy]]\nkeepBytes = "much"\n'
    with pytest.raises(
        ConfigError, match=r"buildkitd\.toml:4: worker\.oci\.gcpolicy\.keepBytes: invalid size"
    ):
        read(tmp_path, text)


def test_old_names_of_bounds_count_where_the_new_ones_are_not_given(tmp_path: Path) -> None:
    config = read(tmp_path, '[worker.oci]\ngckeepstorage = "1GB"\n')
    assert config.policies is not None
    assert [(p.reserved_space, p.max_used_space) for p in config.policies[1:]] == [(1 << 30, 0)] * 3
    config = read(tmp_path, '[worker.oci]\ngckeepstorage = "1GB"\nmaxUsedSpace = "2GB"\n')
    assert config.policies is not None
    assert [(p.reserved_space, p.max_used_space) for p in config.policies[1:]] == [(0, 2 << 30)] * 3


@pytest.mark.parametrize(
    ("text", "bounds"),
    [
        ("1000", {"reserved_space": 10**9}),
        (
            "1000,2000,3000",
            {"reserved_space": 10**9, "min_free_space": 2 * 10**9, "max_used_space": 3 * 10**9},
        ),
        (",,3", {"max_used_space": 3_000_000}),
    ],
)
def test_the_flag_for_storage(text: str, bounds: dict[str, int]) -> None:
    assert parse_storage(text) == bounds


@pytest.mark.parametrize("text", ["", "x", "1,2,3,4", "1GB"])
def test_malformed_storage(text: str) -> None:
    with pytest.raises(ValueError, match="RESERVED"):
        parse_storage(text)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a = 1\nb = = 2\n", "2: b: invalid value (column 5)"),
        ('root = "/x\n', "1: root: illegal character '\\n' (column 11)"),
        ("debug = true\ndebug = false\n", "2: debug: cannot overwrite a value (column 14)"),
        ("[grpc]\n[grpc]\n", "2: [grpc]: cannot declare ('grpc',) twice (column 6)"),
        ("debug = true\nno toml\n", "2: no toml: expected '=' after a key in a key/value pair (column 4)"),
        ("a = [1,\n", "1: a: invalid value"),
        ("a", "1: a: expected '=' after a key in a key/value pair"),
    ],
)
def test_malformed_toml_names_line_and_key(tmp_path: Path, text: str, wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert caught.value.summary == f"{tmp_path / 'buildkitd.toml'}:{wanted}"


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
    [("10GB", 10 << 30), ("512MiB", 512 << 20), (7, 7), ("20%", 200), ("1.5k", 1536), ("3", 3)],
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text, 1000) == size


@pytest.mark.parametrize("text", ["", "x", "10 parsecs", True])
def test_malformed_sizes(text: object) -> None:
    with pytest.raises(ValueError, match="invalid size"):
        parse_size(text, 1000)


#: every flag of buildkitd
FLAGS = """
rootless config root addr log-format log-level group debugaddr tlscert tlskey tlscacert allow-insecure-entitlement
proxy-network otel-socket-path cdi-disabled cdi-spec-dir save-cache-debug
containerd-worker containerd-worker-addr containerd-worker-labels containerd-worker-net containerd-cni-config-path
containerd-cni-binary-dir containerd-cni-pool-size containerd-worker-snapshotter containerd-worker-apparmor-profile
containerd-worker-selinux containerd-max-parallelism containerd-worker-rootless containerd-worker-gc
containerd-worker-gc-keepstorage oci-worker oci-worker-labels oci-worker-snapshotter oci-worker-proxy-snapshotter-path
oci-worker-platform oci-worker-net oci-cni-config-path oci-cni-binary-dir oci-cni-pool-size oci-worker-binary
oci-worker-apparmor-profile oci-worker-selinux oci-max-parallelism oci-worker-rootless oci-worker-no-process-sandbox
oci-worker-gc oci-worker-gc-keepstorage
"""


def test_every_flag_of_buildkitd_is_taken() -> None:
    from crossdock.cli.serve import command

    known = {name.lstrip("-") for flag in command.flags for name in flag.names}

    assert not set(FLAGS.split()) - known
