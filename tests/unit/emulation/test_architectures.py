"""Architectures, their ELF heads, the probes, and binfmt_misc lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdock.emulation.architectures import ARCHITECTURES, Architecture, by_elf, by_name
from crossdock.emulation.elf import Executable, read_executable
from crossdock.emulation.handlers import Handler, parse_handler, registration
from crossdock.emulation.probes import _CODE, PROBE_STATUS, probe_elf, run_probe
from crossdock.image.platform import local_platform

if TYPE_CHECKING:
    from pathlib import Path

each = pytest.mark.parametrize("arch", [pytest.param(arch, id=arch.name) for arch in ARCHITECTURES])


def arch(name: str) -> Architecture:
    found = by_name(name)
    assert found is not None
    return found


def handler_for(architecture: Architecture) -> Handler:
    return Handler("x", True, "/q", "F", 0, architecture.magic, architecture.mask)


@pytest.mark.parametrize(
    ("name", "magic", "mask"),
    [
        ("arm64", "7f454c460201010000000000000000000200b700", "ffffffffffffff00fffffffffffffffffeffffff"),
        ("s390x", "7f454c4602020100000000000000000000020016", "ffffffffffffff00fffffffffffffffffffeffff"),
        ("386", "7f454c4601010100000000000000000002000300", "ffffffffffffff00fffffffffffffffffeffffff"),
        ("loong64", "7f454c4602010100000000000000000002000201", "ffffffffffffff00fffffffffffffffffeffffff"),
    ],
)
def test_magic_and_mask(name: str, magic: str, mask: str) -> None:
    assert (arch(name).magic.hex(), arch(name).mask.hex()) == (magic, mask)


@each
def test_every_architecture_has_a_probe_that_is_its_own_and_no_others(
    arch: Architecture, tmp_path: Path
) -> None:
    program = tmp_path / "probe"
    program.write_bytes(probe_elf(arch))
    assert read_executable(str(program)) == Executable("elf", arch, arch.machine, "")
    accepting = [other.name for other in ARCHITECTURES if handler_for(other).accepts(arch)]
    assert accepting == [arch.name], "a handler takes its own architecture alone"


def test_probes_and_architectures_are_the_same_set() -> None:
    assert set(_CODE) == {arch.name for arch in ARCHITECTURES}


def test_the_native_probe_runs(tmp_path: Path) -> None:
    result = run_probe(arch(local_platform().architecture), tmp_path)
    assert result.ran, result.problem
    assert list(tmp_path.iterdir()) == []


def test_a_probe_that_ends_otherwise_did_not_run(tmp_path: Path) -> None:
    liar = tmp_path / "liar"
    liar.write_text(f"#!/bin/sh\nexit {PROBE_STATUS + 1}\n")
    liar.chmod(0o755)
    result = run_probe(arch("mips"), tmp_path, emulator=str(liar))
    assert (result.ran, result.problem) == (False, "ended with status 43")
    assert not run_probe(arch("mips"), tmp_path, emulator=str(tmp_path / "absent")).ran


def test_a_line_for_the_kernel() -> None:
    line = registration("qemu-aarch64", arch("arm64"), "/usr/bin/qemu-aarch64-static", flags="F")
    assert line == (
        rb":qemu-aarch64:M:0:\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
        rb":\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
        b":/usr/bin/qemu-aarch64-static:F"
    )


@pytest.mark.parametrize(
    ("name", "path"),
    [
        pytest.param("n", "/with:colon", id="a colon in the path"),
        pytest.param("n", "/" + "x" * 127, id="a path the kernel cuts"),
        pytest.param("a/b", "/q", id="a slash in the name"),
        pytest.param("", "/q", id="no name"),
    ],
)
def test_lines_the_kernel_would_not_take(name: str, path: str) -> None:
    with pytest.raises(ValueError, match=r"takes no interpreter|not a handler name"):
        registration(name, arch("arm64"), path, flags="F")


ENTRY = """\
enabled
interpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P
flags: POF
offset 0
magic 7f454c460201010000000000000000000200b700
mask ffffffffffffff00fffffffffffffffffeffffff
"""


def test_the_kernels_description_of_a_handler() -> None:
    handler = parse_handler("qemu-aarch64", ENTRY)
    assert handler.enabled
    assert (handler.interpreter, handler.flags) == ("/usr/libexec/qemu-binfmt/aarch64-binfmt-P", "POF")
    assert handler.accepts(arch("arm64"))
    assert not handler.accepts(arch("amd64"))
    assert not parse_handler("x", ENTRY.replace("enabled", "disabled")).enabled
    by_extension = parse_handler("py", "enabled\ninterpreter /usr/bin/python3\nflags: \nextension .pyc\n")
    assert by_extension.extension == ".pyc"
    assert not by_extension.accepts(arch("arm64"))


def test_a_handler_without_a_mask_compares_every_bit() -> None:
    handler = Handler("x", True, "/q", "", 0, arch("arm").magic, b"")
    assert handler.accepts(arch("arm"))
    assert not handler.accepts(arch("armbe"))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(b"#!/bin/sh -e\necho", Executable("script", interpreter="/bin/sh"), id="a script"),
        pytest.param(
            b"#! /usr/bin/env python3", Executable("script", interpreter="/usr/bin/env"), id="with a space"
        ),
        pytest.param(
            b"#!/bin/sh\r\n", Executable("script", interpreter="/bin/sh\r"), id="with a carriage return"
        ),
        pytest.param(b"#!", Executable("script"), id="an empty line"),
        pytest.param(b"", Executable("other"), id="an empty file"),
        pytest.param(b"\x7fELF", Executable("other"), id="a cut header"),
        pytest.param(b"\x7fELF\x09" + bytes(60), Executable("other"), id="an impossible class"),
        pytest.param(b"MZ" + bytes(100), Executable("other"), id="another format"),
    ],
)
def test_kinds_of_files(tmp_path: Path, data: bytes, expected: Executable) -> None:
    (tmp_path / "f").write_bytes(data)
    assert read_executable(str(tmp_path / "f")) == expected


def test_a_dynamic_program_names_its_loader() -> None:
    found = read_executable("/bin/sh")
    assert found.architecture is not None
    assert found.architecture.name == local_platform().architecture
    assert found.interpreter.startswith("/lib")


@given(tail=st.binary(max_size=200), bits=st.sampled_from([1, 2]), order=st.sampled_from([1, 2]))
def test_any_header_is_read_without_a_crash(
    tmp_path_factory: pytest.TempPathFactory, tail: bytes, bits: int, order: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "hostile"
    path.write_bytes(b"\x7fELF" + bytes((bits, order)) + tail)
    assert read_executable(str(path)).kind in ("elf", "other")
    path.unlink()


def test_an_unknown_machine_keeps_its_number() -> None:
    assert by_elf(9999, 64, big_endian=False) is None
    assert by_name("pdp11") is None
