"""What the benchmark measures is what happened."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import measure

if TYPE_CHECKING:
    from pathlib import Path

MB = 1 << 20


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_the_peak_is_that_of_the_biggest_process_of_the_tree(tmp_path: Path) -> None:
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', 'bytearray({150 * MB})'])"
    small = measure.run([python("")], env=os.environ, cwd=tmp_path)
    large = measure.run([python(child)], env=os.environ, cwd=tmp_path)
    assert small.client_bytes < 60 * MB
    assert 150 * MB < large.client_bytes < 220 * MB


def test_commands_at_once_share_the_clock(tmp_path: Path) -> None:
    both = [python("import time; time.sleep(1)")] * 2
    assert 1 <= measure.run(both, env=os.environ, cwd=tmp_path).seconds < 2


def test_a_failure_shows_what_was_printed(tmp_path: Path) -> None:
    with pytest.raises(measure.RunError, match="no such thing"):
        measure.run([python("raise SystemExit('no such thing')")], env=os.environ, cwd=tmp_path)


def test_a_daemons_peak_counts_from_the_start_of_the_run(tmp_path: Path) -> None:
    code = f"x = bytearray({150 * MB}); del x; print('ready', flush=True); input()"
    with subprocess.Popen(python(code), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        daemon.stdout.readline()
        found = measure.run([["true"]], env=os.environ, cwd=tmp_path, daemon=daemon.pid)
        daemon.communicate(b"\n")
    assert 0 < found.daemon_bytes < 60 * MB


def test_the_summary_is_median_and_greatest_peak() -> None:
    runs = [
        measure.Measurement(seconds=s, client_bytes=b, daemon_bytes=1, cpu_s=s / 4)
        for s, b in [(3, 10), (1, 30), (2, 20)]
    ]
    assert measure.summarise(runs) == measure.Summary(
        seconds=2, least_s=1, most_s=3, cpu_s=0.5, peak_bytes=31, runs=3
    )


def test_processor_time_is_counted_of_children_and_of_the_daemon(tmp_path: Path) -> None:
    spin = "import time\nwhile time.process_time() < 0.3: pass"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {spin!r}])"
    assert 0.3 <= measure.run([python(child)], env=os.environ, cwd=tmp_path).cpu_s < 1.0
    go, done = tmp_path / "go", tmp_path / "done"
    os.mkfifo(go)
    os.mkfifo(done)
    served = f"print('ready', flush=True)\nopen({str(go)!r}).read()\n{spin}\nopen({str(done)!r}, 'w').close()\ninput()"
    with subprocess.Popen(python(served), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        daemon.stdout.readline()
        client = ["sh", "-c", ": > go; cat done"]
        found = measure.run([client], env=os.environ, cwd=tmp_path, daemon=daemon.pid)
        daemon.communicate(b"\n")
    assert 0.2 <= found.cpu_s < 1.0
