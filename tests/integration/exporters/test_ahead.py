"""Platforms that are built first are packed and sent while the others still build; what is published is all or nothing."""

from __future__ import annotations

import json
import signal
import threading
from typing import TYPE_CHECKING

import pytest

from support.scripted import Reply, error_reply
from support.servers import skopeo
from support.uploadgate import DOCKERFILE, WAIT_S

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from support.cli import Crossdock, Ran
    from support.httprelay import HttpRelay, Seen
    from support.servers import BaseImages
    from support.uploadgate import Gate

pytestmark = pytest.mark.needs("base", "userns", "crun", "registry", "skopeo", "qemu")


class Project:
    """Builds two platforms through the relay."""

    def __init__(self, crossdock: Crossdock, relay: HttpRelay, base: BaseImages, repository: str) -> None:
        self.crossdock = crossdock
        path = repository.partition("/")[2]
        self.direct = f"docker://{repository}:1"
        self.flags = ("--platform=linux/amd64,linux/arm64", "--progress=plain", "--push")
        self.name = f"{relay.host}/{path}:1"
        self.folder = crossdock.folder / "context"
        self.folder.mkdir()
        origin = base.index.replace(
            base.index.partition("/")[0], relay.host
        )  # so that its layers are mounted
        (self.folder / "Dockerfile").write_text(DOCKERFILE.format(base=origin, gate=relay.host))

    def build(self, **env: str) -> Ran:
        return self.crossdock("build", *self.flags, "-t", self.name, self.folder, env=env)

    def start(self) -> subprocess.Popen[str]:
        return self.crossdock.start("build", *self.flags, "-t", self.name, self.folder)

    def made(self, folder: Path) -> dict[str, str]:
        """What is in ``/made`` of each platform of the image in the registry."""
        found = {}
        for architecture in ("amd64", "arm64"):
            out = folder / architecture
            self.crossdock(
                *("build", "--progress=quiet", f"--platform=linux/{architecture}", "-o", out, "-"),
                stdin=f"FROM scratch\nCOPY --from={self.direct.removeprefix('docker://')} /made /\n",
            ).ok()
            found[architecture] = (out / "made").read_text().strip()
        return found

    def published(self) -> bool:
        """Whether the registry has the tag."""
        return skopeo("inspect", "--raw", "--tls-verify=false", self.direct, check=False).returncode == 0


@pytest.fixture
def project(crossdock: Crossdock, gate: Gate, base: BaseImages, repository: str) -> Project:
    return Project(crossdock, gate.relay, base, repository)


@pytest.mark.parametrize("limit", ["", "2GB"])
def test_the_layer_of_one_platform_is_sent_while_the_other_builds(
    project: Project, gate: Gate, tmp_path: Path, limit: str
) -> None:
    """With a limit the store is watched while it is written to, also ahead."""
    project.build(CROSSDOCK_MAX_USED_SPACE=limit).ok()
    assert gate.uploads == 4, "a layer and a config for each platform, each once"
    assert gate.manifests == 3
    assert project.made(tmp_path) == {"amd64": "amd64", "arm64": "arm64"}


def test_nothing_is_published_when_the_other_platform_fails(
    project: Project, gate: Gate, tmp_path: Path
) -> None:
    gate.status = 500
    done = project.build().failed()
    assert "exit code: 7" in done.err
    assert gate.uploads == 1
    assert gate.manifests == 0
    assert not project.published()
    gate.status = 200
    project.build().ok()
    assert gate.uploads == 4, "what was sent was not sent again"
    assert project.made(tmp_path) == {"amd64": "amd64", "arm64": "arm64"}


def test_what_could_not_be_sent_ahead_is_sent_in_the_end(
    project: Project, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry refuses the first upload, as one does whose credentials expire meanwhile."""

    def refuse(seen: Seen) -> Reply | None:
        if seen.method == "POST" and "/blobs/uploads/" in seen.path and not gate.open.is_set():
            gate.open.set()
            return error_reply(403, "DENIED")
        return None

    monkeypatch.setattr(gate, "upload", refuse)
    done = project.build().ok()
    assert "DENIED" not in done.err
    assert gate.uploads in (4, 5), "what was refused may have been the mount of a base layer"
    assert project.made(tmp_path) == {"amd64": "amd64", "arm64": "arm64"}


def test_an_upload_that_goes_on_when_the_build_is_over_is_waited_for(
    project: Project, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is held back until the other platform's layer has arrived; neither is sent twice."""
    others = threading.Event()
    first: list[str] = []

    def hold(seen: Seen) -> Reply | None:
        if seen.method == "PUT" and "/blobs/uploads/" in seen.path and not first:
            first.append(seen.path)
            gate.open.set()
            assert others.wait(WAIT_S)
        return None

    monkeypatch.setattr(gate, "upload", hold)
    monkeypatch.setattr(gate, "arrived", others.set)
    project.build().ok()
    assert gate.uploads == 4
    assert project.made(tmp_path) == {"amd64": "amd64", "arm64": "arm64"}


def test_an_interrupt_ends_what_is_sent_ahead(
    project: Project, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    sending, over = threading.Event(), threading.Event()

    def stall(seen: Seen) -> Reply | None:
        if seen.method == "PUT" and "/blobs/uploads/" in seen.path:
            sending.set()
            over.wait(WAIT_S)
        return None

    monkeypatch.setattr(gate, "upload", stall)
    child = project.start()
    assert sending.wait(WAIT_S)
    assert gate.asked.wait(WAIT_S)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=WAIT_S)
    over.set()
    gate.open.set()
    assert child.returncode == 130
    assert "Traceback" not in err
    assert not project.published()
    said = project.crossdock("store", "check").ok().out
    assert "no problems found" in said


def test_layers_are_packed_ahead_for_archives_too(project: Project, gate: Gate, tmp_path: Path) -> None:
    gate.open.set()
    out = tmp_path / "image.tar"
    project.crossdock("build", *project.flags[:2], "-o", f"type=oci,dest={out}", project.folder).ok()
    shown = skopeo("inspect", "--raw", f"oci-archive:{out}")
    assert [m["platform"]["architecture"] for m in json.loads(shown.stdout)["manifests"]] == [
        "amd64",
        "arm64",
    ]
    assert gate.uploads == 0
