"""QEMU's user-mode emulators on this machine.

A statically linked one is needed: the kernel opens it once, and it then runs inside root file systems that have none
of the libraries of this machine.
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

from crossdock.emulation.architectures import ARCHITECTURES
from crossdock.emulation.elf import read_executable
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossdock.emulation.architectures import Architecture

__all__ = ["QemuBinaries", "QemuBinary"]

_DIRECTORIES = ("/usr/local/bin", "/usr/bin", "/bin")
_PATTERNS = ("qemu-{}-static", "qemu-{}", "buildkit-qemu-{}")
_VERSION = re.compile(r"version (\d+(?:\.\d+)+)")
_TIMEOUT_S = 10


class QemuBinary(NamedTuple):
    """One emulator."""

    architecture: Architecture
    path: str
    #: ``False`` when it needs shared libraries: then it works on this machine only, not inside an image
    static: bool

    def version(self) -> str:
        """Ask the program; ``""`` when it does not say."""
        try:
            done = subprocess.run(
                [self.path, "--version"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        found = _VERSION.search(done.stdout)
        return found.group(1) if found else ""


class QemuBinaries:
    """What was found, by OCI architecture."""

    def __init__(self, found: Mapping[str, QemuBinary]) -> None:
        self._found = dict(found)

    @classmethod
    def discover(cls, environ: Mapping[str, str] = os.environ) -> QemuBinaries:
        """Look in ``$CROSSDOCK_QEMU_PATH``, ``$PATH`` and the usual directories; a static one wins anywhere."""
        listed = (environ.get("CROSSDOCK_QEMU_PATH", ""), environ.get("PATH", ""))
        directories = dict.fromkeys(
            part for text in (*listed, ":".join(_DIRECTORIES)) for part in text.split(":") if part
        )
        present = {directory: names for directory in directories if (names := _qemu_names(directory))}
        found: dict[str, QemuBinary] = {}
        for architecture in ARCHITECTURES:
            candidates = _candidates(architecture, present)
            best = next((binary for binary in candidates if binary.static), None)
            chosen = best or next(iter(candidates), None)
            if chosen is not None:
                found[architecture.name] = chosen
        return cls(found)

    def get(self, name: str) -> QemuBinary | None:
        """Return the emulator for an OCI architecture, static or not."""
        return self._found.get(name)

    def static(self) -> dict[str, QemuBinary]:
        """Return those that work inside images."""
        return {name: binary for name, binary in self._found.items() if binary.static}


def _qemu_names(directory: str) -> frozenset[str]:
    try:
        return frozenset(name for name in os.listdir(directory) if "qemu-" in name)
    except OSError:
        return frozenset()


def _candidates(architecture: Architecture, present: Mapping[str, frozenset[str]]) -> list[QemuBinary]:
    found: list[QemuBinary] = []
    for directory, names in present.items():
        for pattern in _PATTERNS:
            name = pattern.format(architecture.qemu)
            path = f"{directory}/{name}"
            if name in names and os.access(path, os.X_OK):
                found.append(QemuBinary(architecture, path, _is_static(path)))
    return found


def _is_static(path: str) -> bool:
    try:
        found = read_executable(path)
    except OSError:
        return False
    return found.kind == "elf" and not found.interpreter
