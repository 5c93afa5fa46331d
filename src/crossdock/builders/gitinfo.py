"""What a local context's repository says of it: ``vcs:source``, ``vcs:revision`` and where in it directories lie.

Spec: docker/buildx ``build/git.go``; environment ``BUILDX_GIT_INFO``, ``BUILDX_GIT_CHECK_DIRTY``, ``BUILDX_GIT_LABELS``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crossdock.errors import ContextError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from crossdock.cancel import CancelToken

__all__ = ["git_attributes", "git_labels"]

_LABELS = "org.opencontainers.image."

_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})
_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_TIMEOUT_S = 10.0
#: of the repository a command was started for, not the context's
_FOREIGN = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")


def git_attributes(directories: Mapping[str, Path], cancel: CancelToken) -> dict[str, str]:
    """Return ``vcs:`` attributes for the directory ``context``; none when it is in no repository, or git is missing.

    Raises: the token's cause.
    """
    context = os.path.realpath(directories["context"])
    if os.environ.get("BUILDX_GIT_INFO", "") in _FALSE or not _has_git(context):
        return {}
    cancel.check()
    root = _git(context, "rev-parse", "--show-toplevel")
    if not root:
        return {}
    pairs = {"vcs:revision": _revision(context), "vcs:source": _remote(context)}
    found = {k: v for k, v in pairs.items() if v}
    for name, directory in directories.items():
        inside = os.path.relpath(os.path.realpath(directory), root)
        if inside != ".." and not inside.startswith("../"):
            found[f"vcs:localdir:{name.removeprefix('context:')}"] = inside
    return found


def git_labels(context: str, dockerfile: str | None) -> dict[str, str]:
    """Return the labels that ``BUILDX_GIT_LABELS`` has images get: revision, remote, and where the Dockerfile is.

    None unless it is set, and for what is no directory of a repository. Raises: ContextError.
    """
    wanted = os.environ.get("BUILDX_GIT_LABELS", "")
    if wanted not in _TRUE and wanted != "full":
        return {}
    if not os.path.isdir(context) or not _has_git(os.path.realpath(context)):
        return {}
    root = _git(context, "rev-parse", "--show-toplevel")
    if not root:
        return {}
    place = os.path.relpath(os.path.realpath(dockerfile or os.path.join(context, "Dockerfile")), root)
    pairs = {
        f"{_LABELS}revision": _revision(context),
        f"{_LABELS}source": _remote(context),
        "com.docker.image.source.entrypoint": "" if place.startswith("..") else place,
    }
    return {k: v for k, v in pairs.items() if v}


def _has_git(directory: str) -> bool:
    """Whether a directory may be in a work tree, and git is there: most builds need not start it to know."""
    above = directory
    while not os.path.lexists(os.path.join(above, ".git")):
        if above == os.path.dirname(above):
            return False
        above = os.path.dirname(above)
    import shutil

    return shutil.which("git") is not None


def _revision(context: str) -> str:
    revision = _git(context, "rev-parse", "--verify", "-q", "HEAD")
    checked = revision and os.environ.get("BUILDX_GIT_CHECK_DIRTY", "") in _TRUE
    return f"{revision}-dirty" if checked and _git(context, "status", "--porcelain") else revision


def _remote(context: str) -> str:
    """Return the URL of the tracked remote, else of ``origin``, else of ``upstream``."""
    branch = _git(context, "symbolic-ref", "-q", "--short", "HEAD")
    tracked = _git(context, "config", "--get", f"branch.{branch}.remote") if branch else ""
    for name in dict.fromkeys(filter(None, (tracked, "origin", "upstream"))):
        url = _git(context, "remote", "get-url", name)
        if url:
            return url
    return ""


def _git(context: str, *args: str) -> str:
    import subprocess

    env = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
    try:
        done = subprocess.run(
            ["git", *args],
            cwd=context,
            env={**env, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        summary = f"cannot ask git about the context {context}: {exc}"
        raise ContextError(summary, hint="set BUILDX_GIT_INFO=false to build without") from exc
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""
