"""What an executable file is: its ELF machine and interpreter, or its ``#!`` line.

Reads the beginning of the file only; every offset in it is taken for hostile.
"""

from __future__ import annotations

import os
import struct

from crossdock.emulation.architectures import Architecture, by_elf
from crossdock.record import NamedTuple

__all__ = ["Executable", "read_executable"]

_HEAD_BYTES = 1 << 16
_PT_INTERP = 3
_MAX_PROGRAM_HEADERS = 128


class Executable(NamedTuple):
    """The kind of a file: ``elf``, ``script`` or ``other``."""

    kind: str
    #: of an ELF file of an architecture we know
    architecture: Architecture | None = None
    #: ``e_machine`` of an ELF file
    machine: int = 0
    #: dynamic loader of an ELF file, interpreter of a script; ``""`` when there is none
    interpreter: str = ""


def read_executable(path: str) -> Executable:
    """Look at the beginning of a file. Raises: OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        head = os.read(fd, _HEAD_BYTES)
    finally:
        os.close(fd)
    if head.startswith(b"#!"):
        # As the kernel reads it: a carriage return is part of the name.
        words = head[2:].split(b"\n", 1)[0].replace(b"\t", b" ").strip(b" ").split(b" ")
        return Executable("script", interpreter=os.fsdecode(words[0]))
    if head.startswith(b"\x7fELF"):
        return _read_elf(head)
    return Executable("other")


def _read_elf(head: bytes) -> Executable:
    if len(head) < 52 or head[4] not in (1, 2) or head[5] not in (1, 2):
        return Executable("other")
    wide, order = head[4] == 2, ">" if head[5] == 2 else "<"
    (machine,) = struct.unpack_from(order + "H", head, 18)
    architecture = by_elf(machine, 64 if wide else 32, big_endian=order == ">")
    return Executable("elf", architecture, machine, _interpreter(head, order, wide=wide))


def _interpreter(head: bytes, order: str, *, wide: bool) -> str:
    try:
        if wide:
            (table,) = struct.unpack_from(order + "Q", head, 32)
            entry_size, count = struct.unpack_from(order + "HH", head, 54)
        else:
            (table,) = struct.unpack_from(order + "I", head, 28)
            entry_size, count = struct.unpack_from(order + "HH", head, 42)
        for number in range(min(count, _MAX_PROGRAM_HEADERS)):
            at = table + number * entry_size
            (kind,) = struct.unpack_from(order + "I", head, at)
            if kind != _PT_INTERP:
                continue
            if wide:
                (offset,) = struct.unpack_from(order + "Q", head, at + 8)
                (size,) = struct.unpack_from(order + "Q", head, at + 32)
            else:
                (offset,) = struct.unpack_from(order + "I", head, at + 4)
                (size,) = struct.unpack_from(order + "I", head, at + 16)
            return os.fsdecode(head[offset : offset + size].rstrip(b"\0"))
    except struct.error:
        return ""
    return ""
