"""Frontends in images: any program that speaks LLBBridge on its standard streams, asked for by ``# syntax=``."""

from __future__ import annotations

import tarfile
from io import BytesIO
from typing import TYPE_CHECKING

import pytest

from support.frontendimage import MISBEHAVIOUR, frontends_end

if TYPE_CHECKING:
    from pathlib import Path

    from integration.server.conftest import Buildx, Server

pytestmark = [pytest.mark.needs("crun", "userns", "overlay", "dockercli"), pytest.mark.slow]


@pytest.fixture
def context(tmp_path: Path, frontend: str) -> Path:
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text(f"# syntax={frontend}\nTHIS IS NOT A DOCKERFILE\n")
    return folder


def test_a_file_in_a_language_of_its_own_is_built(
    buildx: Buildx, context: Path, tmp_path: Path, frontend: str
) -> None:
    import json

    done = buildx.build("--build-arg", "key=value", "--target", "t", "-o", tmp_path / "out", context)
    told = json.loads((tmp_path / "out/told").read_text())
    assert told["file"].endswith("THIS IS NOT A DOCKERFILE\n")
    assert told["opts"]["build-arg:key"] == "value"
    assert told["opts"]["target"] == "t"
    assert told["opts"]["source"] == frontend
    assert told["workers"][0]["Platforms"]
    assert "[internal] running frontend" in done.stderr


@pytest.mark.parametrize(("mode", "wanted"), MISBEHAVIOUR)
def test_one_that_misbehaves_fails_its_build_with_a_sentence(
    buildx: Buildx, context: Path, mode: str, wanted: str, tmp_path: Path
) -> None:
    output = f"type=oci,dest={tmp_path / 'out.tar'}"
    done = buildx.build("--build-arg", f"mode={mode}", "-o", output, context, check=False)
    assert done.returncode != 0
    assert wanted in done.stderr
    if mode == "crash":
        assert "the frontend fell over" in done.stderr


def test_one_that_hangs_ends_with_its_client(buildx: Buildx, context: Path, server: Server) -> None:
    running = buildx.start("build", "--progress", "plain", "--build-arg", "mode=hang", context)
    assert running.stdout is not None
    for line in running.stdout:
        if b"hanging" in line:
            break
    running.kill()
    running.wait(10)
    running.stdout.close()
    assert frontends_end()
    assert server.process.poll() is None


def test_what_it_does_not_have_may_be_demanded(buildx: Buildx, context: Path) -> None:
    done = buildx.build("--call", "outline", context, check=False)
    assert done.returncode != 0


def test_the_rules_of_the_daemon_hold_for_images(
    buildx: Buildx, context: Path, tmp_path: Path, frontend: str
) -> None:
    import json

    rule = {"action": "DENY", "selector": {"identifier": f"docker-image://{frontend}"}}
    (tmp_path / "policy.json").write_text(json.dumps({"rules": [rule]}))
    env = {"EXPERIMENTAL_BUILDKIT_SOURCE_POLICY": str(tmp_path / "policy.json")}
    done = buildx.build(context, env=env, check=False)
    assert "denied by policy" in done.stderr


@pytest.mark.parametrize("chosen", ["by the file", "by the client"])
def test_one_fetches_the_context_that_its_client_uploads(
    buildx: Buildx, frontend: str, tmp_path: Path, chosen: str
) -> None:
    data = BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, text in (("Dockerfile", f"# syntax={frontend}\n"), ("sub/file", "uploaded")):
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, BytesIO(text.encode()))
    extra = () if chosen == "by the file" else ("--build-arg", f"BUILDKIT_SYNTAX={frontend}")
    done = buildx.build(
        "--build-arg", "mode=upload", *extra, "-o", tmp_path / "out", "-", stdin=data.getvalue()
    )
    assert (tmp_path / "out/sub/file").read_text() == "uploaded"
    assert "begins with b'Dock'" in done.stderr
