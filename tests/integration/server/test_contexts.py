"""Directories of a real client, sent again and again: whatever changes, at whichever side, the build gets what the client has."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from integration.server.conftest import start
from support.changes import replace, rewrite

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from integration.server.conftest import Buildx, Server
    from support.cli import Crossdock

pytestmark = pytest.mark.needs("crun", "userns", "overlay", "dockercli")

#: after this a file's times tell of any change to it
OLD_S = 0.15


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    for number in range(40):
        path = folder / f"d{number // 10}/e/f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content {number}")
    (folder / "link").symlink_to("d0/e/f0")
    (folder / "void").mkdir()
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    return folder


def tree(root: Path) -> dict[str, tuple[int, str]]:
    """Kinds, modes, targets and contents, by path."""
    out = {}
    for path in root.rglob("*"):
        mode, name = path.lstat().st_mode, path.relative_to(root).as_posix()
        if stat.S_ISLNK(mode):
            out[name] = (stat.S_IFLNK, os.readlink(path))
        else:
            out[name] = (mode, path.read_bytes().hex() if stat.S_ISREG(mode) else "")
    return out


def built(buildx: Buildx, context: Path) -> dict[str, tuple[int, str]]:
    """What a build sees of the context."""
    out = buildx.folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    buildx.build("-o", out, context)
    return tree(out)


def copies(server: Server) -> list[Path]:
    """Where the server keeps directories of clients that look like the context."""
    return [path.parent for path in (server.root / "mounts").glob("*/fs/d0")]


def settle(buildx: Buildx, context: Path) -> None:
    """Have the server know the directory as well as it can."""
    for _ in range(2):
        buildx.build(context)
        time.sleep(OLD_S)
    buildx.build(context)


CHANGES: dict[str, Callable[[Path], object]] = {
    "changed": lambda r: (r / "d1/e/f11").write_text("other"),
    "removed": lambda r: (r / "d1/e/f12").unlink(),
    "added": lambda r: (r / "d2/new").write_text("new"),
    "of another mode": lambda r: (r / "d3/e/f33").chmod(0o755),
    "a directory of another mode": lambda r: (r / "d3/e").chmod(0o750),
    "a directory removed": lambda r: shutil.rmtree(r / "d2/e"),
    "a directory added": lambda r: (r / "void/new").mkdir(),
    "a link elsewhere": replace("link", lambda p: p.symlink_to("d0/e/f1")),
    "a link that becomes a file": replace("link", lambda p: p.write_text("d0/e/f1")),
    "a file that becomes a directory": replace("d0/e/f5", Path.mkdir),
    "a directory that becomes a file": replace("void", Path.touch),
    "excluded": lambda r: (r / ".dockerignore").write_text("d0/e\n.dockerignore\n"),
    "included again": lambda r: (r / ".dockerignore").unlink(),
}


def test_whatever_changes_at_the_client_reaches_the_build(buildx: Buildx, context: Path) -> None:
    assert built(buildx, context) == tree(context)
    settle(buildx, context)
    for name, change in CHANGES.items():
        change(context)
        wanted = tree(context)
        if name == "excluded":
            wanted = {p: v for p, v in wanted.items() if p != ".dockerignore" and not p.startswith("d0/e")}
        for _ in range(2):
            assert built(buildx, context) == wanted, name
        time.sleep(OLD_S)
        assert built(buildx, context) == wanted, name


TAMPERINGS: dict[str, Callable[[Path], object]] = {
    "other content": rewrite("d1/e/f11"),
    "gone": lambda r: (r / "d1/e/f12").unlink(),
    "too many": lambda r: (r / "d2/e/evil").write_text("evil"),
    "another mode": lambda r: (r / "d3/e/f33").chmod(0o777),
    "a link for a directory": replace("d2/e", lambda p: p.symlink_to("../d1/e")),
    "all gone": lambda r: [replace(path.name)(r) for path in r.iterdir()],
}


def test_whatever_another_process_does_to_the_servers_copy_is_put_right(
    buildx: Buildx, server: Server, context: Path
) -> None:
    wanted = tree(context)
    settle(buildx, context)
    for name, tamper in TAMPERINGS.items():
        (copy,) = copies(server)
        tamper(copy)
        assert built(buildx, context) == wanted, name
        time.sleep(OLD_S)
        assert built(buildx, context) == wanted, name


def begun(server: Server, buildx: Buildx, context: Path) -> subprocess.Popen[bytes]:
    """Start a build and return when part of its context has come."""
    client = buildx.start("build", context)
    deadline = time.monotonic() + 30
    while client.poll() is None and sum(1 for copy in copies(server) for _ in copy.glob("big/*")) < 5:
        assert time.monotonic() < deadline, "no file came"
        time.sleep(0.001)
    return client


def grow(context: Path) -> None:
    """Have more in it than comes at once."""
    (context / "big").mkdir()
    for number in range(150):
        (context / f"big/{number}").write_bytes(number.to_bytes(4, "big") * 50_000)


@pytest.mark.parametrize("victim", ["server", "client"])
def test_a_kill_in_the_middle_of_a_transfer_spoils_nothing(
    buildx: Buildx, server: Server, crossdock: Crossdock, context: Path, tmp_path: Path, victim: str
) -> None:
    settle(buildx, context)
    grow(context)
    (context / "d1/e/f11").write_text("changed meanwhile")
    (context / "d1/e/f12").unlink()
    client = begun(server, buildx, context)
    if victim == "client":
        client.kill()
        client.communicate(timeout=30)
        for _ in range(2):
            assert built(buildx, context) == tree(context)
        return
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait(20)
    client.communicate(timeout=60)
    again = start(tmp_path, crossdock)
    for _ in range(2):
        assert built(buildx, context) == tree(context)
    assert again.stop() == 0


def test_two_clients_of_one_directory_at_once_get_all_of_it(buildx: Buildx, context: Path) -> None:
    settle(buildx, context)
    for number in range(3):
        (context / "d1/e/f11").write_text(f"round {number}")
        wanted = tree(context)
        clients = [buildx.start("build", "-o", buildx.folder / f"o{n}", context) for n in range(3)]
        for client in clients:
            out, _ = client.communicate(timeout=60)
            assert client.returncode == 0, out.decode()
        assert [tree(buildx.folder / f"o{n}") for n in range(3)] == [wanted] * 3
        for n in range(3):
            shutil.rmtree(buildx.folder / f"o{n}")


def test_what_did_not_change_is_not_built_again(buildx: Buildx, context: Path) -> None:
    settle(buildx, context)
    done = buildx.build(context)
    assert "CACHED" in done.stderr
    assert [line for line in done.stderr.splitlines() if "transferring context" in line]
