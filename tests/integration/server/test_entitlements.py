"""What builds may be granted: by the daemon's flags, by the request, by neither; real buildx and plain gRPC."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from crossdock.llb.graph import Node, Output
from crossdock.llb.ops import ExecMeta, ExecOp, Mount, NetMode, SecurityMode, SourceOp
from integration.server.conftest import Buildx, start
from integration.server.plain import Client, definition, text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from integration.server.conftest import Server
    from support.cli import Crossdock
    from support.servers import BaseImages, DockerCli

pytestmark = pytest.mark.needs("base", "crun", "userns", "overlay")

ALL = ("network.host", "security.insecure")


@pytest.fixture
def generous(tmp_path: Path, crossdock: Crossdock) -> Iterator[Server]:
    """A server that lets clients grant everything."""
    running = start(tmp_path, crossdock, "--allow-insecure-entitlement", ",".join(ALL))
    yield running
    assert running.stop() == 0, running.log


@pytest.fixture
def client(generous: Server) -> Iterator[Client]:
    made = Client(generous.address)
    yield made
    made.channel.close()
    made.own.close()


def step(base: BaseImages, script: str, **fields: Any) -> Output:
    image = Output(Node(SourceOp(f"docker-image://{base.index}")))
    meta = ExecMeta(args=("/bin/sh", "-ec", script), cwd="/")
    return Output(Node(ExecOp(meta=meta, mounts=(Mount(dest="/", input=0, output=0),), **fields), [image]))


CASES = [
    ("network.host", {"network": NetMode.HOST}, "ip link show lo | grep -q UP"),
    ("security.insecure", {"security": SecurityMode.INSECURE}, "grep -q '^Seccomp:.*0' /proc/self/status"),
]


@pytest.mark.parametrize(("name", "fields", "script"), CASES)
def test_the_request_must_grant_what_the_daemon_allows(
    client: Client, base: BaseImages, name: str, fields: dict[str, Any], script: str
) -> None:
    wanted = definition(step(base, script, **fields))
    assert f"{name} is not allowed" in text(client.failure(Definition=wanted))
    client.solve(Definition=wanted, Entitlements=[name])


def test_a_cached_step_of_another_client_is_no_way_around(client: Client, base: BaseImages) -> None:
    wanted = definition(step(base, "echo cached", security=SecurityMode.INSECURE))
    client.solve(Definition=wanted, Entitlements=["security.insecure"])
    assert "not allowed" in text(client.failure(Definition=wanted))


@pytest.mark.parametrize("name", ["security.insecure=x", "everything", ""])
def test_an_entitlement_of_another_name_is_none(client: Client, base: BaseImages, name: str) -> None:
    wanted = definition(step(base, "true", security=SecurityMode.INSECURE))
    error = client.failure(Definition=wanted, Entitlements=[name])
    assert "allow" in text(error)


def test_networks_are_as_asked(client: Client, base: BaseImages) -> None:
    only_lo = 'test "$(ls /sys/class/net)" = lo'
    client.solve(Definition=definition(step(base, only_lo, network=NetMode.NONE)))


@pytest.mark.needs("dockercli")
def test_real_buildx_grants_them(
    docker_cli: DockerCli, generous: Server, base: BaseImages, tmp_path: Path
) -> None:
    buildx = Buildx(docker_cli, tmp_path)
    buildx("create", "--name", "served", "--use", "--driver", "remote", generous.address)
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(
        "# syntax=docker/dockerfile:1-labs\n"
        f"FROM {base.index}\n"
        "RUN --security=insecure grep -q '^Seccomp:.*0' /proc/self/status\n"
        "RUN --network=host true\n"
        'RUN --network=none test "$(ls /sys/class/net)" = lo\n'
    )
    refused = buildx.build(context, check=False)
    assert "security.insecure is not allowed" in refused.stderr
    assert "Dockerfile:3" in refused.stderr
    buildx.build("--allow", "security.insecure", "--allow", "network.host", context)
