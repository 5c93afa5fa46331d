"""CDI devices in steps: described in a folder, allowed, injected by the runtime."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from crossdock.llb.graph import Node, Output
from crossdock.llb.ops import CdiDevice, ExecMeta, ExecOp, Mount, SourceOp
from integration.server.conftest import start
from integration.server.plain import Client, definition, text
from support import cli

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from integration.server.conftest import Server
    from support.cli import Crossdock
    from support.servers import BaseImages

pytestmark = pytest.mark.needs("crun", "userns", "overlay", "base")

KIND = "crossdock.test/thing"
SCRIPT = 'test -c /dev/thing && test "$THING" = here && test "$(cat /things/file)" = of-the-host && : > /dev/thing && echo ok > /ok'


def described(folder: Path) -> Path:
    """Describe a device: a node, a directory, a variable."""
    folder.mkdir(parents=True)
    (folder / "shown").mkdir()
    (folder / "shown/file").write_text("of-the-host\n")
    edits = {
        "env": ["THING=here"],
        "deviceNodes": [{"path": "/dev/thing", "hostPath": "/dev/null"}],
        "mounts": [
            {"hostPath": str(folder / "shown"), "containerPath": "/things", "options": ["ro", "rbind"]}
        ],
    }
    spec = {"cdiVersion": "0.6.0", "kind": KIND, "devices": [{"name": "one", "containerEdits": edits}]}
    specs = folder / "cdi"
    specs.mkdir()
    (specs / "thing.json").write_text(json.dumps(spec))
    return specs


def step(base: BaseImages) -> Output:
    image = Output(Node(SourceOp(f"docker-image://{base.index}")))
    meta = ExecMeta(args=("/bin/sh", "-ec", SCRIPT), cwd="/")
    op = ExecOp(
        meta=meta, mounts=(Mount(dest="/", input=0, output=0),), cdi_devices=(CdiDevice(f"{KIND}=one"),)
    )
    return Output(Node(op, [image]))


@pytest.fixture(scope="module")
def with_devices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("devices")
    crossdock = cli.make(folder / "crossdock")
    flags = ("--cdi-spec-dir", str(described(folder / "d")), "--allow-insecure-entitlement", "device")
    running = start(folder, crossdock, *flags)
    yield running
    assert running.stop() == 0, running.log
    crossdock.close()


@pytest.fixture
def client(with_devices: Server) -> Iterator[Client]:
    made = Client(with_devices.address)
    yield made
    made.channel.close()
    made.own.close()


def test_a_device_must_be_allowed(client: Client, base: BaseImages) -> None:
    error = client.failure(Definition=definition(step(base)))
    assert f"device {KIND}=one is requested by the build but not allowed" in text(error)
    client.solve(Definition=definition(step(base)), Entitlements=["device"])


@pytest.mark.parametrize("grant", [f"device={KIND}=one", f"device={KIND}"])
def test_one_device_alone_is_allowed(client: Client, base: BaseImages, grant: str) -> None:
    client.solve(Definition=definition(step(base)), Entitlements=[grant])


def test_workers_tell_which_devices_there_are(client: Client) -> None:
    from crossdock.buildkit.proto import control_pb2

    (worker,) = client.control.ListWorkers(control_pb2.ListWorkersRequest(), timeout=60).record
    (device,) = worker.CDIDevices
    assert (device.Name, device.AutoAllow) == (f"{KIND}=one", False)


class TestEmbedded:
    @pytest.fixture
    def build(self, crossdock: Crossdock, base: BaseImages, tmp_path: Path) -> Any:
        environment = {"CROSSDOCK_CDI_SPEC_DIRS": str(described(tmp_path / "d"))}
        context = tmp_path / "context"
        context.mkdir()

        def run(device: str, *flags: str) -> Any:
            (context / "Dockerfile").write_text(f"FROM {base.index}\nRUN --device={device} {SCRIPT}\n")
            out = ("-o", str(tmp_path / "out"))
            return crossdock("build", "--builder", "embedded", *flags, *out, context, env=environment)

        return run

    def test_a_step_gets_what_it_asks_for(self, build: Any, tmp_path: Path) -> None:
        build(f"{KIND}=one", "--allow", f"device={KIND}=one").ok()
        assert (tmp_path / "out/ok").read_text() == "ok\n"
        # Of the device nothing is left in the result.
        assert not (tmp_path / "out/things").exists()

    def test_without_permission_the_step_is_refused_with_its_place(self, build: Any) -> None:
        ran = build(f"{KIND}=one")
        assert ran.code != 0
        assert "not allowed" in ran.err
        assert "Dockerfile:2" in ran.err
        assert f"--allow device={KIND}=one" in ran.err

    def test_a_device_that_is_not_described_is_named(self, build: Any) -> None:
        ran = build("nothing.test/x=y,required", "--allow", "device")
        assert 'required device "nothing.test/x=y" is not registered' in ran.err
        assert f"{KIND}=one" in ran.err
