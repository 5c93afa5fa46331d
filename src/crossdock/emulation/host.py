"""The host's own binfmt_misc handlers: registered for everybody, by root, until the next boot or for good.

Builds do not need them (see ``emulator``); ``docker run`` of foreign images and other tools do.

Spec: kernel ``admin-guide/binfmt-misc.rst``; binfmt.d(5).
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from crossdock import linux
from crossdock.emulation.architectures import ARCHITECTURES, by_name
from crossdock.emulation.handlers import Handler, parse_handler, registration
from crossdock.errors import EmulationError, UsageError
from crossdock.image.platform import local_platform, parse_platform
from crossdock.record import NamedTuple
from crossdock.wholefile import write_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.emulation.architectures import Architecture
    from crossdock.emulation.qemu import QemuBinaries

__all__ = ["HostBinfmt", "Installed", "wanted_architectures"]

_MOUNT_POINT = Path("/proc/sys/fs/binfmt_misc")
_BINFMT_D = Path("/etc/binfmt.d")
_MARK = "# registered by crossdock binfmt install --persistent\n"
#: the first kernel that opens interpreters at registration (flag F)
_FIRST_KERNEL = (4, 8)


class Installed(NamedTuple):
    """What was done for one architecture: ``registered``, ``already registered`` or ``replaced``."""

    architecture: str
    handler: str
    interpreter: str
    what: str


def wanted_architectures(words: Sequence[str]) -> tuple[Architecture, ...]:
    """Resolve ``all`` or architecture names in any spelling that platforms have, or QEMU's.

    ``all`` leaves out what this machine runs by itself. Raises: UsageError.
    """
    here = local_platform().architecture
    if not words or list(words) == ["all"]:
        return tuple(arch for arch in ARCHITECTURES if arch.name != here)
    found: dict[str, Architecture] = {}
    for word in words:
        name = word.removeprefix("linux/").partition("/")[0]
        by_qemu = next((arch for arch in ARCHITECTURES if name in (arch.qemu, f"qemu-{arch.qemu}")), None)
        arch = by_qemu or by_name(parse_platform(name).architecture)
        if arch is None:
            summary = f"unknown architecture {word!r}"
            known = " ".join(a.name for a in ARCHITECTURES)
            raise UsageError(summary, hint=f"known are: {known}")
        if arch.name == here:
            summary = f"{word} is this machine's own architecture; a handler for it would break the machine"
            raise UsageError(summary)
        found[arch.name] = arch
    return tuple(found.values())


class HostBinfmt:
    """The instance mounted at ``mount_point``."""

    def __init__(self, mount_point: Path = _MOUNT_POINT, *, binfmt_d: Path = _BINFMT_D) -> None:
        self._at = mount_point
        self._binfmt_d = binfmt_d

    @property
    def mounted(self) -> bool:
        """Whether handlers can be seen here."""
        return (self._at / "register").exists()

    def handlers(self) -> tuple[Handler, ...]:
        """Return every registered handler by name; nothing when binfmt_misc is not mounted."""
        try:
            names = sorted(os.listdir(self._at))
        except FileNotFoundError:
            return ()
        found: list[Handler] = []
        for name in names:
            if name in ("register", "status"):
                continue
            try:
                text = (self._at / name).read_text(encoding="utf-8", errors="replace")
            except FileNotFoundError:  # removed meanwhile
                continue
            found.append(parse_handler(name, text))
        return tuple(found)

    def install(
        self,
        architectures: Sequence[Architecture],
        *,
        binaries: QemuBinaries,
        flags: str = "F",
        reset: bool = False,
        persistent: bool = False,
        skip_missing: bool = False,
    ) -> tuple[Installed, ...]:
        """Register QEMU for ``architectures``; nothing is changed when one of them cannot be.

        ``flags`` are those of the kernel (``F``, ``C``, ``P``, ``O``); ``reset`` removes earlier handlers of the same
        architectures first; ``skip_missing`` passes over architectures that have no QEMU or need none (for
        ``all``).
        Raises: EmulationError: not root, old kernel, no QEMU (names the package), or a handler of someone else.
        """
        self.require()
        present = self.handlers()
        if skip_missing:
            architectures = _worthwhile(architectures, binaries, present)
        wanted = [self._binary(arch, binaries) for arch in architectures]
        plans = [_plan(arch, path, flags, present, reset=reset) for arch, path in wanted]
        done: list[Installed] = []
        for (arch, path), (what, obsolete) in zip(wanted, plans, strict=True):
            name = f"qemu-{arch.qemu}"
            for handler in obsolete:
                self._remove(handler.name)
            if what != "already registered":
                self._write("register", _line(name, arch, path, flags), arch)
            if persistent:
                self._persist(name, arch, path, flags)
            done.append(Installed(arch.name, name, path, what))
        return tuple(done)

    def uninstall(
        self, architectures: Sequence[Architecture], *, names: Sequence[str] = ()
    ) -> tuple[str, ...]:
        """Remove the handlers of ``architectures`` and those called ``names``; returns the names removed.

        Raises: EmulationError: not root.
        """
        self.require()
        removed: list[str] = []
        for handler in self.handlers():
            if handler.name in names or any(handler.accepts(arch) for arch in architectures):
                self._remove(handler.name)
                removed.append(handler.name)
        for arch in architectures:
            self._forget(f"qemu-{arch.qemu}")
        return tuple(removed)

    def require(self) -> None:
        """Check that handlers can be changed, mounting binfmt_misc when it is not.

        Raises: EmulationError saying what is missing.
        """
        release = os.uname().release
        version = tuple(int(number) for number in re.findall(r"\d+", release)[:2])
        if version < _FIRST_KERNEL:
            summary = f"Linux {release} has no flag F for handlers; 4.8 or later is needed"
            raise EmulationError(
                summary, hint="builds do not need handlers: crossdock names the emulator itself"
            )
        if not self.mounted:
            self._mount()
        if not os.access(self._at / "register", os.W_OK):
            summary = "registering handlers for the whole machine needs root"
            raise EmulationError(
                summary, hint="run it with sudo; builds need no handlers, crossdock makes its own"
            )

    def _mount(self) -> None:
        try:
            linux.mount("binfmt_misc", self._at, "binfmt_misc")
        except OSError as exc:
            if exc.errno in (errno.EPERM, errno.EACCES):
                summary = "binfmt_misc is not mounted, and mounting it needs root"
                raise EmulationError(summary, hint="run it with sudo") from exc
            summary = f"cannot mount binfmt_misc at {self._at}: {exc.strerror}"
            hint = "run `modprobe binfmt_misc`; a kernel without CONFIG_BINFMT_MISC has no handlers"
            raise EmulationError(summary, hint=hint) from exc

    def _binary(self, arch: Architecture, binaries: QemuBinaries) -> tuple[Architecture, str]:
        binary = binaries.get(arch.name)
        if binary is None or not binary.static:
            raise _no_qemu(arch, dynamic=binary.path if binary is not None else "")
        return arch, binary.path

    def _write(self, name: str, data: bytes, arch: Architecture) -> None:
        try:
            fd = os.open(self._at / name, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, data)
            finally:
                os.close(fd)
        except OSError as exc:
            summary = f"the kernel refused the handler for {arch.name}: {exc.strerror}"
            raise EmulationError(summary) from exc

    def _remove(self, name: str) -> None:
        try:
            (self._at / name).write_bytes(b"-1")
        except FileNotFoundError:
            return
        except OSError as exc:
            summary = f"cannot remove the handler {name}: {exc.strerror}"
            raise EmulationError(summary) from exc

    def _persist(self, name: str, arch: Architecture, path: str, flags: str) -> None:
        """Write the file that overrides the distribution's own of the same name at boot."""
        target = self._binfmt_d / f"{name}.conf"
        try:
            self._binfmt_d.mkdir(mode=0o755, parents=True, exist_ok=True)
            write_whole(str(target), _MARK.encode() + _line(name, arch, path, flags) + b"\n", mode=0o644)
        except OSError as exc:
            summary = f"cannot write {target}: {exc.strerror}"
            raise EmulationError(summary) from exc

    def _forget(self, name: str) -> None:
        target = self._binfmt_d / f"{name}.conf"
        try:
            if target.read_text(encoding="utf-8", errors="replace").startswith(_MARK):
                target.unlink()
        except FileNotFoundError:
            return
        except OSError as exc:
            summary = f"cannot remove {target}: {exc.strerror}"
            raise EmulationError(summary) from exc


def _worthwhile(
    architectures: Sequence[Architecture], binaries: QemuBinaries, present: Sequence[Handler]
) -> tuple[Architecture, ...]:
    """Leave out what has no QEMU and what the processor runs by itself (386 on amd64).

    Raises: EmulationError when nothing is left.
    """
    import tempfile

    from crossdock.emulation.emulator import runs_unaided

    with tempfile.TemporaryDirectory(prefix="crossdock-probe-") as folder:
        kept = tuple(
            arch
            for arch in architectures
            if not _missing(arch, binaries)
            and (any(handler.accepts(arch) for handler in present) or not runs_unaided(arch, Path(folder)))
        )
    if not kept:
        raise _no_qemu(architectures[0])
    return kept


def _missing(arch: Architecture, binaries: QemuBinaries) -> bool:
    binary = binaries.get(arch.name)
    return binary is None or not binary.static


def _line(name: str, arch: Architecture, path: str, flags: str) -> bytes:
    try:
        return registration(name, arch, path, flags=flags)
    except ValueError as exc:
        raise EmulationError(str(exc)) from exc


def _plan(
    arch: Architecture, path: str, flags: str, present: Sequence[Handler], *, reset: bool
) -> tuple[str, tuple[Handler, ...]]:
    """Return what to do for one architecture and which handlers to remove first. Raises: EmulationError."""
    name = f"qemu-{arch.qemu}"
    rivals = tuple(h for h in present if h.name == name or (h.enabled and h.accepts(arch)))
    if not rivals:
        return "registered", ()
    # C implies O, so the kernel shows more flags than it was given.
    wanted = set(flags) | ({"O"} if "C" in flags else set())
    first = rivals[0]
    if len(rivals) == 1 and first.enabled and first.interpreter == path and wanted <= set(first.flags):
        return "already registered", ()
    if reset:
        return "replaced", rivals
    summary = f"{arch.name} has a handler already: {first.name} -> {first.interpreter} (flags {first.flags or 'none'})"
    raise EmulationError(summary, hint="--reset replaces it")


def _no_qemu(arch: Architecture, *, dynamic: str = "") -> EmulationError:
    from crossdock.distro import install_hint

    hint = install_hint("qemu", machine=arch.qemu)
    if dynamic:
        summary = f"{dynamic} is dynamically linked; a handler needs a static QEMU"
    else:
        summary = f"no QEMU for {arch.name} was found (qemu-{arch.qemu}-static)"
    return EmulationError(summary, hint=f"{hint}, or set CROSSDOCK_QEMU_PATH")
