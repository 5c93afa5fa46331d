"""What the sandbox can do here, found out by doing it: for ``inspect --bootstrap`` and ``doctor``.

Runs inside the worker. Not for: what to install (``doctor`` knows the distributions).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from crossdock.cancel import CancelToken
from crossdock.emulation.architectures import by_name
from crossdock.emulation.probes import PROBE_STATUS, probe_elf
from crossdock.engine.sandbox.step import StepSpec
from crossdock.errors import CrossdockError, SandboxError
from crossdock.image.platform import Platform, local_platform
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from crossdock.engine.sandbox.sandbox import Sandbox

__all__ = ["Finding", "check_mounts", "check_step"]


class Finding(NamedTuple):
    """One check: its name, whether it holds, and what was found or is wrong."""

    name: str
    ok: bool
    text: str
    hint: str = ""


def check_mounts(sandbox: Sandbox, directory: Path) -> Finding:
    """Mount a root file system of two layers with its upper directory in ``directory`` (the store) and write to it."""
    return _finding("overlay", lambda: _mount_and_write(sandbox, directory))


def check_step(sandbox: Sandbox, directory: Path, platform: Platform | None = None) -> Finding:
    """Run a probe program in a real step, for ``platform`` or the machine's own."""
    wanted = platform or local_platform()
    return _finding(f"step {wanted}", lambda: _run_probe(sandbox, directory, wanted))


def _finding(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except CrossdockError as exc:
        return Finding(name, False, exc.summary, exc.hint or "")
    except OSError as exc:
        return Finding(name, False, f"{exc.filename or ''}: {exc.strerror}".lstrip(": "))


def _mount_and_write(sandbox: Sandbox, directory: Path) -> str:
    with tempfile.TemporaryDirectory(prefix="check-", dir=directory) as folder:
        names = ("lower1", "lower2", "upper", "work")
        one, two, upper, work = (Path(folder, name) for name in names)
        for path in (one, two, upper, work):
            path.mkdir()
        (one / "a").touch()
        (two / "b").touch()
        with sandbox.mounted((one, two), upper=upper, work=work) as root:
            if sorted(entry.name for entry in root.iterdir()) != ["a", "b"]:
                summary = "a mounted root file system does not show its layers"
                raise SandboxError(summary, missing="overlayfs")
            (root / "c").touch()
        if not (upper / "c").exists():
            summary = "what is written to a mounted root file system does not reach the upper directory"
            raise SandboxError(summary, missing="overlayfs")
    return sandbox.root_mounts


def _run_probe(sandbox: Sandbox, directory: Path, platform: Platform) -> str:
    architecture = by_name(platform.architecture)
    if architecture is None:
        summary = f"there is no probe for {platform}"
        raise SandboxError(summary, missing="probe")
    with tempfile.TemporaryDirectory(prefix="check-", dir=directory) as folder:
        root = Path(folder)
        (root / "probe").write_bytes(probe_elf(architecture))
        (root / "probe").chmod(0o755)
        step = StepSpec(rootfs=root, args=("/probe",), platform=platform)
        result = sandbox.run(step, log=lambda _stream, _data: None, cancel=CancelToken())
    if result.exit_code != PROBE_STATUS:
        summary = result.explanation or f"the probe ended with status {result.exit_code}"
        raise SandboxError(summary, missing="OCI runtime", hint=result.hint or None)
    return f"{sandbox.runtime.name} ({sandbox.runtime.path})"
