"""How programs of a platform are run here: natively, through handlers, or by naming the emulator.

The order is private handlers, then the host's, then the emulator put before the command. The last one cannot follow a
program that starts others, so it is only for kernels that leave nothing else.
Safe from any thread; the first use of a foreign architecture decides for all.
"""

from __future__ import annotations

import os
import re
import threading
from enum import Enum
from typing import TYPE_CHECKING

from crossdock.emulation.architectures import ARCHITECTURES, by_name
from crossdock.emulation.probes import run_probe
from crossdock.emulation.qemu import QemuBinaries
from crossdock.errors import EmulationError
from crossdock.image.platform import local_platform
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

    from crossdock.emulation.architectures import Architecture
    from crossdock.emulation.private import PrivateBinfmt
    from crossdock.emulation.probes import ProbeResult
    from crossdock.emulation.qemu import QemuBinary

__all__ = ["Emulator", "How", "Running", "runs_unaided"]

#: 32-bit architectures that a 64-bit machine of the key may run without help; whether it does is tried
_COMPATIBLE = {"amd64": ("386",), "arm64": ("arm",), "s390x": (), "mips64": ("mips",), "ppc64": ("ppc",)}
#: Linux and QEMU from which on a handler can tell the emulator that argv[0] was kept
_ARGV0_LINUX = (5, 12)
_ARGV0_QEMU = (6, 0)


class How(Enum):
    """Which way a program of some architecture is run."""

    NATIVE = "native"
    PRIVATE = "private"
    HOST = "host-wide"
    PREFIXED = "prefixed"


class Running(NamedTuple):
    """How one architecture is run; with :attr:`How.PREFIXED` the emulator comes before the command."""

    architecture: str
    how: How
    emulator: QemuBinary | None = None


class Emulator:
    """Decides per architecture; one object per worker.

    ``work_dir`` is private, allows execution and is where the private instance gets mounted. ``own_userns`` says that
    the process is in a user namespace of its own: without one, mounting binfmt_misc would show the host's. ``memory``
    is a file that keeps the emulators' version from one worker to the next.
    """

    def __init__(
        self,
        work_dir: Path,
        *,
        own_userns: bool,
        binaries: QemuBinaries | None = None,
        memory: Path | None = None,
    ) -> None:
        self._memory = memory
        self._work_dir = work_dir
        self._own_userns = own_userns
        self._binaries = binaries
        # Guards everything below; the probes run under it once, so that threads agree.
        self._lock = threading.Lock()
        self._known: dict[str, Running] = {}
        self._private: PrivateBinfmt | None = None
        self._private_tried = False
        #: why there are no private handlers, or ``""``
        self.private_problem = ""

    @property
    def binaries(self) -> QemuBinaries:
        """The emulators on this machine; looked for at the first use."""
        if self._binaries is None:
            self._binaries = QemuBinaries.discover()
        return self._binaries

    def prepare(self, architecture: str) -> Running:
        """Make programs of an OCI architecture runnable in this namespace and say how.

        Raises: EmulationError naming the package when nothing can run it.
        """
        if architecture == local_platform().architecture:
            return Running(architecture, How.NATIVE)
        with self._lock:
            known = self._known.get(architecture)
            if known is None:
                known = self._known[architecture] = self._decide(architecture)
            return known

    def probe(self, architecture: str) -> ProbeResult:
        """Run the probe of an architecture the way :meth:`prepare` chose. Raises: EmulationError."""
        running = self.prepare(architecture)
        found = _architecture(architecture)
        prefix = running.emulator.path if running.how is How.PREFIXED and running.emulator else ""
        return run_probe(found, self._work_dir, emulator=prefix)

    def _decide(self, name: str) -> Running:
        architecture = _architecture(name)
        self._try_private()
        if (known := self._known.get(name)) is not None:
            return known
        binary = self.binaries.get(name)
        if self._private is not None and name in self._private.registered:
            return Running(name, How.PRIVATE, binary)
        if self._private is None and run_probe(architecture, self._work_dir).ran:
            compatible = name in _COMPATIBLE.get(local_platform().architecture, ())
            return Running(name, How.NATIVE if compatible else How.HOST, binary)
        if binary is not None and binary.static:
            return Running(name, How.PREFIXED, binary)
        raise _no_emulator(architecture, binary)

    def _try_private(self) -> None:
        if self._private_tried:
            return
        self._private_tried = True
        if not self._own_userns:
            self.private_problem = "no user namespace of its own"
            return
        static = self.binaries.static()
        here = local_platform().architecture
        if only_host := self._only_by_host(set(static) | {here}):
            self.private_problem = (
                f"the host's handlers offer {', '.join(only_host)}, for which there is no QEMU here"
            )
            return
        from crossdock.emulation.private import PrivateBinfmt

        try:
            private = PrivateBinfmt.mount(self._work_dir / "binfmt_misc")
            # Nothing is registered yet: what runs now runs without help and must not get a handler.
            unaided = {a.name for a in ARCHITECTURES if runs_unaided(a, self._work_dir)}
            wanted = [binary for name, binary in static.items() if name not in unaided | {here}]
            private.register(wanted, preserve_argv0=_keeps_argv0(wanted, self._memory))
        except OSError as exc:
            self.private_problem = f"the kernel refuses private handlers: {exc.strerror}"
            return
        for name in unaided:
            self._known[name] = Running(name, How.NATIVE)
        self._private = private

    def _only_by_host(self, have: set[str]) -> list[str]:
        """Return architectures that run now, through the host's handlers, and would not with handlers of ours."""
        compatible = _COMPATIBLE.get(local_platform().architecture, ())
        missing = [a for a in ARCHITECTURES if a.name not in have and a.name not in compatible]
        return [a.name for a in missing if run_probe(a, self._work_dir).ran]


def runs_unaided(architecture: Architecture, directory: Path) -> bool:
    """Whether the processor runs a 32-bit architecture by itself; ask where no handler for it exists."""
    names = _COMPATIBLE.get(local_platform().architecture, ())
    return architecture.name in names and run_probe(architecture, directory).ran


def _architecture(name: str) -> Architecture:
    found = by_name(name)
    if found is None:
        summary = f"no emulator for {name} is known"
        raise EmulationError(summary)
    return found


def _no_emulator(architecture: Architecture, binary: QemuBinary | None) -> EmulationError:
    from crossdock.distro import install_hint

    hint = install_hint("qemu", machine=architecture.qemu)
    if binary is not None:
        summary = f"{binary.path} is dynamically linked and cannot run inside an image"
        return EmulationError(summary, hint=f"a static QEMU is needed: {hint}")
    summary = f"this machine cannot run {architecture.name} programs: no QEMU for it was found"
    return EmulationError(summary, hint=f"{hint}, or set CROSSDOCK_QEMU_PATH")


def _keeps_argv0(binaries: list[QemuBinary], memory: Path | None) -> bool:
    """Whether flag ``P`` is understood: the emulators of one machine are of one version, so one is asked."""
    numbers = re.findall(r"\d+", os.uname().release)[:2]
    if not binaries or tuple(map(int, numbers)) < _ARGV0_LINUX:
        return False
    version = binaries[0].version(memory)
    return bool(version) and tuple(map(int, version.split(".")[:2])) >= _ARGV0_QEMU
