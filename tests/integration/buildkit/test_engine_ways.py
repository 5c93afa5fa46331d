"""Ways to a Docker Engine's BuildKit: TLS and ssh, contexts; what its builds are given; logins for pushes."""

from __future__ import annotations

import base64
import json
import os
import shutil
import ssl
from typing import TYPE_CHECKING

import pytest

import certificates
import services
from crossdock.builders.dockerconfig import DockerEndpoint
from crossdock.builders.dockerengine import ping
from crossdock.builders.drivers.docker import DockerDriver
from crossdock.builders.request import BuildRequest, OutputSpec
from crossdock.cancel import CancelToken
from crossdock.errors import AuthError, BuilderError, CrossdockError
from integration.buildkit.conftest import Events, remote
from support.relays import FakeProgram, Relay, grpc_of, socket_of

if TYPE_CHECKING:
    from pathlib import Path

    from support.cli import Crossdock
    from support.servers import BaseImages

pytestmark = [pytest.mark.needs("root", "docker", "docker26", "registry", "base"), pytest.mark.slow]


def build(endpoint: DockerEndpoint, context: Path, out: Path) -> None:
    request = BuildRequest(context=str(context), outputs=(OutputSpec(type="local", dest=str(out)),))
    DockerDriver(endpoint).build(request, Events(), CancelToken())
    assert (out / "sub/x").read_bytes() == (context / "sub/x").read_bytes()


@pytest.mark.needs("openssl")
def test_tls(docker_engine: services.DockerEngine, context: Path, tmp_path: Path) -> None:
    authority = certificates.CertificateAuthority(tmp_path / "ca")
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.certificate))
    server.load_cert_chain(*authority.issue("engine", ["IP:127.0.0.1"]))
    server.verify_mode = ssl.CERT_REQUIRED
    folder = tmp_path / "tls"
    folder.mkdir()
    cert, key = authority.issue("client", client=True)
    for name, source in (("ca.pem", authority.certificate), ("cert.pem", cert), ("key.pem", key)):
        shutil.copy(source, folder / name)
    with Relay(socket_of(docker_engine.socket), tls=server) as relay:
        host = f"tcp://127.0.0.1:{relay.port}"
        build(DockerEndpoint("t", host, str(folder)), context, tmp_path / "out")
        assert ping(DockerEndpoint("t", host, str(folder))) is not None
        other = certificates.CertificateAuthority(tmp_path / "other")
        shutil.copy(other.certificate, folder / "ca.pem")
        with pytest.raises(BuilderError, match="TLS with the Docker Engine") as caught:
            build(DockerEndpoint("t", host, str(folder)), context, tmp_path / "out")
        assert "certificates" in str(caught.value.hint)
        build(DockerEndpoint("t", host, str(folder), tls_verify=False), context, tmp_path / "out2")


def test_ssh(
    docker_engine: services.DockerEngine, context: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeProgram(tmp_path / "bin", "ssh", str(docker_engine.socket))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    endpoint = DockerEndpoint("far", "ssh://me@far.example:2222")
    build(endpoint, context, tmp_path / "out")
    assert ping(endpoint) is not None
    wanted = "-o ConnectTimeout=30 -T -l me -p 2222 -- far.example docker system dial-stdio"
    assert {" ".join(call) for call in fake.calls} == {wanted}


def test_ssh_that_fails_is_quoted(context: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeProgram(tmp_path / "bin", "ssh", "", failure="ssh: connect to host far.example port 22: timed out")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with pytest.raises(BuilderError, match="timed out"):
        build(DockerEndpoint("far", "ssh://far.example"), context, tmp_path / "out")


def test_images_of_the_engine_are_what_from_means(
    docker_engine: services.DockerEngine, context: Path
) -> None:
    """As buildx does: what was built before needs no registry."""
    driver = DockerDriver(DockerEndpoint("test", docker_engine.address))
    output = (OutputSpec(type="docker"),)
    driver.build(
        BuildRequest(context=str(context), tags=("case/base:1",), outputs=output), Events(), CancelToken()
    )
    child = BuildRequest(
        context=str(context),
        dockerfile_text=b"FROM case/base:1\nENV Y=2\n",
        tags=("case/child:1",),
        outputs=output,
    )
    driver.build(child, Events(), CancelToken())
    found = json.loads(docker_engine.request("GET", "/images/case/child:1/json"))
    assert {"X=1", "Y=2"} <= set(found["Config"]["Env"])


def test_host_gateway_needs_an_engine_that_tells_it(
    docker_engine_containerd: services.DockerEngine, context: Path
) -> None:
    """These Engines have no bridge, so they know no gateway."""
    request = BuildRequest(context=str(context), add_hosts=("db:host-gateway",))
    with (
        Relay(grpc_of(docker_engine_containerd)) as relay,
        pytest.raises(BuilderError, match="host-gateway") as caught,
    ):
        remote(relay.address).build(request, Events(), CancelToken())
    assert "--add-host db:IP" in str(caught.value.hint)


def test_hosts_reach_the_step(
    docker_engine_containerd: services.DockerEngine, context: Path, base: BaseImages
) -> None:
    text = f"FROM {base.amd64}\nRUN cat /etc/hosts\n".encode()
    hosts = ("one:10.0.0.1", "two=10.0.0.2", "10.0.0.3", "six:[::6]")
    request = BuildRequest(
        context=str(context), dockerfile_text=text, add_hosts=hosts, network="none", no_cache=True
    )
    events = Events()
    DockerDriver(DockerEndpoint("test", docker_engine_containerd.address)).build(
        request, events, CancelToken()
    )
    found = {tuple(line.split()) for line in events.output.decode().splitlines()}
    assert {("10.0.0.1", "one"), ("10.0.0.2", "two"), ("10.0.0.3", "two"), ("::6", "six")} <= found


@pytest.mark.parametrize("right", [True, False], ids=["a-login", "a-wrong-login"])
def test_logins_reach_the_daemon(
    docker_engine_containerd: services.DockerEngine,
    registry_auth: services.Registry,
    docker_config: Path,
    context: Path,
    right: bool,
) -> None:
    password = services.PASSWORD if right else "wrong horse"
    pair = base64.b64encode(f"{services.USERNAME}:{password}".encode()).decode()
    (docker_config / "config.json").write_text(json.dumps({"auths": {registry_auth.host: {"auth": pair}}}))
    output = OutputSpec(type="image", attrs={"push": "true"})
    request = BuildRequest(
        context=str(context), tags=(f"{registry_auth.host}/case/login:1",), outputs=(output,)
    )
    driver = DockerDriver(DockerEndpoint("test", docker_engine_containerd.address))
    if right:
        assert driver.build(request, Events(), CancelToken()).digest
    else:
        with pytest.raises(CrossdockError, match=r"401|denied|unauthorized|authorization") as caught:
            driver.build(request, Events(), CancelToken())
        assert "wrong horse" not in f"{caught.value}{caught.value.detail}"


def test_a_classic_store_pushes_with_the_login(
    docker_engine: services.DockerEngine, registry_auth: services.Registry, docker_config: Path, context: Path
) -> None:
    output = OutputSpec(type="image", attrs={"push": "true"})
    request = BuildRequest(
        context=str(context), tags=(f"{registry_auth.host}/case/classic:1",), outputs=(output,)
    )
    driver = DockerDriver(DockerEndpoint("test", docker_engine.address))
    with pytest.raises(AuthError, match="failed to push") as caught:
        driver.build(request, Events(), CancelToken())
    assert "docker login" in str(caught.value.hint)
    pair = base64.b64encode(f"{services.USERNAME}:{services.PASSWORD}".encode()).decode()
    (docker_config / "config.json").write_text(json.dumps({"auths": {registry_auth.host: {"auth": pair}}}))
    driver.build(request, Events(), CancelToken())


def test_the_command_line_on_a_context(
    docker_engine_containerd: services.DockerEngine, crossdock: Crossdock, context: Path, base: BaseImages
) -> None:
    env = {"DOCKER_HOST": docker_engine_containerd.address}
    shown = crossdock("inspect", "default", env=env).ok().out
    assert "docker" in shown
    assert "linux/amd64" in shown
    crossdock("build", "--builder", "default", "-t", "case/cli:1", "--load", context, env=env).ok()
    usage = crossdock("du", "--builder", "default", "--verbose", env=env).ok().out
    assert "Usage count:" in usage
    assert "Total:" in usage
    ids = crossdock("du", "--builder", "default", "--format", "{{.ID}}", env=env).ok().out.split()
    assert ids
    pruned = crossdock("prune", "--builder", "default", "-af", "--filter", "until=0s", env=env).ok().out
    assert "Total:" in pruned
    refused = crossdock("prune", "--builder", "default", "-f", "--max-used-space", "1gb", env=env).failed(1)
    assert "v0.17" in refused.err
    listed = crossdock("history", "ls", "--builder", "default", env=env).ok().out
    assert "Completed" in listed
    assert "COPY" in crossdock("history", "logs", "--builder", "default", env=env).ok().out
    assert (
        '"Status": "completed"'
        in crossdock("history", "inspect", "--builder", "default", "--format", "json", env=env).ok().out
    )
    crossdock("history", "rm", "--builder", "default", "--all", env=env).ok()
    assert crossdock("history", "ls", "--builder", "default", env=env).ok().out.count("\n") == 1
    refused = crossdock("history", "open", "--builder", "default", env=env).failed(1)
    assert "no build records" in refused.err
    old = crossdock("history", "ls", "--builder", "embedded").failed(1)
    assert "keeps no history" in old.err


def test_dial_stdio_is_a_connection_for_others(
    docker_engine_containerd: services.DockerEngine, crossdock: Crossdock, context: Path, tmp_path: Path
) -> None:
    """Behind ``docker-container://`` of another client stands our ``dial-stdio``."""
    from crossdock.builders.model import Node, NodeGroup  # noqa: F401 - the driver below is the other client
    from support.cli import PROGRAM

    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "podman"
    variables = " ".join(
        f"{k}='{v}'"
        for k, v in {
            "DOCKER_HOST": docker_engine_containerd.address,
            "DOCKER_CONFIG": crossdock.docker_config,
            "HOME": crossdock.folder,
        }.items()
    )
    script.write_text(f"#!/bin/sh\nexec env {variables} {PROGRAM} --builder default dial-stdio\n")
    script.chmod(0o755)
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{folder}:{before}"
    try:
        request = BuildRequest(
            context=str(context), outputs=(OutputSpec(type="local", dest=str(tmp_path / "o")),)
        )
        remote("podman-container://any").build(request, Events(), CancelToken())
    finally:
        os.environ["PATH"] = before
    assert (tmp_path / "o/sub/x").read_bytes() == (context / "sub/x").read_bytes()
