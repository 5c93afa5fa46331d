"""Why a program did not start, said so that one knows what to do: looked up in the file system it was to run in.

Imported only after a failure. The runtime's own text decides nothing where the files tell.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from crossdock.emulation.elf import read_executable
from crossdock.engine.sandbox.paths import resolve_in_root
from crossdock.engine.sandbox.step import BindMount, StepFailure, StepResult
from crossdock.errors import SandboxError
from crossdock.image.platform import local_platform

if TYPE_CHECKING:
    from collections.abc import Iterable

    from crossdock.emulation.architectures import Architecture
    from crossdock.emulation.elf import Executable
    from crossdock.engine.sandbox.step import StepSpec

__all__ = ["explain", "explain_output", "step_inside", "step_path"]

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_FORMAT_TEXTS = (b"Exec format error", b"exec format error", b"cannot execute binary file")
_EXEC_ERRORS = ("exec", "executable", "not found", "no such file", "permission denied", "not permitted")


def explain(step: StepSpec, error: str) -> StepResult:
    """Turn the runtime's error into a result that says what is wrong with the program.

    Raises: SandboxError when the program is fine, that is, when the sandbox itself could not be made.
    """
    name = step.args[0] if step.args else ""
    path = step_path(step, name)
    if path is None:
        if any(word in error.lower() for word in _EXEC_ERRORS) and not _found(step, name):
            return StepResult(
                exit_code=127,
                failure=StepFailure.NOT_FOUND,
                explanation=_not_found_text(step, name),
                hint="install it in an earlier step, or correct its name or PATH",
            )
    else:
        result = _explain_file(step, name, path)
        if result is not None:
            return result
    summary = f"the OCI runtime could not start the step: {error}"
    raise SandboxError(summary, missing="OCI runtime")


def _not_found_text(step: StepSpec, name: str) -> str:
    if "/" in name:
        return f"{name}: no such file in the image"
    return f"{name}: not found in the PATH of the step ({_path_of(step)})"


def explain_output(step: StepSpec, exit_code: int, tail: bytes) -> StepResult | None:
    """Look in the last output of a step that ended with 126 or 127 (2 for some shells) for a foreign program.

    Returns ``None`` when nothing there is about a wrong executable format.
    """
    if exit_code == 0 or not any(text in tail for text in _FORMAT_TEXTS):
        return None
    line = next(row for row in tail.splitlines() if any(text in row for text in _FORMAT_TEXTS))
    words = [word.strip("':\"`,").lstrip("(") for word in line.decode(errors="replace").split()]
    for word in words:
        path = step_path(step, word) if word else None
        if path is None:
            continue
        found = _read(path)
        if found is not None and found.kind == "elf" and not _is_native(found.architecture):
            return _wrong_format(word, found, exit_code)
    return None


def step_path(step: StepSpec, name: str) -> str | None:
    """Return where the step's kernel would find ``name``, as a path outside; ``None`` when it does not."""
    found = step_inside(step, name)
    return found[1] if found is not None else None


def step_inside(step: StepSpec, name: str) -> tuple[str, str] | None:
    """Return the path of ``name`` inside the step and outside of it; ``None`` when it is not there."""
    if "/" in name:
        candidates = [name if name.startswith("/") else f"{step.cwd}/{name}"]
    else:
        candidates = [f"{directory or step.cwd}/{name}" for directory in _path_of(step).split(":")]
    for candidate in candidates:
        outside = _outside(step, candidate)
        if outside is not None and os.path.isfile(outside):
            return candidate, outside
    return None


def _found(step: StepSpec, name: str) -> bool:
    outside = _outside(step, name) if "/" in name else None
    return outside is not None and os.path.lexists(outside)


def _path_of(step: StepSpec) -> str:
    paths = [entry[5:] for entry in step.env if entry.startswith("PATH=")]
    return paths[-1] if paths else _DEFAULT_PATH


def _outside(step: StepSpec, inside: str) -> str | None:
    """Map a path of the step to one of ours, through the bind mount that covers it, if any."""
    try:
        root = str(step.rootfs)
        path = resolve_in_root(root, inside)[len(root) :]
        for mount in _deepest_first(step):
            at = "/" + mount.dest.strip("/")
            if path == at:
                return str(mount.source)
            if path.startswith(at + "/"):
                return resolve_in_root(str(mount.source), path[len(at) :])
    except OSError:
        return None
    return root + path


def _deepest_first(step: StepSpec) -> Iterable[BindMount]:
    binds = [mount for mount in step.mounts if isinstance(mount, BindMount)]
    return sorted(binds, key=lambda mount: -len(mount.dest))


def _read(path: str) -> Executable | None:
    try:
        return read_executable(path)
    except OSError:
        return None


def _explain_file(step: StepSpec, name: str, path: str) -> StepResult | None:
    mode = os.stat(path).st_mode
    if not mode & (stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH):
        return StepResult(
            exit_code=126,
            failure=StepFailure.NOT_EXECUTABLE,
            explanation=f"{name}: permission denied, the file is not executable (mode {mode & 0o7777:04o})",
            hint="make it executable: COPY --chmod=755 …, or RUN chmod +x …",
        )
    found = _read(path)
    if found is None:
        return None
    if found.kind == "elf" and not _is_native(found.architecture):
        return _wrong_format(name, found, 126)
    if found.kind == "other":
        return StepResult(
            exit_code=126,
            failure=StepFailure.WRONG_FORMAT,
            explanation=f"{name}: exec format error, it is neither an ELF file nor a script with a #! line",
            hint="start a script with a line like #!/bin/sh, or check that the file was not damaged",
        )
    if found.interpreter and step_path(step, found.interpreter) is None:
        kind = "interpreter of its #! line" if found.kind == "script" else "dynamic loader"
        return StepResult(
            exit_code=127,
            failure=StepFailure.MISSING_INTERPRETER,
            explanation=f"{name} is there, but the {kind} {found.interpreter!r} is not",
            hint=_interpreter_hint(found),
        )
    return None


def _interpreter_hint(found: Executable) -> str:
    if found.interpreter.endswith("\r"):
        return "the script has Windows line ends: convert it (dos2unix), or set text=auto eol=lf in .gitattributes"
    if found.kind == "script":
        return "install the interpreter in the image, or correct the #! line"
    return "the program was linked for another libc (glibc, musl) or is not static: use a matching base image"


def _is_native(architecture: Architecture | None) -> bool:
    return architecture is not None and architecture.name == local_platform().architecture


def _wrong_format(name: str, found: Executable, exit_code: int) -> StepResult:
    here = local_platform().architecture
    if found.architecture is None:
        what, hint = f"machine number {found.machine}", "no emulator for it is known"
    else:
        what = found.architecture.name
        hint = (
            f"it needs QEMU for {what} (`crossdock doctor` says which package), or a base image and binaries built "
            f"for {here}; `crossdock binfmt verify` checks the emulators"
        )
    return StepResult(
        exit_code=exit_code,
        failure=StepFailure.WRONG_FORMAT,
        explanation=f"{name}: exec format error, it is an ELF file for {what} and this machine runs {here}",
        hint=hint,
    )
