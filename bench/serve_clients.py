"""``crossdock serve`` behind a real docker-buildx, against buildkitd where it is on PATH.

    python bench/serve_clients.py [--runs N] [--builds N] [--files N]

One table: cached two-platform rebuild with push, a large context for the first time and unchanged, ten clients at once,
memory idle and under ten builds, and memory over many builds. Daemons take turns; medians.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import baseimage
import emulation
import services

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TWO = "linux/amd64,linux/arm64"


class Daemon:
    """One daemon and a buildx builder for it."""

    def __init__(self, name: str, command: list[str], folder: Path, buildx: Path) -> None:
        self.name = name
        self.folder = folder / name
        self.folder.mkdir()
        self.socket = self.folder / "s.sock"
        self.buildx = buildx
        self.env = {**os.environ, "DOCKER_CONFIG": str(self.folder / "docker")}
        (self.folder / "docker").mkdir()
        flags = ["--addr", f"unix://{self.socket}", "--root", str(self.folder / "root")]
        self.process = services.Process([*command, *flags], log=self.folder / "log", env=dict(os.environ))
        self.process.wait_until(self.socket.exists, what=name)
        self.client("create", "--name", "b", "--use", "--driver", "remote", f"unix://{self.socket}")
        self.client("inspect", "--bootstrap")

    def client(self, *args: str | Path) -> None:
        done = subprocess.run(
            [self.buildx, *map(str, args)], env=self.env, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{self.name}: buildx {args}: {done.stderr[-2000:]}")

    def build(self, *args: str | Path) -> float:
        started = time.monotonic()
        self.client("build", "--progress", "quiet", *args)
        return time.monotonic() - started

    def resident_mb(self) -> float:
        """Resident megabytes of the daemon's processes (steps apart)."""
        total = 0
        for pid in tree(self.process.pid):
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/smaps_rollup").read_text()
                total += int(fields.split("Pss:")[1].split()[0])
        return total / 1024

    def cpu_s(self) -> float:
        """CPU seconds of the daemon's processes, and of those below them that have ended."""
        ticks = 0
        for pid in tree(self.process.pid):
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += sum(map(int, fields[11:15]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self.process.stop()


def tree(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{one}/task"):
                children = Path(f"/proc/{one}/task/{task}/children").read_text()
                found += map(int, children.split())
    return found


def write_context(folder: Path, count: int) -> Path:
    """Files of the sizes a source tree has, some 20 KB on average."""
    rng = random.Random(1)
    for number in range(count):
        path = folder / f"d{number // 100}/f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(rng.choice((500, 2000, 20_000, 55_000))))
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY . /x\n")
    return folder


def demo(folder: Path, base: str) -> Path:
    folder.mkdir()
    (folder / "file").write_text("x")
    (folder / "Dockerfile").write_text(
        f"FROM {base} AS build\nRUN uname -m > /m\nFROM {base}\nCOPY --from=build /m /m\nCOPY file /file\n"
    )
    return folder


@contextlib.contextmanager
def daemons(folder: Path, buildx: Path) -> Iterator[list[Daemon]]:
    commands = {"crossdock serve": [str(Path(sys.executable).with_name("crossdock")), "serve"]}
    if shutil.which("buildkitd"):
        commands["buildkitd"] = [
            *services.NAMESPACES,
            *("buildkitd", "--oci-worker-binary", "runc", "--group", str(os.getgid())),
        ]
    with contextlib.ExitStack() as stack:
        found: list[Daemon] = []
        for name, command in commands.items():
            found.append(Daemon(name, command, folder, buildx))
            stack.callback(found[-1].stop)
        yield found


def ten(daemon: Daemon, base: str, folder: Path) -> float:
    """Ten different builds at once, on one daemon."""
    contexts = []
    for number in range(10):
        path = folder / f"ten-{daemon.name.replace(' ', '-')}-{number}-{time.monotonic_ns()}"
        path.mkdir()
        (path / "Dockerfile").write_text(
            f"FROM {base}\nRUN echo {path.name} > /name\nRUN dd if=/dev/zero of=/zero bs=1M count=8\n"
        )
        contexts.append(path)
    started = time.monotonic()
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(daemon.build, contexts))
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--builds", type=int, default=100, help="builds whose memory growth is measured")
    parser.add_argument("--files", type=int, default=12_000)
    options = parser.parse_args()
    buildx = services.engine_folder("26.1") / "usr/libexec/docker/cli-plugins/docker-buildx"
    with contextlib.ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="crossdock-bench-", dir="/var/tmp"))
        )
        registry = stack.enter_context(services.Registry())
        baseimage.push(baseimage.busybox_image(), registry.host, "base/busybox", "1")
        base = f"{registry.host}/base/busybox:1"
        if shutil.which("buildkitd"):
            stack.enter_context(emulation.host_handler())
        everyone = stack.enter_context(daemons(folder, buildx))
        rows: dict[str, list[str]] = {}

        def timed(title: str, measure: Callable[[Daemon, int], float], runs: int = options.runs) -> None:
            results: dict[str, list[float]] = {d.name: [] for d in everyone}
            cpu: dict[str, list[float]] = {d.name: [] for d in everyone}
            for run in range(runs):
                for daemon in everyone if run % 2 == 0 else reversed(everyone):
                    os.sync()  # what one leaves unwritten must not slow the next
                    before = daemon.cpu_s()
                    results[daemon.name].append(measure(daemon, run))
                    cpu[daemon.name].append(daemon.cpu_s() - before)
            middle = statistics.median
            rows[title] = [
                f"{middle(took):.2f} s, CPU {middle(cpu[name]):.2f} s" for name, took in results.items()
            ]

        rows["idle memory"] = [f"{d.resident_mb():.0f} MB" for d in everyone]
        contexts = [write_context(folder / f"many{n}", options.files) for n in range(options.runs)]
        timed("large context, first time", lambda d, run: d.build("--no-cache", contexts[run]))
        timed("large context, unchanged", lambda d, _: d.build(contexts[-1]))
        small = demo(folder / "demo", base)

        def cached(daemon: Daemon, _run: int) -> float:
            tag = f"{registry.host}/out/{daemon.name.replace(' ', '-')}:1"
            return daemon.build("--platform", TWO, "-t", tag, "--push", "--provenance=false", small)

        for daemon in everyone:
            cached(daemon, 0)
        timed("cached two-platform rebuild, pushed", cached, runs=max(options.runs, 7))
        peaks: dict[str, float] = {}

        def crowd(daemon: Daemon, _run: int) -> float:
            took = ten(daemon, base, folder)
            peaks[daemon.name] = max(peaks.get(daemon.name, 0.0), daemon.resident_mb())
            return took

        timed("ten clients at once", crowd, runs=3)
        rows["memory after ten at once"] = [f"{peaks[d.name]:.0f} MB" for d in everyone]
        before = [d.resident_mb() for d in everyone]
        for daemon in everyone:
            for _ in range(options.builds):
                cached(daemon, 0)
        rows[f"growth over {options.builds} builds"] = [
            f"{d.resident_mb() - was:+.1f} MB" for d, was in zip(everyone, before, strict=True)
        ]
        print("| | " + " | ".join(d.name for d in everyone) + " |")
        print("|--|" + "--|" * len(everyone))
        for title, cells in rows.items():
            print(f"| {title} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
