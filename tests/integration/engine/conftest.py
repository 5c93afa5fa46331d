"""A base file system of busybox, and workers to build on it."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest

import baseimage
import privateapt
from integration.engine.harness import Worker

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: Any) -> Any:
    """A folder with busybox and its applets (needs "base")."""
    root = tmp_path_factory.mktemp("base")
    architecture = privateapt.host_architecture()
    binary = baseimage.busybox_packages([architecture])[architecture]
    listing = subprocess.run(
        [str(binary), "--list"], capture_output=True, text=True, check=True
    ).stdout.split()
    (root / "bin").mkdir()
    (root / "bin/busybox").write_bytes(binary.read_bytes())
    (root / "bin/busybox").chmod(0o755)
    for applet in listing:
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    root.chmod(0o755)
    return root


@pytest.fixture
def worker(tmp_path: Path, base_folder: Any) -> Any:
    return Worker(tmp_path, base_folder)
