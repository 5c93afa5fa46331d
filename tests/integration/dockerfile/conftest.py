"""Real builds of small Dockerfiles, for this machine's platform and an emulated one at once."""

from __future__ import annotations

import functools
import http.server
import shutil
import textwrap
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from support.cli import Crossdock, Ran
    from support.servers import BaseImages

PLATFORMS = ("linux/amd64", "linux/arm64")


@dataclass
class Project:
    """A context folder and the command; the Dockerfile's first line may use ``$base``."""

    crossdock: Crossdock
    folder: Path
    base: str
    #: what the last build wrote
    out: Path = field(init=False)

    def __post_init__(self) -> None:
        self.out = self.folder.parent / "out"

    def write(self, files: Mapping[str, str | bytes]) -> None:
        """Write files of the context; a name that ends in ``/`` is a directory."""
        for name, data in files.items():
            path = self.folder / name
            if name.endswith("/"):
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data.encode() if isinstance(data, str) else data)

    def dockerfile(self, text: str, name: str = "Dockerfile") -> None:
        """Write the Dockerfile, indentation removed."""
        self.write({name: textwrap.dedent(text).lstrip("\n").replace("$base", self.base)})

    def run(
        self,
        text: str | None,
        *args: str | Path,
        files: Mapping[str, str | bytes] | None = None,
        platforms: tuple[str, ...] = PLATFORMS[:1],
        env: Mapping[str, str] | None = None,
        stdin: str | None = None,
        context: str | Path | None = None,
        output: bool = True,
    ) -> Ran:
        """Build into ``out``, which is emptied first; does not judge the exit code."""
        self.write(files or {})
        if text is not None:
            self.dockerfile(text)
        shutil.rmtree(self.out, ignore_errors=True)
        outputs = ["-o", f"type=local,dest={self.out}"] if output else []
        return self.crossdock(
            "build",
            "--progress=plain",
            "--platform",
            ",".join(platforms),
            *outputs,
            *args,
            self.folder if context is None else context,
            env=env,
            stdin=stdin,
        )

    def both(self, text: str, *args: str | Path, **more: object) -> Ran:
        """Build for both platforms; must succeed."""
        return self.run(text, *args, platforms=PLATFORMS, **more).ok()  # type: ignore[arg-type]

    def read(self, name: str) -> str:
        """A file of the result; for builds of both platforms it must be the same for each."""
        if (self.out / "linux_arm64").exists():
            found = {(self.out / f"linux_{p.partition('/')[2]}" / name).read_text() for p in PLATFORMS}
            assert len(found) == 1, found
            return found.pop()
        return (self.out / name).read_text()


@pytest.fixture
def project(shared_crossdock: Crossdock, base: BaseImages, tmp_path: Path) -> Project:
    """A project of this case; the store is the module's."""
    folder = tmp_path / "context"
    folder.mkdir()
    return Project(shared_crossdock, folder, base.index)


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
