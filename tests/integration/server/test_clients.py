"""Clients that nobody here wrote, in what the other pages of cases leave out: agents, remote caches, the docker CLI, imagetools."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import objectstores
from integration.cache.ghaserver import SECRET, ActionsCacheServer, runtime_token
from support.programs import add_program
from support.servers import skopeo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.server.conftest import Buildx, Server
    from support.servers import BaseImages, DockerCli

pytestmark = pytest.mark.needs("base", "crun", "userns", "overlay", "dockercli")

_numbers = itertools.count(1)


@pytest.fixture
def newer(buildx: Buildx, server: Server) -> Iterator[Buildx]:
    """A newer buildx, where there is one on PATH; else Debian's again."""
    found = shutil.which("docker-buildx")
    if found is None:
        yield buildx
        return
    made = dataclasses.replace(buildx, cli=dataclasses.replace(buildx.cli, buildx=Path(found)))
    made("create", "--name", "newer", "--use", "--driver", "remote", server.address)
    yield made


class TestAgents:
    @pytest.fixture
    def key(self, tmp_path: Path) -> Path:
        path = tmp_path / "key"
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "case", "-f", str(path)]
        subprocess.run(command, check=True)
        return path

    @pytest.fixture
    def context(self, tmp_path: Path, base: BaseImages) -> Path:
        """A context with ``ssh-add`` in it."""
        folder = tmp_path / "context"
        found = shutil.which("ssh-add")
        assert found
        add_program(folder / "tree", found, "/usr/bin/ssh-add")
        mount = "--mount=type=ssh,id=mine,required=true"
        (folder / "Dockerfile").write_text(
            f"FROM {base.index}\nCOPY tree /\nRUN {mount} ssh-add -l > /keys\n"
        )
        return folder

    @pytest.mark.parametrize("form", ["socket", "key"])
    def test_a_step_reaches_the_clients_keys(
        self, buildx: Buildx, context: Path, key: Path, tmp_path: Path, form: str
    ) -> None:
        listed = subprocess.run(["ssh-keygen", "-lf", str(key)], capture_output=True, text=True, check=True)
        with agent(key, tmp_path / "agent.sock") as socket:
            source = socket if form == "socket" else key
            buildx.build("--ssh", f"mine={source}", "-o", tmp_path / "out", context)
        assert (tmp_path / "out/keys").read_text().split()[1] == listed.stdout.split()[1]

    def test_an_agent_of_another_id_is_not_given(self, buildx: Buildx, context: Path, key: Path) -> None:
        done = buildx.build("--ssh", f"other={key}", context, check=False)
        assert done.returncode != 0
        assert "mine" in done.stderr


class agent:  # noqa: N801
    """A running ssh-agent that has a key."""

    def __init__(self, key: Path, socket: Path) -> None:
        self._key, self._socket = key, socket

    def __enter__(self) -> Path:
        command = ["ssh-agent", "-D", "-a", str(self._socket)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._process.stdout.readline()  # printed once it listens
        env = {**os.environ, "SSH_AUTH_SOCK": str(self._socket)}
        subprocess.run(["ssh-add", "-q", str(self._key)], env=env, check=True)
        return self._socket

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate()


class TestCachesElsewhere:
    """The server reaches the stores itself, with what the client says of them."""

    @pytest.fixture(
        params=[
            pytest.param("s3", marks=pytest.mark.needs("moto")),
            pytest.param("azblob", marks=pytest.mark.needs("azurite")),
            "gha",
        ]
    )
    def cache(self, request: pytest.FixtureRequest) -> Iterator[str]:
        if request.param == "s3":
            with objectstores.S3Server() as s3:
                keys = "access_key_id=test,secret_access_key=hidden-key"
                where = f"bucket=bucket{next(_numbers)},region=us-east-1,endpoint_url={s3.url}"
                make_bucket(s3.url, where.partition(",")[0].removeprefix("bucket="))
                yield f"type=s3,{where},use_path_style=true,{keys}"
        elif request.param == "azblob":
            with objectstores.AzureServer() as azure:
                key = f"account_name={objectstores.AZURE_ACCOUNT},secret_access_key={objectstores.AZURE_KEY}"
                yield f"type=azblob,account_url={azure.url},container=container{next(_numbers)},{key}"
        else:
            with ActionsCacheServer() as actions:
                token = runtime_token(("refs/heads/main", 3))
                yield f"type=gha,url={actions.url},version=1,token={token}"

    def test_it_is_exported_and_used_after_a_prune(
        self, buildx: Buildx, server: Server, base: BaseImages, cache: str
    ) -> None:
        text = f"FROM {base.index}\nRUN cat /proc/sys/kernel/random/uuid > /id\n".encode()
        first = buildx.build("--cache-to", f"{cache},mode=max", "-", stdin=text)
        buildx("prune", "-af")
        again = buildx.build("--cache-from", cache, "-", stdin=text)
        (step,) = {line.split()[0] for line in again.stderr.splitlines() if "RUN cat" in line}
        assert f"{step} CACHED" in again.stderr
        for hidden in ("hidden-key", objectstores.AZURE_KEY, SECRET):
            assert hidden not in first.stderr + again.stderr + server.log


def make_bucket(url: str, name: str) -> None:
    import importlib

    boto3: Any = importlib.import_module("boto3")  # it has no types
    client = boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
    )
    client.create_bucket(Bucket=name)


def test_the_docker_command_line_builds_with_that_builder(
    buildx: Buildx, docker_cli: DockerCli, base: BaseImages, tmp_path: Path
) -> None:
    plugins = docker_cli.config / "cli-plugins"
    plugins.mkdir(exist_ok=True)
    (plugins / "docker-buildx").symlink_to(docker_cli.buildx)
    (tmp_path / "c").mkdir()
    (tmp_path / "c/Dockerfile").write_text(f"FROM {base.index}\nRUN echo hi > /hi\n")
    docker_cli("build", "--builder", "served", "-o", tmp_path / "one", tmp_path / "c")
    docker_cli("buildx", "build", "-o", tmp_path / "two", tmp_path / "c")
    assert (tmp_path / "one/hi").read_text() == (tmp_path / "two/hi").read_text() == "hi\n"
    del buildx


def test_imagetools_see_what_was_pushed(
    buildx: Buildx, base: BaseImages, repository: str, tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {base.index}\nLABEL a=b\n")
    two = ("--platform", "linux/amd64,linux/arm64")
    buildx.build(*two, "-t", f"{repository}:1", "--push", "--sbom=false", tmp_path)
    index = json.loads(buildx("imagetools", "inspect", "--raw", f"{repository}:1").stdout)
    assert len(index["manifests"]) == 4
    buildx("imagetools", "create", "-t", f"{repository}:2", f"{repository}:1")
    raw = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{repository}:2").stdout
    assert json.loads(raw)["manifests"] == index["manifests"]


@pytest.mark.parametrize(
    "output", ["local", "tar", "oci", "docker", "oci-folder", "image", "cacheonly", "none"]
)
def test_every_output(newer: Buildx, base: BaseImages, tmp_path: Path, repository: str, output: str) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c/Dockerfile").write_text(f"FROM {base.index}\nRUN echo hi > /hi\n")
    dest = tmp_path / "out"
    flags = {
        "local": ["-o", f"type=local,dest={dest}"],
        "oci-folder": ["-o", f"type=oci,dest={dest},tar=false"],
        "image": ["-o", "type=image,push=true"],
        "cacheonly": ["-o", "type=cacheonly"],
        "none": [],
    }.get(output, ["-o", f"type={output},dest={dest}"])
    newer.build("-t", f"{repository}:1", *flags, tmp_path / "c")
    match output:
        case "local":
            assert (dest / "hi").read_text() == "hi\n"
        case "oci-folder":
            assert json.loads((dest / "index.json").read_text())["manifests"]
        case "image":
            skopeo("inspect", "--tls-verify=false", f"docker://{repository}:1")
        case "cacheonly" | "none":
            assert not dest.exists()
        case _:
            assert dest.stat().st_size > 1000


@pytest.mark.parametrize("method", ["outline", "targets"])
def test_questions_about_a_dockerfile(newer: Buildx, base: BaseImages, tmp_path: Path, method: str) -> None:
    (tmp_path / "Dockerfile").write_text(
        f"# the one\nFROM {base.index} AS final\nARG WHO=me\nRUN echo $WHO\n"
    )
    has_call = "--call" in newer("build", "--help").stdout
    flag = f"--call={method}" if has_call else f"--print={method}"
    done = newer("build", flag, tmp_path, env={"BUILDX_EXPERIMENTAL": "1"})
    assert {"outline": "WHO", "targets": "final"}[method] in done.stdout


def test_bake_with_several_targets_and_a_matrix_of_platforms(
    newer: Buildx, base: BaseImages, tmp_path: Path
) -> None:
    target = {
        "dockerfile-inline": f"FROM {base.index}\nARG N\nRUN echo $N-$(uname -m) > /n\n",
        "platforms": ["linux/amd64", "linux/arm64"],
    }
    targets = {
        f"t{n}": {**target, "args": {"N": f"{n}"}, "output": [f"type=local,dest={tmp_path}/out{n}"]}
        for n in range(4)
    }
    (tmp_path / "bake.json").write_text(json.dumps({"target": targets}))
    # Newer versions ask before they write outside of the folder they are in.
    newer("bake", "-f", tmp_path / "bake.json", "--progress", "plain", *targets)
    for n in range(4):
        assert (tmp_path / f"out{n}/linux_arm64/n").read_text() == f"{n}-aarch64\n"


def test_du_tells_and_prune_removes(newer: Buildx, base: BaseImages) -> None:
    newer.build("-", stdin=f"FROM {base.index}\nRUN echo some > /thing\n".encode())
    assert "RUN echo some" in newer("du", "--verbose").stdout
    newer("prune", "-f", "--all", "--filter", "type=regular")
    assert "RUN echo some" not in newer("du", "--verbose").stdout
