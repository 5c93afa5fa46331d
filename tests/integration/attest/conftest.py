"""A store and a context of its own for every case."""

from __future__ import annotations

import functools
import http.server
import threading
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.servers import BaseImages


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "store"
    monkeypatch.setenv("CROSSDOCK_ROOT", str(root))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    for name in ("BUILDX_BUILDER", "BUILDX_CONFIG", "SOURCE_DATE_EPOCH", "BUILDX_METADATA_PROVENANCE"):
        monkeypatch.delenv(name, raising=False)
    return root


@pytest.fixture
def context(tmp_path: Path, base: BaseImages) -> Path:
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "file").write_text("x")
    (folder / "Dockerfile").write_text(
        f"FROM {base.amd64}\nARG COLOUR\nCOPY file /\n"
        "RUN --mount=type=secret,id=token,required=false echo $COLOUR > /colour\n"
    )
    return folder


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the URL of a web server for it."""
    (tmp_path / "www").mkdir()
    handler = functools.partial(_Quiet, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield tmp_path / "www", f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
