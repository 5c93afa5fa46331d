"""A full disk at any moment is ``StoreFull``; nothing is half-written and pruning works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FULL = Path(__file__).with_name("full.py")
MOUNT = 'mount -t tmpfs -o size=16m,mode=700 tmpfs "$1" && exec "$2" "$3" "$1"'


@pytest.mark.slow
@pytest.mark.needs("overlay")
def test_every_level_of_a_full_disk_is_survived(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", MOUNT, "sh"]
    environment = os.environ | {"PYTHONPATH": str(FULL.parent.parent)}
    done = subprocess.run(
        [*command, str(place), sys.executable, str(FULL)],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stdout
    full, finished = (int(line.rpartition(" ")[2]) for line in lines)
    assert full > 10
    assert finished > 5
