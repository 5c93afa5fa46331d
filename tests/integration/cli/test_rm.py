"""``rm`` of embedded builders: what happens to their stores."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from support.cli import PROGRAM

if TYPE_CHECKING:
    from pathlib import Path

    from support.cli import Crossdock
    from support.servers import BaseImages

pytestmark = pytest.mark.needs("base", "crun", "userns", "overlay")


@pytest.fixture
def project(tmp_path: Path, base: BaseImages) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "Dockerfile").write_text(
        f"FROM {base.index}\nRUN mkdir /d && chmod 0 /d && touch /f && chown 7:7 /f || true\n"
    )
    return folder


def create(crossdock: Crossdock, name: str, root: Path) -> None:
    crossdock("create", "--name", name, "--driver", "embedded", "--driver-opt", f"root={root}").ok()


def test_a_store_of_its_own_goes_with_the_builder(crossdock: Crossdock, project: Path) -> None:
    root = crossdock.folder / "private"
    create(crossdock, "b", root)
    crossdock("build", "--builder", "b", project).ok()
    assert (root / "version").exists()
    crossdock("rm", "b").ok()
    assert not root.exists()
    assert "b" not in crossdock("ls", "--format", "{{.Name}}").ok().out.split()


def test_it_can_be_kept(crossdock: Crossdock, project: Path) -> None:
    root = crossdock.folder / "private"
    create(crossdock, "b", root)
    crossdock("build", "--builder", "b", project).ok()
    crossdock("rm", "--keep-state", "b").ok()
    assert (root / "version").exists()
    create(crossdock, "again", root)
    assert "CACHED" in crossdock("build", "--builder", "again", "--progress=plain", project).ok().err


def test_the_usual_store_stays(crossdock: Crossdock, project: Path) -> None:
    crossdock("create", "--name", "plain", "--driver", "embedded").ok()
    crossdock("build", "--builder", "plain", project).ok()
    crossdock("rm", "plain").ok()
    assert (crossdock.root / "version").exists()
    create(crossdock, "named", crossdock.root)
    crossdock("rm", "named").ok()
    assert (crossdock.root / "version").exists()


def test_one_that_another_builder_has_stays(crossdock: Crossdock, project: Path) -> None:
    root = crossdock.folder / "shared"
    create(crossdock, "one", root)
    (crossdock.folder / "link").symlink_to(root)
    create(crossdock, "two", crossdock.folder / "link")
    crossdock("build", "--builder", "one", project).ok()
    crossdock("rm", "one").ok()
    assert (root / "version").exists()
    crossdock("rm", "two").ok()
    assert not root.exists()


def test_one_that_a_builder_of_somebody_else_was_booted_with_stays(
    crossdock: Crossdock, project: Path
) -> None:
    root = crossdock.folder / "shared"
    create(crossdock, "one", root)
    crossdock("build", "--builder", "one", project).ok()
    (root / "builders/theirs0.json").write_text("{}")
    crossdock("rm", "one").ok()
    assert (root / "version").exists()


def test_one_that_was_never_used_is_no_trouble(crossdock: Crossdock) -> None:
    create(crossdock, "b", crossdock.folder / "never")
    crossdock("rm", "b").ok()
    assert not (crossdock.folder / "never").exists()


def test_a_running_build_keeps_its_store(crossdock: Crossdock, base: BaseImages, tmp_path: Path) -> None:
    root = crossdock.folder / "private"
    create(crossdock, "b", root)
    (tmp_path / "Dockerfile").write_text(
        f"FROM {base.index}\nRUN echo begun && read x < /dev/stdin; sleep 30\n"
    )
    running = subprocess.Popen(
        [PROGRAM, "build", "--builder", "b", "--progress=plain", str(tmp_path)],
        env=crossdock.environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert running.stderr is not None
        assert any(line.rstrip().endswith("begun") and "RUN" not in line for line in running.stderr)
        refused = crossdock("rm", "b").failed(1)
        assert "used by a running build" in refused.err
        assert (root / "version").exists()
    finally:
        running.terminate()
        running.communicate()
