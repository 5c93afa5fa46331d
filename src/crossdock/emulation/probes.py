"""The smallest program of each architecture, to find out by running it whether a machine can run it.

Each is a static ELF file with one segment and a handful of instructions that do ``exit(42)``; :func:`probe_elf` puts
the bytes together, so nothing binary is stored and every byte is accounted for. An exit status of 42 says that the
instructions were executed; anything else says they were not.

Spec: ELF gABI; each architecture's psABI for ``e_flags`` and its Linux system call convention.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from typing import TYPE_CHECKING

from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

    from crossdock.emulation.architectures import Architecture

__all__ = ["PROBE_STATUS", "ProbeResult", "probe_elf", "run_probe", "small_elf"]

PROBE_STATUS = 42
_LOAD_ADDRESS = 0x10000
_BUSY_TRIES = 50
_ET_EXEC, _PT_LOAD, _READ_EXECUTE = 2, 1, 5


class _Code(NamedTuple):
    """Instructions as 32-bit words (in the data's byte order unless said otherwise) or as bytes; ``e_flags``."""

    words: tuple[int, ...] = ()
    raw: bytes = b""
    flags: int = 0
    little_code: bool = False


_CODE: dict[str, _Code] = {
    # mov eax, 60; mov edi, 42; syscall
    "amd64": _Code(raw=bytes.fromhex("b83c000000 bf2a000000 0f05")),
    # mov eax, 1; mov ebx, 42; int 0x80
    "386": _Code(raw=bytes.fromhex("b801000000 bb2a000000 cd80")),
    # mov x0, #42; mov x8, #93; svc #0 (instructions are little-endian on either)
    "arm64": _Code((0xD2800540, 0xD2800BA8, 0xD4000001)),
    "arm64be": _Code((0xD2800540, 0xD2800BA8, 0xD4000001), little_code=True),
    # mov r0, #42; mov r7, #1; svc #0 (EABI version 5)
    "arm": _Code((0xE3A0002A, 0xE3A07001, 0xEF000000), flags=0x05000000),
    "armbe": _Code((0xE3A0002A, 0xE3A07001, 0xEF000000), flags=0x05000000),
    # li a0, 42; li a7, 93; ecall
    "riscv64": _Code((0x02A00513, 0x05D00893, 0x00000073)),
    "riscv": _Code((0x02A00513, 0x05D00893, 0x00000073)),
    # li r0, 1; li r3, 42; sc (ELFv2: the entry is code, not a descriptor)
    "ppc64le": _Code((0x38000001, 0x3860002A, 0x44000002), flags=2),
    "ppc64": _Code((0x38000001, 0x3860002A, 0x44000002), flags=2),
    "ppc": _Code((0x38000001, 0x3860002A, 0x44000002)),
    # lghi %r2, 42; svc 1
    "s390x": _Code(raw=bytes.fromhex("a729002a 0a01")),
    # addi.w $a0, $zero, 42; addi.w $a7, $zero, 93; syscall 0 (LP64D, object ABI 1)
    "loong64": _Code((0x0280A804, 0x0281740B, 0x002B0000), flags=0x43),
    # addiu $v0, $zero, 5058; addiu $a0, $zero, 42; syscall (n64, MIPS64r2)
    "mips64le": _Code((0x240213C2, 0x2404002A, 0x0000000C), flags=0x80000000),
    "mips64": _Code((0x240213C2, 0x2404002A, 0x0000000C), flags=0x80000000),
    # addiu $v0, $zero, 4001; addiu $a0, $zero, 42; syscall (o32, MIPS32)
    "mipsle": _Code((0x24020FA1, 0x2404002A, 0x0000000C), flags=0x50001000),
    "mips": _Code((0x24020FA1, 0x2404002A, 0x0000000C), flags=0x50001000),
    # mov 1, %g1; mov 42, %o0; ta 0x6d (64-bit) or ta 0x10 (32-bit)
    "sparc64": _Code((0x82102001, 0x9010202A, 0x91D0206D)),
    "sparc": _Code((0x82102001, 0x9010202A, 0x91D02010)),
}


def probe_elf(architecture: Architecture) -> bytes:
    """Return an executable that ends with :data:`PROBE_STATUS`."""
    spec = _CODE[architecture.name]
    order = ">" if architecture.big_endian and not spec.little_code else "<"
    code = spec.raw or b"".join(struct.pack(order + "I", word) for word in spec.words)
    return small_elf(architecture, code, flags=spec.flags)


def small_elf(architecture: Architecture, code: bytes, *, flags: int = 0) -> bytes:
    """Return a static executable whose one segment is ``code``."""
    order = ">" if architecture.big_endian else "<"
    wide = architecture.bits == 64
    head_size, entry_size = (64, 56) if wide else (52, 32)
    start = head_size + entry_size
    total = start + len(code)
    word = "Q" if wide else "I"
    header = architecture.magic[:16] + struct.pack(
        f"{order}HHI{word}{word}{word}IHHHHHH",
        *(_ET_EXEC, architecture.machine, 1, _LOAD_ADDRESS + start, head_size, 0),
        *(flags, head_size, entry_size, 1, 0, 0, 0),
    )
    # The flags of a segment stand second in 64-bit files and seventh in 32-bit ones.
    middle = (0, _LOAD_ADDRESS, _LOAD_ADDRESS, total, total)
    if wide:
        segment = struct.pack(order + "IIQQQQQQ", _PT_LOAD, _READ_EXECUTE, *middle, _LOAD_ADDRESS)
    else:
        segment = struct.pack(order + "IIIIIIII", _PT_LOAD, *middle, _READ_EXECUTE, _LOAD_ADDRESS)
    return header + segment + code


class ProbeResult(NamedTuple):
    """Whether the probe ran, and if not, why."""

    ran: bool
    problem: str = ""


def run_probe(architecture: Architecture, directory: Path, *, emulator: str = "") -> ProbeResult:
    """Run the probe from ``directory`` (one that allows execution), through ``emulator`` when given.

    Takes a millisecond natively and some five under QEMU. Raises: OSError when the file cannot be written.
    """
    # a name of its own: threads may probe the same architecture at once, and a running file cannot be rewritten
    path = directory / f"probe-{architecture.name}-{os.urandom(6).hex()}"
    path.write_bytes(probe_elf(architecture))
    try:
        path.chmod(0o755)
        argv = [emulator, str(path)] if emulator else [str(path)]
        try:
            pid = _spawn(argv)
        except OSError as exc:
            return ProbeResult(False, exc.strerror or str(exc))
        _, status = os.waitpid(pid, 0)
    finally:
        path.unlink()
    code = os.waitstatus_to_exitcode(status)
    if code == PROBE_STATUS:
        return ProbeResult(True)
    return ProbeResult(False, f"ended with signal {-code}" if code < 0 else f"ended with status {code}")


def _spawn(argv: list[str]) -> int:
    """Start the probe; a fork of another thread may hold the just written file open for a moment (ETXTBSY)."""
    for _ in range(_BUSY_TRIES):
        try:
            return os.posix_spawn(argv[0], argv, {}, setsigmask=())
        except OSError as exc:
            if exc.errno != errno.ETXTBSY:
                raise
            time.sleep(0.01)
    return os.posix_spawn(argv[0], argv, {}, setsigmask=())
