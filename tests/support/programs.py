"""Programs of this machine, with the libraries they need, in trees that become images."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

__all__ = ["add_program", "put"]

_LIBRARY = re.compile(r"(/\S+) \(0x")


def add_program(root: Path, program: str, where: str) -> None:
    """Put a program and its libraries into a tree."""
    put(root, Path(program).resolve(), where)
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    for library in _LIBRARY.findall(listed):
        put(root, Path(library).resolve(), library)


def put(root: Path, source: Path, where: str) -> None:
    """Copy a file into a tree unless it is there."""
    target = root / where.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copy2(source, target)
