"""The services that other tests stand on are what they say."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

import services
from support import servers

if TYPE_CHECKING:
    from pathlib import Path

    import baseimage


@pytest.mark.needs("base", "skopeo")
def test_the_base_index_is_what_skopeo_reads(base: servers.BaseImages) -> None:
    raw = servers.skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{base.index}").stdout
    platforms = [entry["platform"]["architecture"] for entry in json.loads(raw)["manifests"]]
    assert platforms == ["amd64", "arm64", "arm", "386", "ppc64le", "s390x"]


@pytest.mark.needs("base", "umoci")
def test_umoci_unpacks_the_layout(busybox_layout: Path, tmp_path: Path) -> None:
    servers.skopeo("copy", f"oci:{busybox_layout}:latest", f"oci:{tmp_path}/one:latest")
    servers.umoci("unpack", "--rootless", "--image", f"{tmp_path}/one:latest", tmp_path / "bundle")
    assert (tmp_path / "bundle/rootfs/bin/busybox").stat().st_mode & 0o777 == 0o755


@pytest.mark.needs("registry")
def test_the_registry_with_accounts_refuses_strangers(registry_auth: services.Registry) -> None:
    url = f"http://{registry_auth.host}/v2/"
    with pytest.raises(urllib.error.HTTPError, match="401") as caught:
        urllib.request.urlopen(url)
    caught.value.close()
    token = base64.b64encode(f"{services.USERNAME}:{services.PASSWORD}".encode()).decode()
    request = urllib.request.Request(url, headers={"Authorization": f"Basic {token}"})
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200


@pytest.mark.needs("registry", "openssl", "skopeo", "base")
def test_the_tls_registry_is_trusted_with_its_ca(
    registry_tls: services.Registry, busybox_layout: Path, tmp_path: Path
) -> None:
    assert registry_tls.ca is not None
    (tmp_path / "ca.crt").write_bytes(registry_tls.ca.read_bytes())
    target = f"docker://{registry_tls.host}/base:1"
    copy = ("copy", "--all", f"oci:{busybox_layout}:latest", target)
    assert servers.skopeo(*copy, check=False).returncode != 0
    servers.skopeo("copy", f"--dest-cert-dir={tmp_path}", *copy[1:])


@pytest.mark.slow
@pytest.mark.needs("docker", "base", "dockercli")
def test_the_engine_runs_the_base(
    docker_engine: services.DockerEngine, docker_cli: servers.DockerCli, base: servers.BaseImages
) -> None:
    docker = replace(docker_cli, host=docker_engine.address)
    docker("pull", "-q", base.index)
    assert docker("run", "--rm", "--network", "none", base.index, "uname", "-s").stdout == "Linux\n"


@pytest.mark.slow
@pytest.mark.needs("docker26", "base", "dockercli")
def test_the_newer_engine_keeps_a_whole_index(
    docker_engine_containerd: services.DockerEngine,
    docker_cli: servers.DockerCli,
    base: servers.BaseImages,
    busybox: baseimage.Image,
) -> None:
    docker = replace(docker_cli, host=docker_engine_containerd.address)
    docker("pull", "-q", base.index)
    assert docker("image", "inspect", "--format", "{{.Id}}", base.index).stdout.strip() == busybox.digest
