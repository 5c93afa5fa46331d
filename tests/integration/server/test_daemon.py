"""The daemon around the services: addresses, TLS, socket activation, readiness, configuration, our own client."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from crossdock.buildkit.proto import control_pb2
from integration.server.conftest import start
from support.cli import PROGRAM
from support.grpcstubs import control_pb2_grpc

if TYPE_CHECKING:
    from pathlib import Path

    from integration.server.conftest import Server
    from support.cli import Crossdock
    from support.servers import BaseImages

pytestmark = pytest.mark.needs("crun", "userns", "overlay")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def info(channel: grpc.Channel) -> Any:
    """Ask for the version, and close the channel."""
    try:
        stub = control_pb2_grpc.ControlStub(channel)
        return stub.Info(control_pb2.InfoRequest(), timeout=20).buildkitVersion
    finally:
        channel.close()


def unix_channel(path: Path) -> grpc.Channel:
    return grpc.insecure_channel(f"unix:{path}", options=[("grpc.default_authority", "localhost")])


def test_several_addresses_are_served_at_once(tmp_path: Path, crossdock: Crossdock) -> None:
    port = free_port()
    server = start(tmp_path, crossdock, "--addr", f"tcp://127.0.0.1:{port}")
    assert info(grpc.insecure_channel(f"127.0.0.1:{port}")).package == "crossdock"
    assert info(unix_channel(server.socket)).package == "crossdock"
    assert server.stop() == 0
    assert "TLS is not enabled" in server.log


@pytest.mark.needs("openssl")
class TestTls:
    @pytest.fixture
    def keys(self, tmp_path: Path) -> Path:
        """A CA, and certificates of a server and a client signed by it."""
        folder = tmp_path / "keys"
        folder.mkdir()
        (folder / "san").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        commands = ["req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -subj /CN=ca -days 2"]
        for name in ("server", "client"):
            commands += [
                f"req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}",
                f"x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile san -out {name}.pem",
            ]
        for command in commands:
            subprocess.run(["openssl", *command.split()], cwd=folder, capture_output=True, check=True)
        return folder

    def credentials(self, keys: Path, *, client: bool) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(
            (keys / "ca.pem").read_bytes(),
            (keys / "client.key").read_bytes() if client else None,
            (keys / "client.pem").read_bytes() if client else None,
        )

    def test_a_client_needs_a_certificate_where_a_ca_is_given(
        self, tmp_path: Path, crossdock: Crossdock, keys: Path
    ) -> None:
        port = free_port()
        server = start(
            tmp_path, crossdock, "--addr", f"tcp://127.0.0.1:{port}",
            "--tlscert", str(keys / "server.pem"), "--tlskey", str(keys / "server.key"),
            "--tlscacert", str(keys / "ca.pem"),
        )  # fmt: skip
        target = f"localhost:{port}"
        known = grpc.secure_channel(target, self.credentials(keys, client=True))
        assert info(known).package == "crossdock"
        with pytest.raises(grpc.RpcError):
            info(grpc.secure_channel(target, self.credentials(keys, client=False)))
        with pytest.raises(grpc.RpcError):
            info(grpc.insecure_channel(target))
        assert info(grpc.secure_channel(target, self.credentials(keys, client=True)))
        assert server.stop() == 0

    def test_a_key_without_a_certificate_is_refused(self, crossdock: Crossdock, keys: Path) -> None:
        done = crossdock("serve", "--addr", "tcp://127.0.0.1:0", "--tlskey", keys / "server.key")
        assert "both a certificate and a key" in done.failed(1).err


def test_a_socket_passed_by_systemd_is_served(tmp_path: Path, crossdock: Crossdock) -> None:
    path = tmp_path / "passed.sock"
    with (
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify,
    ):
        listener.bind(str(path))
        listener.listen(8)
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(30)
        # As systemd does: the socket is descriptor 3 of the process whose id is told.
        script = (
            "import os, sys\n"
            f"os.dup2({listener.fileno()}, 3)\n"
            "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES='buildkit')\n"
            "os.execv(sys.argv[1], sys.argv[1:])\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", script, PROGRAM, "serve", "--addr", "fd://buildkit", "--root", crossdock.root],
            env={**crossdock.environment, "NOTIFY_SOCKET": str(tmp_path / "notify")},
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert notify.recv(100) == b"READY=1"
        assert info(unix_channel(path)).package == "crossdock"
        process.terminate()
        assert notify.recv(100) == b"STOPPING=1"
        _, err = process.communicate(timeout=30)
        assert process.returncode == 0, err


def test_an_address_without_a_socket_is_refused(crossdock: Crossdock) -> None:
    assert "no such socket was passed" in crossdock("serve", "--addr", "fd://").failed(1).err


def test_a_second_server_does_not_take_the_socket(server: Server, crossdock: Crossdock) -> None:
    done = crossdock("serve", "--addr", server.address, "--root", crossdock.root)
    assert "another daemon listens there" in done.failed(1).err
    assert info(unix_channel(server.socket)).package == "crossdock"


def test_the_configuration_file_is_followed(tmp_path: Path, crossdock: Crossdock) -> None:
    (tmp_path / "buildkitd.toml").write_text(
        'insecure-entitlements = ["network.host"]\n'
        '[worker.oci]\n  platforms = ["linux/amd64", "linux/s390x"]\n  snapshotter = "stargz"\n'
        '[worker.oci.labels]\n  "com.example" = "yes"\n'
    )
    server = start(tmp_path, crossdock, "--config", str(tmp_path / "buildkitd.toml"))
    channel = unix_channel(server.socket)
    stub = control_pb2_grpc.ControlStub(channel)
    (record,) = stub.ListWorkers(control_pb2.ListWorkersRequest(), timeout=20).record
    channel.close()
    assert record.Labels["com.example"] == "yes"
    assert [p.Architecture for p in record.platforms] == ["amd64", "s390x"]
    assert server.stop() == 0
    assert "buildkitd.toml:4: worker.oci.snapshotter has no effect here" in server.log


def test_a_wrong_configuration_is_named_with_its_line(tmp_path: Path, crossdock: Crossdock) -> None:
    (tmp_path / "x.toml").write_text("\n[grpc]\naddress = 7\n")
    done = crossdock("serve", "--config", tmp_path / "x.toml")
    assert "x.toml:3: grpc.address: expected a list" in done.failed(1).err


def test_flags_of_buildkitd_without_a_meaning_are_noted(tmp_path: Path, crossdock: Crossdock) -> None:
    server = start(
        tmp_path,
        crossdock,
        "--oci-worker-no-process-sandbox",
        "--containerd-worker=false",
        "--oci-worker=true",
    )
    assert server.stop() == 0
    assert "--oci-worker-no-process-sandbox has no effect here" in server.log


def test_called_buildkitd_and_buildctl_it_stands_in_for_both(
    tmp_path: Path, server: Server, crossdock: Crossdock
) -> None:
    for name in ("buildkitd", "buildctl"):
        (tmp_path / name).symlink_to(PROGRAM)

    def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
        env = crossdock.environment
        return subprocess.run(args, env=env, capture_output=True, text=True, timeout=60, check=False)

    assert "Serve the embedded engine" in run(tmp_path / "buildkitd", "--help").stdout
    assert "linux/" in run(tmp_path / "buildctl", "--addr", server.address, "debug", "workers").stdout
    pump = subprocess.Popen(
        [tmp_path / "buildctl", "--addr", server.address, "dial-stdio"],
        env=crossdock.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert pump.stdin is not None
    assert pump.stdout is not None
    pump.stdin.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
    pump.stdin.flush()
    assert os.read(pump.stdout.fileno(), 9)[3] == 4  # a SETTINGS frame
    pump.stdin.close()
    pump.terminate()
    pump.wait(20)
    pump.stdout.close()


@pytest.mark.needs("base")
def test_our_own_client_builds_on_it(
    server: Server, crossdock: Crossdock, base: BaseImages, tmp_path: Path
) -> None:
    crossdock("create", "--name", "served", "--driver", "remote", server.address).ok()
    (tmp_path / "c").mkdir()
    (tmp_path / "c/Dockerfile").write_text(f"FROM {base.index}\nCOPY file /file\nRUN uname -m > /machine\n")
    (tmp_path / "c/file").write_text("sent")
    crossdock(
        "build", "--builder", "served", "--platform", "linux/amd64,linux/arm64",
        "-o", tmp_path / "out", tmp_path / "c",
    ).ok()  # fmt: skip
    assert (tmp_path / "out/linux_arm64/machine").read_text() == "aarch64\n"
    assert (tmp_path / "out/linux_amd64/file").read_text() == "sent"


@pytest.mark.needs("base")
def test_the_limit_of_the_store_ends_the_step_that_exceeds_it(
    tmp_path: Path, crossdock: Crossdock, base: BaseImages
) -> None:
    server = start(tmp_path, crossdock, env={"CROSSDOCK_MAX_USED_SPACE": "40MB"})
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text(
        f"FROM {base.index}\nRUN dd if=/dev/urandom of=/x bs=1048576 count=60 2>/dev/null && sleep 60\n"
    )
    crossdock("create", "--name", "served", "--driver", "remote", f"unix://{server.socket}").ok()
    done = crossdock("build", "--builder", "served", "--progress=plain", folder).failed()
    assert "the store has reached its limit of 41.94MB (max-used-space)" in done.err
    (folder / "Dockerfile").write_text(f"FROM {base.index}\nRUN echo small > /x\n")
    crossdock("build", "--builder", "served", "--progress=plain", folder).ok()
    assert server.stop() == 0


CONFIG = """
[dns]
nameservers = ["192.0.2.53"]
searchDomains = ["corp.example"]
[history]
maxEntries = 3
[worker.oci]
max-parallelism = 1
[frontend."dockerfile.v0"]
enabled = true
[frontend."gateway.v0"]
allowedRepositories = ["docker/dockerfile"]
"""


@pytest.mark.needs("base")
def test_what_the_configuration_says_of_steps_and_frontends(
    tmp_path: Path, crossdock: Crossdock, base: BaseImages
) -> None:
    (tmp_path / "x.toml").write_text(CONFIG)
    server = start(tmp_path, crossdock, "--config", str(tmp_path / "x.toml"), "--step-deadline", "10m")
    crossdock("create", "--name", "served", "--driver", "remote", server.address).ok()
    (tmp_path / "c").mkdir()
    dockerfile = tmp_path / "c/Dockerfile"
    dockerfile.write_text(f"FROM {base.index}\nRUN cat /etc/resolv.conf > /r\n")
    crossdock("build", "--builder", "served", "-o", tmp_path / "out", tmp_path / "c").ok()
    lines = (tmp_path / "out/r").read_text().splitlines()
    assert {"nameserver 192.0.2.53", "search corp.example"} <= set(lines)
    assert len([line for line in lines if line.startswith("nameserver")]) == 1
    stub_channel = unix_channel(server.socket)
    stub = control_pb2_grpc.ControlStub(stub_channel)
    attrs = {"source": "example.com/other/frontend:1"}
    request = control_pb2.SolveRequest(Ref="x", Frontend="gateway.v0", FrontendAttrs=attrs)
    with pytest.raises(grpc.RpcError, match="not among those that the daemon's configuration allows"):
        stub.Solve(request, timeout=20)
    stub_channel.close()
    assert server.stop() == 0


def test_the_network_of_steps_is_announced(tmp_path: Path, crossdock: Crossdock) -> None:
    server = start(tmp_path, crossdock, "--oci-worker-net", "bridge")
    channel = unix_channel(server.socket)
    stub = control_pb2_grpc.ControlStub(channel)
    (record,) = stub.ListWorkers(control_pb2.ListWorkersRequest(), timeout=60).record
    channel.close()
    assert record.Labels["org.mobyproject.buildkit.worker.network"] == "isolated"
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["--oci-worker-net", "cloud"], "invalid network 'cloud'"),
        (["--step-deadline", "later"], "--step-deadline: invalid duration"),
        (["--oci-worker-gc-keepstorage", "1GB"], "RESERVED[,FREE[,MAXIMUM]]"),
        (["--oci-max-parallelism", "many"], "is not a number"),
        (["--oci-worker-binary", "/nowhere/runc", "--addr", "nonsense"], "invalid address"),
    ],
)
def test_a_wrong_flag_is_named(crossdock: Crossdock, flags: list[str], wanted: str) -> None:
    assert wanted in crossdock("serve", *flags).failed(1).err


@pytest.mark.needs("root")
def test_sockets_have_the_owner_of_the_configuration(tmp_path: Path, crossdock: Crossdock) -> None:
    (tmp_path / "x.toml").write_text("[grpc]\nuid = 12\ngid = 34\n")
    server = start(tmp_path, crossdock, "--config", str(tmp_path / "x.toml"))
    found = server.socket.stat()
    assert (found.st_uid, found.st_gid) == (12, 34)
    assert server.stop() == 0
