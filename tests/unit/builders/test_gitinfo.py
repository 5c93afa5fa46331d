"""What a context's repository says: attributes of builds, and labels where they are asked for."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from crossdock.api import make_request
from crossdock.builders.gitinfo import git_attributes, git_labels
from crossdock.cancel import CancelToken

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")

URL = "https://git.example/app.git"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a context in a folder of it."""
    for name in ("BUILDX_GIT_INFO", "BUILDX_GIT_LABELS", "BUILDX_GIT_CHECK_DIRTY"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "repository"
    (folder / "app").mkdir(parents=True)
    (folder / "app/Dockerfile").write_text("FROM scratch\n")
    for command in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=n", "-c", "user.email=e@x", "commit", "-qm", "one"],
        ["remote", "add", "origin", URL],
    ):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


def head(repository: Path) -> str:
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=repository, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def attributes(context: Path) -> dict[str, str]:
    return git_attributes({"context": context, "dockerfile": context.parent}, CancelToken())


def test_attributes(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {
        "vcs:revision": head(repository),
        "vcs:source": URL,
        "vcs:localdir:context": "app",
        "vcs:localdir:dockerfile": ".",
    }
    assert attributes(repository / "app") == wanted
    (repository / "new").touch()
    monkeypatch.setenv("BUILDX_GIT_CHECK_DIRTY", "1")
    assert attributes(repository / "app")["vcs:revision"] == f"{wanted['vcs:revision']}-dirty"
    monkeypatch.setenv("BUILDX_GIT_INFO", "false")
    assert attributes(repository / "app") == {}


def test_a_directory_of_no_repository_starts_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("git was started")

    monkeypatch.setattr(subprocess, "run", refuse)
    assert attributes(tmp_path) == {}


@pytest.mark.parametrize("value", ["1", "full", "true"])
def test_labels(repository: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    context = str(repository / "app")
    assert git_labels(context, None) == {}
    monkeypatch.setenv("BUILDX_GIT_LABELS", value)
    source = "org.opencontainers.image."
    wanted = {
        f"{source}revision": head(repository),
        f"{source}source": URL,
        "com.docker.image.source.entrypoint": "app/Dockerfile",
    }
    assert git_labels(context, None) == wanted
    assert "com.docker.image.source.entrypoint" not in git_labels(context, "/elsewhere/Dockerfile")
    assert git_labels("https://git.example/x.git", None) == {}


def test_labels_of_the_caller_win(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUILDX_GIT_LABELS", "1")
    monkeypatch.setenv("DOCKER_CONFIG", str(repository))
    own = {"org.opencontainers.image.source": "own", "a": "b"}
    request = make_request(
        str(repository / "app"), dockerfile=None, tags=(), platforms=(), push=False, load=False, outputs=(),
        cache_from=(), cache_to=(), attests=(), build_args={}, labels=own,
    )  # fmt: skip
    assert request.labels["org.opencontainers.image.source"] == "own"
    assert request.labels["org.opencontainers.image.revision"] == head(repository)
    assert request.labels["a"] == "b"
