"""Changes to a directory, as functions of its root."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["replace", "rewrite"]


def rewrite(name: str) -> Callable[[Path], object]:
    """Other content of the same size, at the same time: what only the kernel can tell."""

    def change(root: Path) -> None:
        path = root / name
        before = path.stat()
        path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    return change


def replace(name: str, make: Callable[[Path], object] = lambda _: None) -> Callable[[Path], object]:
    """Something of another kind at the same place; nothing by default."""

    def change(root: Path) -> None:
        path = root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
        make(path)

    return change
