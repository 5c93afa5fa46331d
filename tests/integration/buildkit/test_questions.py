"""``--call``, ``--check`` and remote Dockerfiles on real Engines' BuildKit: 0.8 knows no methods, 0.12 knows two."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from support.scripted import Reply, ScriptedServer

if TYPE_CHECKING:
    from pathlib import Path

    import services
    from support.cli import Crossdock, Ran
    from support.servers import BaseImages

pytestmark = [pytest.mark.needs("root", "docker", "docker26", "registry", "base"), pytest.mark.slow]

TEXT = """\
# the first
FROM {base} AS one
ARG A=1
RUN --mount=type=secret,id=s,required true
FROM one as two
"""


@pytest.fixture(params=["docker_engine", "docker_engine_containerd"], ids=["20.10", "26.1"], scope="session")
def engine(request: pytest.FixtureRequest) -> services.DockerEngine:
    found: services.DockerEngine = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def context(tmp_path: Path, base: BaseImages) -> Path:
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text(TEXT.format(base=base.index))
    return folder


def ask(crossdock: Crossdock, engine: services.DockerEngine, *args: str | Path) -> Ran:
    environment = {"DOCKER_HOST": engine.address, "BUILDX_BUILDER": "default"}
    return crossdock("build", *args, env=environment)


def test_checks_find_what_the_embedded_builder_finds(
    crossdock: Crossdock, engine: services.DockerEngine, context: Path
) -> None:
    there, here = ask(crossdock, engine, "--check", context), crossdock("build", "--check", context)
    assert (there.code, there.out) == (here.code, here.out)
    assert there.code == 1
    assert "FromAsCasing" in there.out
    (context / "Dockerfile").write_text("FROM scratch\n")
    assert ask(crossdock, engine, "--check", context).ok().out == "Check complete, no warnings found.\n"


@pytest.mark.parametrize("method", ["outline", "targets", "subrequests.describe", "check"])
def test_methods_answer_in_json(
    crossdock: Crossdock, engine: services.DockerEngine, context: Path, method: str
) -> None:
    there = ask(crossdock, engine, f"--call={method},format=json", context)
    here = crossdock("build", f"--call={method},format=json", context)
    answer, own = json.loads(there.out), json.loads(here.out)
    if method in ("outline", "targets"):
        assert set(answer) <= set(own)
        assert answer.get("targets", []) == own.get("targets", [])
    if method == "outline":
        assert [a["name"] for a in answer["args"]] == ["A"]
        assert answer["secrets"] == own["secrets"]
    assert there.code == here.code


def test_a_dockerfile_by_url_is_fetched_by_the_daemon(
    crossdock: Crossdock, engine: services.DockerEngine, context: Path, tmp_path: Path
) -> None:
    (context / "f").write_text("f")
    with ScriptedServer() as server:
        server.on("GET", "/my", Reply(200, b"FROM scratch\nCOPY f /got\n"))
        server.on("HEAD", "/my", Reply(200, b""))
        ask(crossdock, engine, "-f", f"http://{server.host}/my", "-o", tmp_path / "out", context).ok()
    assert (tmp_path / "out/got").read_text() == "f"


def test_an_oci_layout_and_a_key_file_reach_the_daemon(
    crossdock: Crossdock,
    docker_engine_containerd: services.DockerEngine,
    context: Path,
    busybox_layout: Path,
    tmp_path: Path,
) -> None:
    import subprocess

    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True)
    (context / "Dockerfile").write_text(
        "FROM named\nRUN --mount=type=ssh,required [ -S $SSH_AUTH_SOCK ] && echo ok > /ok\n"
    )
    ask(
        crossdock, docker_engine_containerd, "--build-context", f"named=oci-layout://{busybox_layout}",
        "--ssh", f"default={tmp_path}/key", "--network=host", "-o", tmp_path / "out", context,
    ).ok()  # fmt: skip
    assert (tmp_path / "out/ok").read_text() == "ok\n"
