"""Over a real OpenSSH server: Engines and daemons behind `ssh://`, and Git repositories in steps and as contexts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

import sshserver
from support.relays import FakeProgram, Relay, grpc_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import services
    from support.cli import Crossdock
    from support.servers import BaseImages

pytestmark = [pytest.mark.needs("sshd"), pytest.mark.slow]

ENGINE = pytest.mark.needs("root", "docker", "docker26")
BASE = pytest.mark.needs("registry", "base", "userns", "overlay", "crun")


@contextmanager
def agent(key: Path, folder: Path) -> Iterator[dict[str, str]]:
    """A real agent with one key; gives the environment of its users."""
    path = folder / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        environment = {"SSH_AUTH_SOCK": str(path)}
        subprocess.run(
            ["ssh-add", "-q", str(key)], env={**os.environ, **environment}, check=True, capture_output=True
        )
        yield environment
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def client(crossdock: Crossdock, tmp_path: Path) -> Crossdock:
    """The command in a home of its own."""
    (tmp_path / "home/.ssh").mkdir(parents=True, mode=0o700)
    crossdock.environment["HOME"] = str(tmp_path / "home")
    return crossdock


def use(client: Crossdock, server: sshserver.SshServer, environment: dict[str, str]) -> None:
    client.environment |= environment
    client.environment["PATH"] = f"{server.programs}:{os.environ['PATH']}"


# what is behind ssh://


@ENGINE
def test_an_engine_behind_ssh(
    docker_engine_26: services.DockerEngine, client: Crossdock, context: Path, tmp_path: Path
) -> None:
    """The docker command over there, of the Engine's own packages, is the connection."""
    assert docker_engine_26.client is not None
    there = {
        "PATH": f"{docker_engine_26.client.parent}:/usr/bin:/bin",
        "DOCKER_HOST": docker_engine_26.address,
    }
    (tmp_path / "bin").mkdir()
    with sshserver.SshServer(there) as server, agent(server.key, tmp_path) as environment:
        use(client, server, environment | {"DOCKER_HOST": server.url, "BUILDX_BUILDER": "default"})
        assert "running" in client("inspect", "default").ok().out
        client("build", "-o", tmp_path / "out", context).ok()
        client("build", "-t", "case/ssh:1", context).ok()
        assert (tmp_path / "out/a").read_text() == "hello"
        client.environment["SSH_AUTH_SOCK"] = "/none"
        ran = client("build", context).failed(1)
        assert "Permission denied (publickey)" in ran.err


@ENGINE
def test_a_daemon_behind_ssh(
    docker_engine_containerd: services.DockerEngine, client: Crossdock, context: Path, tmp_path: Path
) -> None:
    with Relay(grpc_of(docker_engine_containerd)) as relay:
        far = FakeProgram(tmp_path / "bin", "buildctl", relay.path)
        there = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin"}
        with sshserver.SshServer(there) as server, agent(server.key, tmp_path) as environment:
            use(client, server, environment)
            client("create", "--name", "far", "--driver", "remote", "--use", server.url).ok()
            client("build", "-o", tmp_path / "out", context).ok()
            assert (tmp_path / "out/a").read_text() == "hello"
            assert far.calls[0] == ["dial-stdio"]
            server.known_hosts.write_text("")
            ran = client("build", context).failed(1)
            assert "Host key verification failed" in ran.err


# Git over ssh


@pytest.fixture(
    scope="session",
    params=[
        "embedded",
        pytest.param("engine", marks=pytest.mark.needs("root", "docker", "docker26")),
    ],
)
def builder(request: pytest.FixtureRequest) -> tuple[str, dict[str, str]]:
    """The name of a builder and the environment in which it is found."""
    if request.param == "embedded":
        return "embedded", {}
    engine: services.DockerEngine = request.getfixturevalue("docker_engine_containerd")
    return "default", {"DOCKER_HOST": engine.address}


def make_repository(folder: Path) -> Path:
    """A repository with a Dockerfile and a file."""
    folder.mkdir()
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY file /got\n")
    (folder / "file").write_text("from git")
    for command in (
        ["init", "-q", "-b", "main"],
        ["add", "."],
        ["-c", "user.name=n", "-c", "user.email=e@x", "commit", "-qm", "one"],
    ):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


def put_programs(target: Path, *programs: str) -> None:
    """Put programs of this machine where an image would have them, with the libraries that they load."""
    found = [shutil.which(p) or p for p in programs]
    for path in found:
        listed = subprocess.run(["ldd", path], check=True, capture_output=True, text=True).stdout
        for file in [path, *re.findall(r"(/\S+) \(0x", listed)]:
            copy = target / file.lstrip("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)


CLONE = """\
FROM {base}
COPY tools /
ENV GIT_SSH_COMMAND="ssh -F none -o UserKnownHostsFile=/known" GIT_CONFIG_COUNT=1 \\
    GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0=*
RUN grep -q ^root: /etc/passwd || echo "root:x:0:0::/:/bin/sh" >> /etc/passwd
RUN --mount=type=ssh,required git clone -q {url} /clone && ssh-add -l > /keys
FROM scratch
COPY --from=0 /clone/file /keys /
"""


def clone_context(tmp_path: Path, server: sshserver.SshServer, base: str) -> Path:
    repository = make_repository(tmp_path / "repository")
    folder = tmp_path / "clone"
    put_programs(folder / "tools", "git", "ssh", "ssh-add")
    shutil.copy(server.known_hosts, folder / "tools/known")
    (folder / "Dockerfile").write_text(CLONE.format(base=base, url=f"{server.url}{repository}"))
    return folder


def there(extra: str = "/usr/bin:/bin") -> dict[str, str]:
    # the repository is whose who runs the suite, and git is told so whatever the system's configuration says
    return {
        "PATH": extra,
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
    }


@BASE
def test_a_step_clones_with_the_agent(
    client: Crossdock, base: BaseImages, tmp_path: Path, builder: tuple[str, dict[str, str]]
) -> None:
    """The key never enters the step: the agent signs over the forwarded socket."""
    name, environment = builder
    client.environment |= environment
    with sshserver.SshServer(there()) as server:
        context = clone_context(tmp_path, server, base.amd64)
        network = ("--network=host", "--allow", "network.host")
        flags = ("--builder", name, "--no-cache", *network, "-o", tmp_path / "out")
        with agent(server.key, tmp_path) as agents:
            client("build", *flags, "--ssh", "default", context, env=agents).ok()
        assert (tmp_path / "out/file").read_text() == "from git"
        assert "ED25519" in (tmp_path / "out/keys").read_text()
        # key files without an agent of the user
        client("build", *flags, "--ssh", f"default={server.key}", context).ok()
        ran = client("build", *flags, context).failed()
    assert "ssh" in ran.err


@BASE
def test_a_context_from_git_over_ssh(
    client: Crossdock, tmp_path: Path, builder: tuple[str, dict[str, str]]
) -> None:
    name, environment = builder
    client.environment |= environment
    repository = make_repository(tmp_path / "repository")
    with sshserver.SshServer(there()) as server, agent(server.key, tmp_path) as agents:
        shutil.copy(server.known_hosts, tmp_path / "home/.ssh/known_hosts")
        url = f"{server.url}{repository}#main"
        out = tmp_path / "out"
        client("build", "--builder", name, "--no-cache", "-o", out, url, env=agents).ok()
        assert (out / "got").read_text() == "from git"
        ran = client("build", "--builder", name, "--no-cache", url, env={"SSH_AUTH_SOCK": ""}).failed()
        assert re.search(r"Permission denied|ssh|SSH", ran.err)
        if name == "embedded":
            # BuildKit knows no named contexts over ssh, and asks the host itself for its key
            named = ("--build-context", f"code={url}", "--ssh", "default", "-o", out)
            (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY --from=code file /named\n")
            flags = ("--builder", name, "--no-cache", "-f", tmp_path / "Dockerfile")
            client("build", *flags, *named, repository, env=agents).ok()
            assert (out / "named").read_text() == "from git"
            known = tmp_path / "home/.ssh/known_hosts"
            known.write_text(f"[127.0.0.1]:{server.port} {server.key.with_suffix('.pub').read_text()}")
            ran = client("build", "--builder", name, "--no-cache", url, env=agents).failed()
            assert "Host key verification failed" in ran.err
