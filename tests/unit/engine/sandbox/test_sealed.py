"""Programs that run from sealed memory."""

from __future__ import annotations

import fcntl
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from crossdock.engine.sandbox import sealed
from crossdock.engine.sandbox.sealed import sealed_copy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def shown(fd: str) -> str:
    """What a descriptor is of; empty when it has been closed."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return ""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "program"
    shutil.copy("/bin/echo", path)
    before = set(os.listdir("/proc/self/fd"))
    yield path
    sealed._copies.pop(str(path), None)
    for fd in set(os.listdir("/proc/self/fd")) - before:
        if "memfd:program" in shown(fd):
            os.close(int(fd))


def said(path: str, *args: str) -> str:
    read, write = os.pipe()
    pid = os.posix_spawn(path, ["program", *args], {}, file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)])
    os.close(write)
    with os.fdopen(read) as file:
        text = file.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return text


def test_a_copy_runs_and_cannot_be_written_to(program: Path) -> None:
    copy = sealed_copy(str(program))
    assert copy != str(program)
    assert said(copy, "a b") == "a b\n"
    with open(copy, "rb") as file:
        assert file.read() == program.read_bytes()
        wanted = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        assert fcntl.fcntl(file, fcntl.F_GET_SEALS) & wanted == wanted
    with open(copy, "r+b", buffering=0) as file, pytest.raises(PermissionError):
        file.write(b"x")


def test_one_copy_serves_until_the_file_is_another(program: Path) -> None:
    first = sealed_copy(str(program))
    assert sealed_copy(str(program)) == first
    program.unlink()
    shutil.copy("/bin/cat", program)
    second = sealed_copy(str(program))
    assert second != first
    assert said(second, "/dev/null") == ""
    assert said(first, "still") == "still\n", "who was told of it before may still run it"


def test_others_do_not_inherit_it(program: Path) -> None:
    copy = sealed_copy(str(program))
    listed = said("/bin/ls", "-l", "/proc/self/fd")
    assert "memfd:program" in os.readlink(copy)
    assert "memfd:program" not in listed
    assert "pipe:" in listed


def test_what_cannot_be_read_is_run_as_it_is(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    assert sealed_copy(missing) == missing


def test_a_script_is_run_as_it_is(tmp_path: Path) -> None:
    script = tmp_path / "program"
    script.write_text('#!/bin/sh\nexec /bin/echo wrapped "$@"\n')
    script.chmod(0o755)
    assert sealed_copy(str(script)) == str(script)
    assert said(sealed_copy(str(script)), "x") == "wrapped x\n"
