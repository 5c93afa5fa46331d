"""The architectures Linux programs come in: OCI names, QEMU's names, and how their ELF files begin.

Spec: ELF gABI (``e_ident``, ``e_type``, ``e_machine``); kernel ``admin-guide/binfmt-misc.rst``.
"""

from __future__ import annotations

from typing import Literal

from crossdock.record import NamedTuple

__all__ = ["ARCHITECTURES", "Architecture", "by_elf", "by_name"]


class Architecture(NamedTuple):
    """One architecture; ``name`` is the OCI one, without variant."""

    name: str
    #: QEMU's name, as in ``qemu-aarch64``
    qemu: str
    #: ``e_machine``
    machine: int
    #: 32 or 64
    bits: int
    big_endian: bool = False

    @property
    def magic(self) -> bytes:
        """The first 20 bytes of an executable; bits outside :attr:`mask` do not count."""
        order: Literal["big", "little"] = "big" if self.big_endian else "little"
        ident = b"\x7fELF" + bytes((self.bits // 32, 2 if self.big_endian else 1, 1)) + bytes(9)
        return ident + (2).to_bytes(2, order) + self.machine.to_bytes(2, order)

    @property
    def mask(self) -> bytes:
        """Which bits of :attr:`magic` count: not the ABI byte, and ``ET_DYN`` is as good as ``ET_EXEC``."""
        kind = b"\xff\xfe" if self.big_endian else b"\xfe\xff"
        return b"\xff" * 7 + b"\x00" + b"\xff" * 8 + kind + b"\xff\xff"


ARCHITECTURES = (
    Architecture("amd64", "x86_64", 62, 64),
    Architecture("386", "i386", 3, 32),
    Architecture("arm64", "aarch64", 183, 64),
    Architecture("arm64be", "aarch64_be", 183, 64, big_endian=True),
    Architecture("arm", "arm", 40, 32),
    Architecture("armbe", "armeb", 40, 32, big_endian=True),
    Architecture("riscv64", "riscv64", 243, 64),
    Architecture("riscv", "riscv32", 243, 32),
    Architecture("ppc64le", "ppc64le", 21, 64),
    Architecture("ppc64", "ppc64", 21, 64, big_endian=True),
    Architecture("ppc", "ppc", 20, 32, big_endian=True),
    Architecture("s390x", "s390x", 22, 64, big_endian=True),
    Architecture("loong64", "loongarch64", 258, 64),
    Architecture("mips64le", "mips64el", 8, 64),
    Architecture("mips64", "mips64", 8, 64, big_endian=True),
    Architecture("mipsle", "mipsel", 8, 32),
    Architecture("mips", "mips", 8, 32, big_endian=True),
    Architecture("sparc64", "sparc64", 43, 64, big_endian=True),
    Architecture("sparc", "sparc", 2, 32, big_endian=True),
)
_BY_NAME = {arch.name: arch for arch in ARCHITECTURES}
_BY_ELF = {(arch.machine, arch.bits, arch.big_endian): arch for arch in ARCHITECTURES}


def by_name(name: str) -> Architecture | None:
    """Return the architecture with an OCI name."""
    return _BY_NAME.get(name)


def by_elf(machine: int, bits: int, *, big_endian: bool) -> Architecture | None:
    """Return the architecture of an ELF header."""
    return _BY_ELF.get((machine, bits, big_endian))
