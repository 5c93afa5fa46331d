"""The default system call filter, as rules and compiled."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest

from crossdock.engine.sandbox import bpf
from crossdock.engine.sandbox.seccomp import default_rules, profile
from crossdock.engine.sandbox.spec import DEFAULT_CAPABILITIES

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT = frozenset(DEFAULT_CAPABILITIES)
#: on x86-64
NUMBERS = {"read": 0, "clone": 56, "mount": 165, "reboot": 169, "keyctl": 250, "unshare": 272, "bpf": 321, "clone3": 435, "socket": 41, "chroot": 161, "add_key": 248, "init_module": 175, "personality": 135}  # fmt: skip
_AUDIT_X86_64, _AUDIT_I386 = 0xC000003E, 0x40000003
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x00000000


def run(program: bytes, number: int, *args: int, arch: int = _AUDIT_X86_64) -> int:
    """Interpret the classic BPF that a filter consists of; returns the action."""
    values = (*args, *([0] * (6 - len(args))))
    data = struct.pack("<IIQ6Q", number, arch, 0, *values)
    code = list(struct.iter_unpack("<HBBI", program))
    accumulator = at = 0
    while True:
        operation, if_true, if_false, operand = code[at]
        at += 1
        match operation:
            case 0x20:  # load a word
                (accumulator,) = struct.unpack_from("<I", data, operand)
            case 0x06:  # return
                return int(operand)
            case 0x05:  # jump
                at += operand
            case 0x15 | 0x25 | 0x35 | 0x45:
                holds = {
                    0x15: accumulator == operand,
                    0x25: accumulator > operand,
                    0x35: accumulator >= operand,
                    0x45: bool(accumulator & operand),
                }[operation]
                at += if_true if holds else if_false
            case 0x54:  # and
                accumulator &= operand
            case _:
                pytest.fail(f"unknown operation {operation:#x}")


def action(name: str, *args: int, capabilities: frozenset[str] = DEFAULT) -> int:
    program = bpf.compile_filter("x86_64", capabilities)
    assert program is not None
    return run(program, NUMBERS[name], *args)


compiled = pytest.mark.skipif(
    os.uname().machine != "x86_64" or not bpf.library_version(), reason="needs libseccomp on x86-64"
)


@compiled
@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        pytest.param("read", (), _ALLOW, id="ordinary calls are allowed"),
        pytest.param("chroot", (), _ALLOW, id="what a held capability is for"),
        pytest.param("mount", (), _ERRNO | 1, id="what a missing capability is for"),
        pytest.param("unshare", (), _ERRNO | 1, id="no new namespaces"),
        pytest.param("clone", (0x11,), _ALLOW, id="a fork"),
        pytest.param("clone", (0x10000000,), _ERRNO | 1, id="a clone into a user namespace"),
        pytest.param("clone3", (), _ERRNO | 38, id="clone3 is not there, so that libraries use clone"),
        pytest.param("keyctl", (), _ERRNO | 1, id="kernel keys"),
        pytest.param("bpf", (), _ERRNO | 1, id="bpf"),
        pytest.param("init_module", (), _ERRNO | 1, id="modules"),
        pytest.param("socket", (2,), _ALLOW, id="internet sockets"),
        pytest.param("socket", (38,), _ERRNO | 1, id="kernel crypto sockets"),
        pytest.param("socket", (40,), _ERRNO | 1, id="sockets to the hypervisor"),
        pytest.param("socket", (44,), _ALLOW, id="later families"),
        pytest.param("personality", (8,), _ALLOW, id="a 32-bit machine name"),
        pytest.param("personality", (0x0400000,), _ERRNO | 1, id="executable stacks for all"),
    ],
)
def test_default_filter(name: str, args: tuple[int, ...], expected: int) -> None:
    assert action(name, *args) == expected


@compiled
def test_a_capability_opens_its_calls() -> None:
    assert action("mount", capabilities=DEFAULT | {"CAP_SYS_ADMIN"}) == _ALLOW
    assert action("clone", 0x10000000, capabilities=DEFAULT | {"CAP_SYS_ADMIN"}) == _ALLOW
    assert action("reboot", capabilities=DEFAULT | {"CAP_SYS_BOOT"}) == _ALLOW


@compiled
def test_32_bit_calls_are_filtered_too_and_unknown_tables_end_the_process() -> None:
    program = bpf.compile_filter("x86_64", DEFAULT)
    assert program is not None
    assert run(program, 3, arch=_AUDIT_I386) == _ALLOW, "read"
    assert run(program, 21, arch=_AUDIT_I386) == _ERRNO | 1, "mount"
    assert run(program, 0, arch=0x12345) in (_KILL, 0x80000000)


def test_a_machine_we_have_no_table_for_gets_the_rules_themselves() -> None:
    assert bpf.compile_filter("vax", DEFAULT) is None


def test_the_profile_names_every_table_of_the_machine() -> None:
    made = profile("aarch64", DEFAULT)
    assert made["architectures"] == ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    assert made["defaultAction"] == "SCMP_ACT_ERRNO"
    names = {name for rule in made["syscalls"] for name in rule["names"]}
    assert {"set_tls", "cacheflush"} <= names
    assert not {"mount", "keyctl", "kexec_load", "arch_prctl"} & names


def test_s390x_has_clone_flags_in_its_second_argument() -> None:
    rule = next(rule for rule in default_rules("s390x", DEFAULT) if rule.names == ("clone",))
    assert rule.argument is not None
    assert rule.argument[0] == 1


@compiled
def test_a_compiled_filter_is_kept_for_the_next_process(tmp_path: Path) -> None:
    first = bpf.cached_filter("x86_64", DEFAULT, tmp_path)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(b"kept")
    assert first == bpf.compile_filter("x86_64", DEFAULT)
    assert bpf.cached_filter("x86_64", DEFAULT, tmp_path) == b"kept"
    assert bpf.cached_filter("x86_64", DEFAULT | {"CAP_BPF"}, tmp_path) not in (first, b"kept")
