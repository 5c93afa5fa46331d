"""A binfmt_misc of one's own: handlers for this user namespace only, needing no root and changing nothing outside.

Since Linux 6.7 every user namespace can have its own instance. Mounting one hides *all* handlers it inherited, so
every architecture that may be wanted is registered at once. It lasts as long as the mount and the namespace.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crossdock import linux
from crossdock.emulation.handlers import registration

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from crossdock.emulation.qemu import QemuBinary

__all__ = ["PrivateBinfmt"]

#: open the program as the caller, take credentials from it (setuid), open the interpreter now
_FLAGS = "OCF"


class PrivateBinfmt:
    """A mounted private instance."""

    def __init__(self, path: Path, registered: frozenset[str]) -> None:
        self.path = path
        #: OCI architectures that have a handler here
        self.registered = registered

    @classmethod
    def mount(cls, path: Path) -> PrivateBinfmt:
        """Mount an empty instance at ``path``, which is made. The caller is in a user namespace of its own.

        Raises: OSError; EPERM before Linux 6.7, ENODEV without binfmt_misc.
        """
        path.mkdir(mode=0o700, exist_ok=True)
        linux.mount("binfmt_misc", path, "binfmt_misc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
        if len(os.listdir(path)) != 2:
            # Not "register" and "status" alone: the host's instance, which is none of our business.
            linux.umount(path, linux.MNT_DETACH)
            code = 1
            raise OSError(code, os.strerror(code), str(path))
        return cls(path, frozenset())

    def register(self, binaries: Iterable[QemuBinary], *, preserve_argv0: bool) -> None:
        """Add handlers; an emulator that the kernel cannot open is left out. Raises: OSError."""
        flags = f"P{_FLAGS}" if preserve_argv0 else _FLAGS
        added = set(self.registered)
        for binary in binaries:
            try:
                line = registration(
                    f"crossdock-{binary.architecture.qemu}", binary.architecture, binary.path, flags=flags
                )
            except ValueError:
                continue
            fd = os.open(self.path / "register", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, line)
            except FileNotFoundError:
                continue
            finally:
                os.close(fd)
            added.add(binary.architecture.name)
        self.registered = frozenset(added)
