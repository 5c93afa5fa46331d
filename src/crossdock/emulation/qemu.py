"""QEMU's user-mode emulators on this machine.

A statically linked one is needed: the kernel opens it once, and it then runs inside root file systems that have none
of the libraries of this machine.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING

from crossdock.emulation.architectures import ARCHITECTURES
from crossdock.emulation.elf import read_executable
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from crossdock.emulation.architectures import Architecture

__all__ = ["QemuBinaries", "QemuBinary"]

_DIRECTORIES = ("/usr/local/bin", "/usr/bin", "/bin")
_PATTERNS = ("qemu-{}-static", "qemu-{}", "buildkit-qemu-{}")
_VERSION = r"version (\d+(?:\.\d+)+)"
_NUMBERS = r"\d+(?:\.\d+)+"
_TIMEOUT_S = 10


class QemuBinary(NamedTuple):
    """One emulator."""

    architecture: Architecture
    path: str
    #: ``False`` when it needs shared libraries: then it works on this machine only, not inside an image
    static: bool

    def version(self, memory: Path | None = None) -> str:
        """Ask the program; ``""`` when it does not say. What it said is kept in ``memory``, a file, while it is the same."""
        known = _remembered(self.path, memory)
        if known:
            return known
        import subprocess  # it costs as much as the program

        try:
            done = subprocess.run(
                [self.path, "--version"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        found = re.search(_VERSION, done.stdout)
        if found is not None and memory is not None:
            _remember(self.path, found.group(1), memory)
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
        # /bin is often another name of /usr/bin.
        real = dict.fromkeys(os.path.realpath(directory) for directory in directories)
        present = {directory: names for directory in real if (names := _qemu_names(directory))}
        found: dict[str, QemuBinary] = {}
        for architecture in ARCHITECTURES:
            for binary in _candidates(architecture, present):
                found.setdefault(architecture.name, binary)
                if binary.static:
                    found[architecture.name] = binary
                    break
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


def _candidates(architecture: Architecture, present: Mapping[str, frozenset[str]]) -> Iterator[QemuBinary]:
    for directory, names in present.items():
        for pattern in _PATTERNS:
            name = pattern.format(architecture.qemu)
            path = f"{directory}/{name}"
            if name in names and os.access(path, os.X_OK):
                yield QemuBinary(architecture, path, _is_static(path))


def _is_static(path: str) -> bool:
    try:
        found = read_executable(path)
    except OSError:
        return False
    return found.kind == "elf" and not found.interpreter


def _identity(path: str) -> str:
    """Return what changes when a program is replaced. Raises: OSError."""
    found = os.stat(path)
    return f"{path}\n{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}\n"


def _remembered(path: str, memory: Path | None) -> str:
    if memory is None:
        return ""
    try:
        text = memory.read_text("utf-8", "surrogateescape")
        identity = _identity(path)
    except OSError:
        return ""
    version = text.removeprefix(identity)
    return version if version != text and re.fullmatch(_NUMBERS, version) else ""


def _remember(path: str, version: str, memory: Path) -> None:
    """Keep a version; where that fails, the program is asked again."""
    temporary = memory.with_name(f"{memory.name}.{os.urandom(6).hex()}")
    with suppress(OSError):
        try:
            temporary.write_text(_identity(path) + version, "utf-8", "surrogateescape")
            temporary.rename(memory)
        finally:
            temporary.unlink(missing_ok=True)
