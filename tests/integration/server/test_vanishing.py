"""Clients that are killed at one phase or the other: nothing of them stays, and the server goes on."""

from __future__ import annotations

import os
import subprocess
import time
from typing import IO, TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from integration.server.conftest import Buildx, Server
    from support.servers import BaseImages

pytestmark = pytest.mark.needs("base", "crun", "userns", "overlay", "dockercli")

WAIT_S = 60


@pytest.fixture
def context(tmp_path: Path, base: BaseImages) -> Path:
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text(f"FROM {base.index}\nCOPY big /big\n")
    (folder / "big").write_bytes(os.urandom(60 << 20))
    return folder


def wait_for(lines: IO[bytes], wanted: bytes) -> None:
    """Read what is printed until ``wanted`` is in a line."""
    seen = []
    for line in lines:
        seen.append(line)
        if wanted in line:
            return
    pytest.fail(b"".join(seen).decode(errors="replace"))


def kill(client: subprocess.Popen[bytes]) -> None:
    client.kill()
    client.communicate(timeout=30)


def leftovers(server: Server) -> list[str]:
    """What a build keeps in the store's folder only while it lasts."""
    return [name for name in os.listdir(server.root) if name.startswith("crossdock-")]


def nothing_stays(server: Server, buildx: Buildx, base: BaseImages) -> None:
    deadline = time.monotonic() + WAIT_S
    while leftovers(server):
        assert time.monotonic() < deadline, leftovers(server)
        time.sleep(0.1)
    assert "Traceback" not in server.log
    assert "unexpected" not in server.log
    buildx.build("-", stdin=f"FROM {base.index}\nRUN echo on\n".encode())


def test_while_it_uploads_an_archive(
    buildx: Buildx, server: Server, base: BaseImages, tmp_path: Path
) -> None:
    client = subprocess.Popen(
        [buildx.cli.buildx, "build", "--progress", "plain", "-"],
        env=buildx.cli.environment({"TMPDIR": str(tmp_path)}),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert client.stdin is not None
    assert client.stderr is not None
    # The head of an archive, and not its end.
    header = b"big".ljust(124, b"\0") + b"00400000000\0" + b"14000000000\0"
    header = header.ljust(148, b"\0") + b" " * 8 + b"0" + b"\0" * 100 + b"ustar\x0000"
    header = header.ljust(512, b"\0")
    header = header[:148] + f"{sum(header):06o}\0 ".encode() + header[156:]
    client.stdin.write(header + bytes(1 << 20))
    client.stdin.flush()
    wait_for(client.stderr, b"load remote build context")
    kill(client)
    nothing_stays(server, buildx, base)


def test_while_it_sends_its_context(buildx: Buildx, server: Server, base: BaseImages, context: Path) -> None:
    client = buildx.start("build", "--progress", "plain", context)
    assert client.stdout is not None
    wait_for(client.stdout, b"load build context")
    kill(client)
    nothing_stays(server, buildx, base)


@pytest.mark.parametrize("kind", ["tar", "oci", "docker"])
def test_while_an_archive_is_written_to_it(
    buildx: Buildx, server: Server, base: BaseImages, context: Path, kind: str
) -> None:
    # Nobody reads the pipe: the export stands still.
    read, write = os.pipe()
    client = subprocess.Popen(
        [buildx.cli.buildx, "build", "--progress", "plain", "-o", f"type={kind},dest=-", str(context)],
        env=buildx.cli.environment({"TMPDIR": str(context.parent)}),
        stdin=subprocess.DEVNULL,
        stdout=write,
        stderr=subprocess.PIPE,
    )
    os.close(write)
    assert client.stderr is not None
    wait_for(client.stderr, b"exporting to" if kind != "tar" else b"exporting to client tarball")
    kill(client)
    os.close(read)
    nothing_stays(server, buildx, base)


@pytest.mark.parametrize(
    "output",
    [
        ("-o", "type=oci,tar=false,dest={dest}"),
        ("-o", "type=local,dest={dest}"),
        ("--cache-to", "type=local,dest={dest},mode=max"),
    ],
    ids=["layout", "files", "cache"],
)
def test_while_a_directory_is_written_at_it(
    buildx: Buildx, server: Server, base: BaseImages, context: Path, tmp_path: Path, output: tuple[str, str]
) -> None:
    flag, value = output
    client = buildx.start("build", "--progress", "plain", flag, value.format(dest=tmp_path / "out"), context)
    assert client.stdout is not None
    wait_for(client.stdout, b"exporting ")
    kill(client)
    nothing_stays(server, buildx, base)
