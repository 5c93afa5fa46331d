"""``make demo``: six platforms built, pushed, pulled back and run; the second time all from the cache."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import demo

if TYPE_CHECKING:
    from support.cli import Crossdock

pytestmark = [pytest.mark.slow, pytest.mark.needs("base", "crun", "qemu", "userns", "overlay", "binfmt")]


def run_demo(crossdock: Crossdock) -> str:
    done = subprocess.run(
        [sys.executable, demo.__file__],
        env=crossdock.environment,
        cwd=Path("/"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(f"exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def test_every_platform_runs_and_the_second_time_is_cached(crossdock: Crossdock) -> None:
    first, second = run_demo(crossdock), run_demo(crossdock)
    machines = re.findall(r"^(linux/\S+) +uname -m: (\S+)", first, re.MULTILINE)
    assert [platform for platform, _ in machines] == list(demo.MACHINES)
    assert all(machine in demo.MACHINES[platform] for platform, machine in machines)
    digests = [re.search(r"@(sha256:[0-9a-f]{64})", text) for text in (first, second)]
    assert digests[0] is not None
    assert digests[1] is not None
    assert digests[0].group(1) == digests[1].group(1)
    assert "executed" in first
    assert "all cached" in second
