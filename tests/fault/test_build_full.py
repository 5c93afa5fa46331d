"""A full disk at any moment of a build: one clear error, a whole store, and the next build works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.cli import PROGRAM

if TYPE_CHECKING:
    from support.cli import Crossdock
    from support.servers import BaseImages

DRIVER = Path(__file__).with_name("fulldisk.py")
LEVELS = max(8, int(os.environ.get("FAULT_ROUNDS", "15")) * 2 // 3)
NAMESPACES = {
    "tmpfs": ("unshare", "--user", "--map-root-user", "--mount"),
    # a loop device is given back when its last mount goes, with the namespace
    "ext4": ("unshare", "--mount", "--propagation", "private"),
}


@pytest.mark.slow
@pytest.mark.timeout(60 + 20 * LEVELS)
@pytest.mark.needs("base", "crun", "userns", "overlay")
@pytest.mark.parametrize("kind", ["tmpfs", pytest.param("ext4", marks=pytest.mark.needs("loop"))])
def test_every_level_of_a_full_disk(crossdock: Crossdock, base: BaseImages, kind: str) -> None:
    done = subprocess.run(
        [*NAMESPACES[kind], sys.executable, DRIVER, kind, crossdock.folder, PROGRAM, base.amd64, str(LEVELS)],
        env=crossdock.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert not found["complaints"], "\n\n".join(found["complaints"])
    assert {"full", "done"} <= set(found["outcomes"]), found["outcomes"]
