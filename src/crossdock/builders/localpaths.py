"""Directories and Dockerfiles on this machine, and the errors when they are not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from crossdock.errors import ContextError, UsageError, translate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from crossdock.builders.request import OutputSpec

__all__ = ["LocalFiles", "check_delete", "context_directory", "default_dockerfile", "refuse_bake_contexts"]


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


def check_delete(output: OutputSpec, allow: Sequence[str]) -> None:
    """Refuse a mirror that would delete outside the working directory and is not allowed to. Raises: UsageError."""
    if output.type != "local" or output.attrs.get("mode") != "delete" or "buildx.local.delete" in allow:
        return
    here, dest = os.path.realpath("."), os.path.realpath(output.dest)
    if dest == here or not dest.startswith(here + os.sep):
        summary = f"local output with mode=delete would delete files in {output.dest}"
        raise UsageError(
            summary, hint="add --allow buildx.local.delete, or write below the working directory"
        )


class LocalFiles:
    """Reads single files of local directories; never leaves them."""

    def __init__(self, directories: Mapping[str, Path]) -> None:
        self._directories = directories

    def read_file(self, path: str, *, local: str = "context") -> bytes | None:
        """Return a file; ``None`` when there is none, or when it is not a regular file of the directory.

        Raises: ContextError when it cannot be read.
        """
        root = self._directories.get(local)
        if root is None:
            return None

        def refuse(exc: BaseException) -> ContextError:
            return ContextError(f"cannot read {path} of the context {root}: {exc}")

        with translate({OSError: refuse}):
            try:
                # os.path.realpath: pathlib's resolve() turns a loop of links into a RuntimeError.
                found = Path(os.path.realpath(root / path.lstrip("/"), strict=True))
                if not found.is_relative_to(os.path.realpath(root)) or not found.is_file():
                    return None
                return found.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None
