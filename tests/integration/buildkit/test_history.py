"""`history` on records of real daemons: what is told of builds that went well and badly, and where it is shown."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tarfile
import tempfile
import threading
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.cli import PROGRAM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.cli import Crossdock
    from support.relays import Relay
    from support.servers import BaseImages

pytestmark = [pytest.mark.needs("root", "docker", "docker26", "registry", "base"), pytest.mark.slow]


@pytest.fixture
def builder(relay: Callable[..., Relay], crossdock: Crossdock) -> Crossdock:
    """The command with a builder of the daemon in use."""
    crossdock("create", "--name", "b", "--driver", "remote", "--use", relay().address).ok()
    return crossdock


@pytest.fixture
def built(builder: Crossdock, context: Path, tmp_path: Path) -> Crossdock:
    """One build of two platforms with provenance."""
    flags = ("--platform", "linux/amd64,linux/arm64", "--provenance", "mode=max", "--build-arg", "A=1")
    builder("build", *flags, "-o", f"type=oci,dest={tmp_path}/x.tar", "--target=", context).ok()
    return builder


def test_a_build_is_told_whole(built: Crossdock, context: Path) -> None:
    details = json.loads(built("history", "inspect", "--format", "json").ok().out)
    assert details["Context"] == str(context)
    assert details["Dockerfile"] == "Dockerfile"
    assert details["Status"] == "completed"
    assert details["Platform"] == ["linux/amd64", "linux/arm64"]
    assert details["BuildArgs"] == [{"Name": "A", "Value": "1"}]
    assert details["NumCompletedSteps"] == details["NumTotalSteps"] > 0
    kinds = {(a.get("Platform", ""), a["Type"].rpartition("/")[0]) for a in details["Attachments"]}
    assert {
        ("linux/amd64", "https://slsa.dev/provenance"),
        ("linux/arm64", "https://slsa.dev/provenance"),
    } <= kinds
    text = built("history", "inspect").ok().out
    for line in ("Platforms:  linux/amd64, linux/arm64", "BUILD ARG   VALUE", "Attachments:"):
        assert line in text
    assert (
        built("history", "inspect", "--format", "{{.Status}} {{.Config.NoCache}}").ok().out
        == "completed false\n"
    )


def test_attachments_are_written_out(built: Crossdock) -> None:
    details = json.loads(built("history", "inspect", "--format", "json").ok().out)
    wanted = next(
        a for a in details["Attachments"] if a.get("Platform") == "linux/arm64" and "slsa" in a["Type"]
    )
    flags = ("--type", "provenance", "--platform", "linux/arm64")
    by_type = built("history", "inspect", "attachment", *flags).ok().out
    assert built("history", "inspect", "attachment", "^0", wanted["Digest"]).ok().out == by_type
    assert "linux" in by_type
    assert built("history", "inspect", "attachment").failed().err.startswith("ERROR: which attachment?")
    assert "no such attachment" in built("history", "inspect", "attachment", "--type", "sbom").failed().err


def test_a_failed_step_is_told_with_its_lines(builder: Crossdock, context: Path, base: BaseImages) -> None:
    (context / "Dockerfile").write_text(f"FROM {base.amd64}\nRUN echo some words && exit 7\n")
    builder("build", "--network=none", "--no-cache", context).failed(1)
    details = json.loads(builder("history", "inspect", "--format", "json").ok().out)
    assert details["Status"] == "failed"
    assert "exit code: 7" in details["Error"]["Message"]
    text = builder("history", "inspect").ok().out
    assert "exit code: 7" in text
    if "Sources" in details["Error"]:  # BuildKit v0.20 and later keep the whole error
        assert details["Error"]["Logs"] == ["some words"]
        assert "2 | >>> RUN echo some words" in text
        assert "> some words" in text
    assert "some words" in builder("history", "logs").ok().out


def test_bundles_hold_records_and_blobs(built: Crossdock, tmp_path: Path) -> None:
    built("history", "export", "--finalize", "-o", tmp_path / "x.dockerbuild").ok()
    with tarfile.open(tmp_path / "x.dockerbuild", "r:gz") as tar:
        names = tar.getnames()
        index = json.load(tar.extractfile("index.json") or pytest.fail("no index"))
        assert len(index["manifests"]) == 1
        digest = index["manifests"][0]["digest"].removeprefix("sha256:")
        manifest = json.load(tar.extractfile(f"blobs/sha256/{digest}") or pytest.fail("no manifest"))
    kinds = {layer["mediaType"] for layer in manifest["layers"]}
    assert {"application/vnd.in-toto+json", "application/vnd.buildkit.status.v0"} <= kinds
    assert all(
        f"blobs/sha256/{layer['digest'].removeprefix('sha256:')}" in names for layer in manifest["layers"]
    )


@contextmanager
def desktop(path: Path, answer: bytes) -> Iterator[list[bytes]]:
    """A stand-in for Docker Desktop's builds server, which is closed software: takes one upload at its socket."""
    got: list[bytes] = []
    path.parent.mkdir(parents=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        near, _ = listener.accept()
        with near:
            data = b""
            while not data.endswith(b"\r\n0\r\n\r\n"):
                data += near.recv(65536)
            got.append(data)
            near.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield got
    finally:
        thread.join()
        listener.close()


@pytest.fixture
def home(crossdock: Crossdock) -> Iterator[Path]:
    """A home with an opener of addresses that notes them in the file `opened`; short, for the socket's path."""
    with tempfile.TemporaryDirectory(prefix="h", dir="/tmp") as folder:
        home = Path(folder)
        opener = home / "opener"
        opener.write_text(f'#!/bin/sh\necho "$1" >> {home}/opened\n')
        opener.chmod(0o755)
        crossdock.environment |= {"HOME": str(home), "BROWSER": str(opener)}
        yield home


ACCEPTED = b'HTTP/1.1 200 OK\r\nContent-Length: 11\r\nConnection: close\r\n\r\n["one","t"]'
REFUSED = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 5\r\nConnection: close\r\n\r\nwrong"


def test_bundles_go_to_docker_desktop(built: Crossdock, home: Path) -> None:
    bundle = home / "x.dockerbuild"
    built("history", "export", "-o", bundle).ok()
    with desktop(home / ".docker/desktop/docker-desktop-build.sock", ACCEPTED) as got:
        ran = built("history", "import", "-f", bundle).ok()
    assert got[0].startswith(b"POST /upload HTTP/1.1\r\n")
    assert b"\x1f\x8b" in got[0]
    pages = [f"docker-desktop://dashboard/build/.imported/_/{ref}" for ref in ("one", "t")]
    assert ran.err.splitlines() == pages
    assert (home / "opened").read_text().splitlines() == pages[:1]


def test_docker_desktop_that_refuses_or_is_not_there(crossdock: Crossdock, home: Path) -> None:
    (home / "x").write_bytes(b"no bundle")
    assert "cannot reach Docker Desktop" in crossdock("history", "import", "-f", home / "x").failed(1).err
    with desktop(home / ".docker/desktop/docker-desktop-build.sock", REFUSED):
        ran = crossdock("history", "import", "-f", home / "x").failed(1)
    assert "refused the bundle: 400 wrong" in ran.err
    assert "cannot open the bundle" in crossdock("history", "import", "-f", home / "none").failed(1).err


def test_a_record_is_opened_in_docker_desktop(built: Crossdock, home: Path) -> None:
    ref = built("history", "ls", "--format", "{{.Ref}}").ok().out.splitlines()[0]
    built("history", "open").ok()
    assert (home / "opened").read_text() == f"docker-desktop://dashboard/build/b/b0/{ref}\n"
    ran = built("history", "open", env={"BROWSER": "/bin/false"}).failed(1)
    assert "could not open" in ran.err


def test_traces_are_printed_and_compared_in_a_browser(built: Crossdock, context: Path, home: Path) -> None:
    printed = built("history", "trace")
    if printed.code != 0:  # Docker Engine 26.1 keeps none
        assert "has no trace" in printed.failed(1).err
        return
    trace = json.loads(printed.out)["data"][0]
    assert any(span["operationName"].startswith("moby.buildkit.v1.") for span in trace["spans"])
    built("build", "--no-cache", "-o", "type=cacheonly", context).ok()
    command = [str(PROGRAM), "history", "trace", "--compare", "^1", "^0"]
    with subprocess.Popen(command, env=built.environment, stderr=subprocess.PIPE, text=True) as viewer:
        try:
            assert viewer.stderr is not None
            url = viewer.stderr.readline().rpartition(" ")[2].strip()
            page = urllib.request.urlopen(url, timeout=20).read()
            assert b"/api/traces/" in page
            names = url.rpartition("/")[2].split("...")
            assert names[0] == trace["traceID"]
            for name in names:
                raw = urllib.request.urlopen(f"{url.partition('/trace/')[0]}/api/traces/{name}", timeout=20)
                assert json.load(raw)["data"][0]["traceID"] == name
            assert (home / "opened").read_text() == f"{url}\n"
        finally:
            os.kill(viewer.pid, signal.SIGINT)
        assert viewer.wait(20) == 0


def test_records_are_removed(built: Crossdock) -> None:
    built("history", "rm", "--all").ok()
    assert built("history", "ls", "--format", "{{.Ref}}").ok().out == ""
    assert "no build records" in built("history", "inspect").failed(1).err
