"""Beside the real buildx (Debian's 0.13.1): builders made by one and used by the other, and equal results."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest

from crossdock.buildkit import Client
from integration.buildkit.test_container import _BUILDCTL, _BUILDKITD, IMAGE, import_image, volumes
from support.relays import Relay, grpc_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import services
    from crossdock.buildkit.history import HistoryRecord
    from support.cli import Crossdock
    from support.servers import DockerCli

pytestmark = [pytest.mark.needs("root", "docker", "docker26", "dockercli", "base"), pytest.mark.slow]


@pytest.fixture
def relayed(docker_engine_containerd: services.DockerEngine) -> Iterator[Relay]:
    with Relay(grpc_of(docker_engine_containerd)) as relay:
        yield relay


@pytest.fixture
def buildx(crossdock: Crossdock, docker_cli: DockerCli) -> Callable[..., str]:
    """Run buildx with Crossdock's configuration."""
    cli = dataclasses.replace(docker_cli, config=crossdock.docker_config)

    def run(*args: str | Path, host: str = "", cwd: Path | None = None) -> str:
        done = subprocess.run(
            [str(cli.buildx), *map(str, args)],
            env=dataclasses.replace(cli, host=host).environment(),
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode != 0:
            pytest.fail(
                f"buildx {' '.join(map(str, args))}: exit {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    return run


def index_of(archive: Path) -> dict[str, object]:
    with tarfile.open(archive) as tar:
        file = tar.extractfile("index.json")
        assert file is not None
        (entry,) = json.load(file)["manifests"]
    return {k: entry[k] for k in ("digest", "size", "mediaType")}


def test_made_by_buildx_and_used_here(
    relayed: Relay, crossdock: Crossdock, buildx: Callable[..., str], context: Path
) -> None:
    buildx("create", "--name", "theirs", "--driver", "remote", relayed.address)
    listed = crossdock("ls").ok().out
    assert "theirs" in listed
    assert "running" in listed
    buildx("use", "theirs")
    assert "theirs" in crossdock("inspect").ok().out.splitlines()[0]
    crossdock("build", "-o", str(crossdock.folder / "out"), context).ok()
    assert (crossdock.folder / "out/a").read_text() == "hello"
    crossdock("rm", "theirs").ok()
    assert "theirs" not in buildx("ls")


def test_made_here_and_used_by_buildx(
    relayed: Relay, crossdock: Crossdock, buildx: Callable[..., str], context: Path, tmp_path: Path
) -> None:
    crossdock(
        "create", "--name", "ours", "--driver", "remote", "--platform", "linux/amd64", relayed.address
    ).ok()
    crossdock("create", "--name", "ours", "--append", "--node", "second", "unix:///none.sock").ok()
    shown = buildx("inspect", "ours")
    assert "linux/amd64*" in shown
    assert "second" in shown
    crossdock("create", "--name", "ours", "--leave", "--node", "second").ok()
    assert "second" not in buildx("inspect", "ours")
    crossdock("use", "ours").ok()
    buildx("build", "-o", str(tmp_path / "out"), context)
    assert (tmp_path / "out/a").read_text() == "hello"
    buildx("rm", "ours")
    assert "ours" not in crossdock("ls").ok().out


def test_both_make_the_same_image_and_continue_each_others_transfers(
    relayed: Relay, crossdock: Crossdock, buildx: Callable[..., str], context: Path, tmp_path: Path
) -> None:
    crossdock("create", "--name", "b", "--driver", "remote", "--use", relayed.address).ok()
    flags = ("build", "--provenance=false", "-o")
    buildx(*flags, f"type=oci,dest={tmp_path}/theirs.tar", context)
    sent = relayed.up
    crossdock(*flags, f"type=oci,dest={tmp_path}/ours.tar", context).ok()
    assert index_of(tmp_path / "ours.tar") == index_of(tmp_path / "theirs.tar")
    assert relayed.up - sent < 1_000_000  # of three megabytes: the daemon had them from buildx


def test_metadata_has_the_same_keys(
    relayed: Relay, crossdock: Crossdock, buildx: Callable[..., str], context: Path, tmp_path: Path
) -> None:
    crossdock("create", "--name", "b", "--driver", "remote", "--use", relayed.address).ok()
    ours, theirs = tmp_path / "ours.json", tmp_path / "theirs.json"
    buildx("build", "--metadata-file", theirs, "-o", "type=image,name=case/m:1", context)
    crossdock("build", "--metadata-file", str(ours), "-o", "type=image,name=case/m:1", context).ok()
    found, wanted = json.loads(ours.read_text()), json.loads(theirs.read_text())
    assert set(wanted) <= set(found)
    assert found["containerimage.descriptor"]["mediaType"] == wanted["containerimage.descriptor"]["mediaType"]
    assert found["buildx.build.ref"].startswith("b/b0/")
    listed = crossdock("history", "ls", "--format", "{{.Ref}} {{.Name}} {{.Status}}").ok().out
    for document in (found, wanted):
        ref = document["buildx.build.ref"].rpartition("/")[2]
        assert f"{ref} context Completed" in listed


def last_record(relay: Relay) -> HistoryRecord:
    with Client(relay.address) as client:
        return client.history()[0]


@pytest.mark.parametrize(
    "flags",
    [
        ["--label", "a=b", "--build-arg", "A=1", "--target", "one"],
        ["--build-context", "named=other", "--build-context", "context=other"],
        ["--no-cache", "--pull", "--platform", "linux/amd64,linux/arm64"],
        ["--no-cache-filter", "one,two", "--network", "none", "--shm-size", "64m"],
        ["--ulimit", "nofile=1024:2048", "--cgroup-parent", "/x", "--add-host", "h:1.2.3.4"],
        ["--build-arg", "BUILDKIT_MULTI_PLATFORM=1", "--build-arg", "BUILDKIT_INLINE_CACHE=1"],
        ["--provenance=false", "--allow", "network.host", "--network", "host"],
    ],
    ids=lambda flags: flags[0].removeprefix("--"),
)
def test_a_daemon_is_asked_the_same_by_both(
    relayed: Relay,
    crossdock: Crossdock,
    buildx: Callable[..., str],
    context: Path,
    tmp_path: Path,
    flags: list[str],
) -> None:
    """What the daemon's history keeps of a build: its attributes and exporters."""
    (context / "Dockerfile").write_text("FROM scratch AS one\nCOPY a /a\nFROM one AS two\n")
    (tmp_path / "other").mkdir()
    flags = [f.replace("=other", f"={tmp_path}/other") for f in flags]
    repository(context)
    crossdock("create", "--name", "b", "--driver", "remote", "--use", relayed.address).ok()
    command: list[str | Path] = ["build", "-o", f"type=oci,dest={tmp_path}/x.tar", *flags, context]
    buildx(*command)
    theirs = last_record(relayed)
    crossdock(*command).ok()
    ours = last_record(relayed)
    assert ours.ref != theirs.ref
    # 0.13 has no key for named directories, so that each of its builds sends them anew.
    found = {k: v for k, v in ours.frontend_attrs.items() if not k.startswith("sharedkey:")}
    assert found == dict(theirs.frontend_attrs)
    assert ours.exporters == theirs.exporters
    assert found["vcs:source"] == "https://git.example/app.git"


def repository(folder: Path) -> None:
    for command in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=n", "-c", "user.email=e@x", "commit", "-qm", "one"],
        ["remote", "add", "origin", "https://git.example/app.git"],
    ):
        subprocess.run(["git", *command], cwd=folder, check=True)


@pytest.mark.parametrize("mode", ["", "min", "max", "disabled"])
@pytest.mark.parametrize("version", ["v0.2", "v1"])
def test_provenance_in_the_metadata(
    relayed: Relay, crossdock: Crossdock, context: Path, tmp_path: Path, mode: str, version: str
) -> None:
    """As buildx from 0.14 on writes it: SLSA v0.2, in `min` without steps and metadata."""
    crossdock("create", "--name", "b", "--driver", "remote", "--use", relayed.address).ok()
    file = tmp_path / "metadata.json"
    flags = ("--provenance", f"mode=max,version={version}", "-o", f"type=oci,dest={tmp_path}/x.tar")
    environment = {"BUILDX_METADATA_PROVENANCE": mode}
    crossdock("build", *flags, "--metadata-file", file, context, env=environment).ok()
    found = json.loads(file.read_text()).get("buildx.build.provenance")
    if mode == "disabled":
        assert found is None
        return
    assert found["buildType"] == "https://mobyproject.org/buildkit@v1"
    assert found["invocation"]["parameters"]["frontend"] == "dockerfile.v0"
    assert found["invocation"]["environment"]["platform"].startswith("linux/")
    assert ("buildConfig" in found, "metadata" in found) == (mode == "max", mode == "max")
    kept = crossdock("history", "inspect", "attachment", "--type", "provenance").ok().out
    if mode == "max" and "buildType" in json.loads(kept):
        assert found == json.loads(kept)


def test_a_container_of_one_is_that_of_the_other(
    docker_engine_bounded: services.DockerEngine,
    docker_engine_containerd: services.DockerEngine,
    crossdock: Crossdock,
    buildx: Callable[..., str],
    context: Path,
    tmp_path: Path,
) -> None:
    engine = docker_engine_bounded
    files = {"usr/bin/buildctl": _BUILDCTL.encode(), "usr/bin/buildkitd": _BUILDKITD.encode()}
    import_image(engine, IMAGE, files)
    with Relay(grpc_of(docker_engine_containerd), tcp=True) as backend:
        options = (
            f"--driver-opt=image={IMAGE}",
            "--driver-opt=network=host",
            f"--driver-opt=cgroup-parent=/{engine.folder.name}",
            f"--driver-opt=env.BACKEND={backend.port}",
        )
        env = {"DOCKER_HOST": engine.address}
        create = ("create", "--name", "shared", "--driver", "docker-container", *options, "--bootstrap")
        buildx(*create, host=engine.address)
        try:
            assert "running" in crossdock("inspect", "shared", env=env).ok().out
            crossdock("build", "--builder", "shared", "-o", str(tmp_path / "a"), context, env=env).ok()
            crossdock("stop", "shared", env=env).ok()
            assert "stopped" in buildx("inspect", "shared", host=engine.address)
            buildx("build", "--builder", "shared", "-o", tmp_path / "b", context, host=engine.address)
            assert (tmp_path / "a/a").read_text() == (tmp_path / "b/a").read_text()
        finally:
            crossdock("rm", "-f", "shared", env=env).ok()
    assert volumes(engine) == []
