"""Files that appear whole or not at all: written beside their place, then renamed into it."""

from __future__ import annotations

import errno
import os
import stat
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from crossdock.errors import ExportError, StoreFull
from crossdock.wholefile import temporary_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crossdock.engine.exporters.model import ExporterSpec, Output

__all__ = ["check_output", "export_error", "open_output"]

_BUFFER = 1 << 20


def export_error(exc: OSError, path: str | os.PathLike[str]) -> ExportError | StoreFull:
    """Return the error for a failed write to ``path``."""
    name = os.fspath(path)
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        summary = f"cannot write {name}: no space left on device"
        return StoreFull(summary, hint="free some space, or write elsewhere with dest=")
    hints = {
        errno.EACCES: "write to a directory that you own",
        errno.EPERM: "write to a directory that you own",
        errno.EROFS: "write to another file system",
        errno.ENOENT: "make the directory first, or correct dest=",
        errno.ENOTDIR: "a part of dest= is a file",
        errno.EPIPE: "whatever reads the output has ended",
    }
    return ExportError(f"cannot write {name}: {exc.strerror}", hint=hints.get(exc.errno or 0))


def check_output(spec: ExporterSpec, dest: str) -> None:
    """Check early, before anything is built or pushed, that an archive can be written.

    Raises: ExportError.
    """
    if spec.output is not None:
        return
    if dest in ("", "-"):
        _check_stdout(spec.type, dest)
        return
    path = Path(dest)
    if path.is_dir():
        summary = f"cannot write {dest}: it is a directory"
        hint = "give a file name, or tar=false for a layout directory" if spec.type == "oci" else None
        raise ExportError(summary, hint=hint or "give a file name")
    parent = path.parent
    if not parent.is_dir():
        summary = f"cannot write {dest}: there is no directory {parent}"
        raise ExportError(summary, hint="make the directory first, or correct dest=")
    if not os.access(path if path.exists() else parent, os.W_OK):
        summary = f"cannot write {dest}: Permission denied"
        raise ExportError(summary, hint="write to a directory that you own")


def _check_stdout(kind: str, dest: str) -> None:
    if not dest:
        summary = f"dest file is required for the {kind} exporter"
        raise ExportError(
            summary, hint=f"for example -o type={kind},dest=out.tar, or dest=- for standard output"
        )
    if sys.stdout is not None and sys.stdout.isatty():
        summary = f"dest file is required for the {kind} exporter: refusing to write to console"
        raise ExportError(summary, hint=f"add dest=FILE to -o type={kind}, or redirect standard output")


@contextmanager
def open_output(spec: ExporterSpec, dest: str) -> Iterator[Output]:
    """Open where an archive goes, for the length of the block; a file appears when the block succeeds.

    Raises: ExportError, StoreFull, also for failed writes inside the block.
    """
    if spec.output is not None:
        yield spec.output
        return
    if dest == "-":
        _check_stdout(spec.type, dest)
        try:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        except OSError as exc:
            raise export_error(exc, "standard output") from exc
        return
    path = Path(dest)
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            with path.open("wb", _BUFFER) as special:  # a pipe or device has no temporary form
                yield cast("Output", special)
            return
        target = path.resolve()
        temporary = target.with_name(temporary_name(target.name))
        try:
            with temporary.open("xb", _BUFFER) as file:
                yield cast("Output", file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as exc:
        raise export_error(exc, dest) from exc
