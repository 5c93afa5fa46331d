"""Directories and Dockerfiles on this machine, and the errors when they are not there."""

from __future__ import annotations

from pathlib import Path

from crossdock.errors import ContextError, UsageError

__all__ = ["context_directory", "default_dockerfile", "refuse_bake_contexts"]


def context_directory(text: str) -> Path:
    """Return the directory of a context.

    Raises: ContextError when it is not there, or no directory.
    """
    path = Path(text)
    if not path.exists():
        summary = f"unable to prepare context: path {text!r} not found"
        raise ContextError(summary)
    if not path.is_dir():
        summary = f"unable to prepare context: {text!r} is not a directory"
        raise ContextError(summary, hint="give the directory, and the Dockerfile with -f")
    return path.absolute()


def default_dockerfile(context: Path) -> Path:
    """Return the Dockerfile of a context: ``Dockerfile``, else ``dockerfile``."""
    upper, lower = context / "Dockerfile", context / "dockerfile"
    return lower if not upper.exists() and lower.exists() else upper


def refuse_bake_contexts(name: str, value: str) -> None:
    """Refuse named contexts that only bake files, or other frontends, can give.

    Raises: UsageError.
    """
    kind = value.partition(":")[0]
    if value.startswith(("target:", "input:", "local:")):
        where = "bake files only" if kind == "target" else "requests of other frontends only"
        summary = f"--build-context {name}={value}: {kind}: contexts exist in {where}"
        raise UsageError(
            summary, hint="use a directory, docker-image://, oci-layout://, https:// or a Git URL"
        )
