"""Crossdock as the docker CLI's buildx: the walk-through, through real docker clients, without a Docker Engine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.servers import skopeo

if TYPE_CHECKING:
    import services
    from support.cli import Crossdock
    from support.servers import BaseImages, DockerCli

pytestmark = pytest.mark.needs("dockercli")

NOWHERE = "unix:///nonexistent/docker.sock"


def clients() -> list[str]:
    """Every docker client on PATH, besides the one that the suite unpacks."""
    found = {str(Path(d, "docker").resolve()) for d in os.get_exec_path() if Path(d, "docker").is_file()}
    return ["", *sorted(found)]


@pytest.fixture(params=clients(), ids=lambda path: path.strip("/").replace("/", "-") or "debian")
def docker(request: pytest.FixtureRequest, docker_cli: DockerCli, crossdock: Crossdock) -> DockerCli:
    """A docker client with Crossdock installed as its buildx, and no engine."""
    client = replace(docker_cli, config=crossdock.docker_config, host=NOWHERE)
    if request.param:
        client = replace(client, program=Path(request.param))
    crossdock("plugin", "install").ok()
    return client


def environment(crossdock: Crossdock) -> dict[str, str]:
    return {
        "CROSSDOCK_ROOT": str(crossdock.root),
        "DOCKER_CLI_EXPERIMENTAL": "enabled",
        "HOME": str(crossdock.folder),
        "BUILDKIT_PROGRESS": "plain",
    }


@pytest.mark.needs("base", "crun", "userns", "overlay", "qemu", "binfmt", "skopeo")
def test_the_walk_through(
    docker: DockerCli, crossdock: Crossdock, base: BaseImages, repository: str, tmp_path: Path
) -> None:
    env = environment(crossdock)
    context = tmp_path / "keepalived"
    context.mkdir()
    (context / "Dockerfile").write_text(f"FROM {base.index}\nRUN uname -m > /machine\n")

    def run(*args: str) -> str:
        done = docker("buildx", *args, cwd=context, env=env)
        return done.stdout + done.stderr

    assert run("version").startswith("crossdock v")
    assert run("create", "--use", "--name", "test", "--platform", "linux/amd64,linux/arm64") == "test\n"
    listed = run("ls").splitlines()
    assert listed[0].split() == ["NAME/NODE", "DRIVER/ENDPOINT", "STATUS", "BUILDKIT", "PLATFORMS"]
    assert listed[1].split() == ["test*", "embedded"]
    assert listed[2].split()[:5] == ["\\_", "test0", "\\_", "embedded", "inactive"]
    booted = run("inspect", "test", "--bootstrap")
    assert "[internal] probing platforms" in booted
    assert "Status:           running" in booted
    assert "linux/amd64*, linux/arm64*," in booted
    assert "linux/s390x" in booted
    assert "running" in run("ls").splitlines()[2]
    name = f"{repository}/keepalived:v2.0.20"
    run("build", "-t", name, ".", "--push", "--platform", "linux/amd64,linux/arm64")
    raw = json.loads(skopeo("inspect", "--tls-verify=false", "--raw", f"docker://{name}").stdout)
    assert len(raw["manifests"]) == 2
    run("use", "embedded")
    assert "embedded*" in run("ls")
    run("stop", "test")
    assert "test removed" in run("rm", "test")
    assert "test" not in run("ls")


def test_flags_may_follow_and_docker_s_own_flags_are_understood(
    docker: DockerCli, crossdock: Crossdock
) -> None:
    done = docker("--debug", "--log-level", "info", "buildx", "inspect", "nope", check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    done = docker("buildx", "inspect", "nope", check=False)
    assert done.stderr.startswith("ERROR: no builder 'nope' found\n")
    assert done.returncode == 1


def test_help_and_unknown_commands(docker: DockerCli, crossdock: Crossdock) -> None:
    assert docker("buildx", "--help").stdout.startswith("Usage:  docker buildx [OPTIONS] COMMAND\n")
    assert docker("buildx", "build", "--help").stdout.startswith(
        "Usage:  docker buildx build [OPTIONS] PATH | URL | -"
    )
    done = docker("buildx", "nope", check=False)
    assert 'ERROR: unknown command: "nope"' in done.stderr
    assert done.returncode == 1
    assert "buildx" in docker("--help").stdout


def test_without_an_engine_the_embedded_builder_steps_in_and_says_so(
    docker: DockerCli, crossdock: Crossdock, tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nWORKDIR /made\n")
    done = docker("buildx", "build", tmp_path, "-o", tmp_path / "out", env=environment(crossdock))
    assert done.stderr.startswith("NOTICE: no Docker Engine answers: using the builder 'embedded'\n")
    assert (tmp_path / "out/made").is_dir()


def test_docker_build_is_served_too(docker: DockerCli, crossdock: Crossdock, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nWORKDIR /made\n")
    env = {**environment(crossdock), "DOCKER_BUILDKIT": "1"}
    done = docker("build", tmp_path, "-o", tmp_path / "out", env=env, check=False)
    if "20.10" in docker("--version").stdout:
        pytest.skip("docker 20.10 has a build of its own")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/made").is_dir()


@pytest.mark.needs("docker")
def test_docker_s_own_builder_is_used_where_it_can_do_what_is_asked(
    docker: DockerCli, crossdock: Crossdock, tmp_path: Path, docker_engine: services.DockerEngine
) -> None:
    client = replace(docker, host=docker_engine.address)
    (tmp_path / "Dockerfile").write_text("FROM scratch\nWORKDIR /made\n")
    env = environment(crossdock)
    done = client("buildx", "build", tmp_path, "-t", "made-by-docker:1", env=env)
    assert "NOTICE" not in done.stderr
    assert "made-by-docker" in client("image", "ls").stdout
    done = client(
        "buildx", "build", tmp_path, "--platform", "linux/amd64,linux/arm64", "-o", tmp_path / "out", env=env
    )
    assert "using the builder 'embedded'" in done.stderr
    assert (tmp_path / "out/linux_arm64/made").is_dir()


class TestSharedStore:
    """Debian's buildx 0.13 and Crossdock on one builder store."""

    def buildx(
        self, docker_cli: DockerCli, crossdock: Crossdock, *args: str
    ) -> subprocess.CompletedProcess[str]:
        env = {**crossdock.environment, "DOCKER_HOST": NOWHERE}
        return subprocess.run(
            [docker_cli.buildx, *args], env=env, capture_output=True, text=True, timeout=60, check=False
        )

    def test_buildx_lists_an_embedded_builder_and_is_not_broken_by_it(
        self, docker_cli: DockerCli, crossdock: Crossdock
    ) -> None:
        crossdock(
            "create", "--name", "mine", "--driver", "embedded", "--use", env={"DOCKER_HOST": NOWHERE}
        ).ok()
        done = self.buildx(docker_cli, crossdock, "ls")
        assert done.returncode == 0
        assert "mine*" in done.stdout
        assert "embedded" in done.stdout

    def test_a_builder_made_by_buildx_is_seen_used_and_removed(
        self, docker_cli: DockerCli, crossdock: Crossdock
    ) -> None:
        env = {"DOCKER_HOST": NOWHERE}
        made = self.buildx(
            docker_cli, crossdock, "create", "--name", "theirs", "--driver", "remote", "tcp://127.0.0.1:9"
        )
        assert made.returncode == 0, made.stderr
        more = self.buildx(
            docker_cli,
            crossdock,
            "create",
            "--name",
            "theirs",
            "--append",
            "tcp://127.0.0.1:8",
            "--platform",
            "linux/arm64",
        )
        assert more.returncode == 0, more.stderr
        listed = json.loads(
            next(
                line
                for line in crossdock("ls", "--format", "json", env=env).ok().out.splitlines()
                if '"theirs"' in line
            )
        )
        assert [n["Endpoint"] for n in listed["Nodes"]] == ["tcp://127.0.0.1:9", "tcp://127.0.0.1:8"]
        assert listed["Nodes"][1]["Platforms"] == ["linux/arm64"]
        crossdock("use", "theirs", env=env).ok()
        assert "theirs*" in self.buildx(docker_cli, crossdock, "ls").stdout
        crossdock("rm", "theirs", env=env).ok()
        assert "theirs" not in self.buildx(docker_cli, crossdock, "ls").stdout


class TestInstall:
    def test_another_buildx_is_kept_and_comes_back(self, crossdock: Crossdock) -> None:
        place = crossdock.docker_config / "cli-plugins/docker-buildx"
        place.parent.mkdir(parents=True)
        place.write_text("#!/bin/sh\necho theirs\n")
        assert "is another buildx" in crossdock("plugin", "install").failed(1).err
        crossdock("plugin", "install", "--force").ok()
        assert "crossdock (in use)" in crossdock("plugin", "status").ok().out
        crossdock("plugin", "install").ok()
        assert "restored" in crossdock("plugin", "uninstall").ok().out
        assert place.read_text() == "#!/bin/sh\necho theirs\n"
        assert "left alone" in crossdock("plugin", "uninstall").failed(1).err

    def test_the_handshake_is_fast_and_complete(self, crossdock: Crossdock) -> None:
        crossdock("plugin", "install").ok()
        place = crossdock.docker_config / "cli-plugins/docker-buildx"
        times, bare = [], []
        done = subprocess.run([place, "docker-cli-plugin-metadata"], capture_output=True, check=True)
        for _ in range(5):
            began = time.perf_counter()
            subprocess.run([place, "docker-cli-plugin-metadata"], capture_output=True, check=True)
            times.append(time.perf_counter() - began)
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", "pass"], check=True)
            bare.append(time.perf_counter() - began)
        assert json.loads(done.stdout)["SchemaVersion"] == "0.1.0"
        assert min(times) < min(bare) + 0.025

    def test_it_runs_from_anywhere_whatever_the_environment(
        self, crossdock: Crossdock, tmp_path: Path
    ) -> None:
        crossdock("plugin", "install").ok()
        copy = shutil.copy(crossdock.docker_config / "cli-plugins/docker-buildx", tmp_path / "docker-buildx")
        (tmp_path / "json.py").write_text("raise SystemExit('shadowed')\n")
        done = subprocess.run(
            [copy, "buildx", "version"],
            env={"HOME": str(tmp_path), "PATH": "/nonexistent"},
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("crossdock v")


def test_closing_docker_s_socket_ends_the_build(crossdock: Crossdock, tmp_path: Path) -> None:
    """Without a terminal, docker tells its plugin to stop by closing the socket it gave it."""
    import socket

    address = f"\0crossdock-test-{os.getpid()}"
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server,
    ):
        (tmp_path / "Dockerfile").write_text(f"FROM 127.0.0.1:{silent.getsockname()[1]}/never:1\n")
        server.bind(address)
        server.listen()
        server.settimeout(20)
        crossdock("plugin", "install").ok()
        child = subprocess.Popen(
            [
                str(crossdock.docker_config / "cli-plugins/docker-buildx"),
                "buildx",
                "--builder",
                "embedded",
                "build",
                str(tmp_path),
                "--progress=plain",
            ],
            env={**crossdock.environment, "DOCKER_CLI_PLUGIN_SOCKET": "@" + address[1:]},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        connection, _ = server.accept()
        time.sleep(0.5)
        began = time.monotonic()
        connection.close()
        _, err = child.communicate(timeout=20)
    assert child.returncode == 130, err
    assert time.monotonic() - began < 2
