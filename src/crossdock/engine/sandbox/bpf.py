"""Compile seccomp rules to BPF with libseccomp, which crun needs anyway.

Spec: libseccomp ``seccomp_rule_add(3)``, ``seccomp_export_bpf(3)``.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import TYPE_CHECKING

from crossdock.engine.sandbox.seccomp import ARCHITECTURES, default_rules
from crossdock.hashing import sha256

if TYPE_CHECKING:
    from pathlib import Path

    from crossdock.engine.sandbox.seccomp import Rule

__all__ = ["cached_filter", "compile_filter", "library_version"]

_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_EPERM = 1
_OPERATORS = {"SCMP_CMP_LT": 2, "SCMP_CMP_EQ": 4, "SCMP_CMP_GT": 6, "SCMP_CMP_MASKED_EQ": 7}
_UNKNOWN_SYSCALL = -1
_ATTR_OPTIMIZE = 8
_BINARY_TREE = 2


#: ``struct scmp_arg_cmp``: argument, operator, two values
_COMPARE = struct.Struct("@IiQQ")


def _load() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError:
        return None
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = (ctypes.c_uint32,)
    library.seccomp_release.argtypes = (ctypes.c_void_p,)
    library.seccomp_arch_add.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
    library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    library.seccomp_attr_set.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32)
    library.seccomp_rule_add_array.argtypes = (
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_char_p,
    )
    library.seccomp_export_bpf.argtypes = (ctypes.c_void_p, ctypes.c_int)
    library.seccomp_version.restype = ctypes.POINTER(ctypes.c_uint)
    return library


def library_version() -> str:
    """Return libseccomp's version, or ``""`` where it cannot be loaded."""
    library = _load()
    if library is None:
        return ""
    return ".".join(str(number) for number in library.seccomp_version()[:3])


def cached_filter(machine: str, capabilities: frozenset[str], directory: Path | None) -> bytes | None:
    """Return :func:`compile_filter`'s result, kept in ``directory`` for the next process."""
    if directory is None:
        return compile_filter(machine, capabilities)
    hasher = sha256(library_version().encode())
    hasher.update(repr((machine, sorted(capabilities), default_rules(machine, capabilities))).encode())
    path = directory / f"seccomp-{hasher.hexdigest()[:32]}.bpf"
    try:
        return path.read_bytes()
    except FileNotFoundError:
        pass
    code = compile_filter(machine, capabilities)
    if code is not None:
        temporary = path.with_name(f"{path.name}.{os.urandom(6).hex()}")
        temporary.write_bytes(code)
        temporary.replace(path)
    return code


def compile_filter(machine: str, capabilities: frozenset[str]) -> bytes | None:
    """Return the default rules as BPF; ``None`` where libseccomp cannot do it (then give the rules to the runtime).

    System calls that the library does not know are left out, as runtimes do: they stay forbidden.
    """
    library = _load()
    architectures = ARCHITECTURES.get(machine)
    if library is None or architectures is None:
        return None
    context = library.seccomp_init(_ERRNO | _EPERM)
    if not context:
        return None
    try:
        for name in architectures[1:]:
            token = library.seccomp_arch_resolve_name(name.removeprefix("SCMP_ARCH_").lower().encode())
            if token and library.seccomp_arch_add(context, token) < 0:
                return None
        for rule in default_rules(machine, capabilities):
            if not _add(library, context, rule):
                return None
        library.seccomp_attr_set(context, _ATTR_OPTIMIZE, _BINARY_TREE)  # absent before 2.5: then linear
        return _export(library, context)
    finally:
        library.seccomp_release(context)


def _add(library: ctypes.CDLL, context: int, rule: Rule) -> bool:
    action = _ALLOW if rule.errno is None else _ERRNO | rule.errno
    compare: bytes | None = None
    if rule.argument is not None:
        index, operator, first, second = rule.argument
        compare = _COMPARE.pack(index, _OPERATORS[operator], first, second)
    for name in rule.names:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number == _UNKNOWN_SYSCALL:
            continue
        if library.seccomp_rule_add_array(context, action, number, int(compare is not None), compare) < 0:
            return False
    return True


def _export(library: ctypes.CDLL, context: int) -> bytes | None:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        if library.seccomp_export_bpf(context, fd) < 0:
            return None
        size = os.lseek(fd, 0, os.SEEK_END)
        return os.pread(fd, size, 0)
    finally:
        os.close(fd)
