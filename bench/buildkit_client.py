"""Compare our BuildKit client with buildx, the Go one, both driving the same daemon: time and the client's memory.

    python bench/buildkit_client.py [--case NAME …] [--runs N]

The daemon is buildkitd from PATH (with runc), else the BuildKit inside a Docker Engine 26.1 from Debian's packages, with
Debian's buildx. Both clients use one builder of one store. Contestants take turns; numbers are medians.
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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import measure
import services

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MEMORY_GOAL_MB = 200


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is built, and how much slower than buildx we may be."""

    name: str
    goal: float
    #: makes the context of one run
    context: Callable[[Bench], Path]
    output: str = "type=cacheonly"
    #: run unless cases are named
    usual: bool = True


class Bench:
    """The daemon, the clients, and the contexts."""

    def __init__(self, folder: Path, address: str, buildx: Path, host: str) -> None:
        self.folder = folder
        (folder / "docker").mkdir()
        self.env = {**os.environ, "DOCKER_CONFIG": str(folder / "docker"), "HOME": str(folder)}
        self.env.pop("PYTHONDONTWRITEBYTECODE", None)
        if host:
            self.env["DOCKER_HOST"] = host
        self.clients = {
            "crossdock": [str(Path(sys.executable).with_name("crossdock"))],
            "buildx": [str(buildx)],
        }
        self.builder = "default"
        if address:
            self.builder = "bench"
            create = ("create", "--name", self.builder, "--driver", "remote", address)
            subprocess.run([str(buildx), *create], env=self.env, check=True, capture_output=True)
        self._number = 0

    def small(self) -> Path:
        """One file."""
        folder = self.folder / "small"
        if not folder.exists():
            folder.mkdir()
            (folder / "a").write_text("hello")
            (folder / "Dockerfile").write_text("FROM scratch\nCOPY a /a\n")
        return folder

    def many(self) -> Path:
        """12,000 files, 200 MB."""
        folder = self.folder / "many"
        if not folder.exists():
            chance = random.Random(1)
            for number in range(12_000):
                path = folder / f"d{number // 100:03}" / f"f{number % 100:03}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(chance.randbytes(chance.randint(1_000, 33_000)))
            (folder / "Dockerfile").write_text("FROM scratch\nCOPY . /files\n")
        return folder

    def renamed(self) -> Path:
        """The same files under a name that the daemon does not know; links, so that nothing is copied here."""
        self._number += 1
        folder = self.folder / f"many-{self._number}"
        subprocess.run(["cp", "-al", str(self.many()), str(folder)], check=True)
        return folder

    def large(self) -> Path:
        """Four files, 200 MB."""
        folder = self.folder / "large"
        if not folder.exists():
            folder.mkdir()
            for name in "abcd":
                (folder / name).write_bytes(random.Random(name).randbytes(50_000_000))
            (folder / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
        return folder

    def run(self, client: str, case: Case) -> measure.Measurement:
        """One run."""
        context, out = case.context(self), self.folder / "out"
        output = case.output.replace("OUT", str(out))
        flags = ("--builder", self.builder, "--progress", "quiet", "--provenance=false", "--output", output)
        command = [*self.clients[client], "build", *flags, str(context)]
        try:
            return measure.run([command], env=self.env, cwd=self.folder)
        finally:
            shutil.rmtree(out, ignore_errors=True)
            if context.name.startswith("many-"):
                shutil.rmtree(context)


CASES = [
    Case(name="cached", goal=1.5, context=Bench.small),
    Case(name="first", goal=1.2, context=Bench.renamed),
    Case(name="unchanged", goal=1.2, context=Bench.many),
    Case(name="local-200MB", goal=1.2, context=Bench.large, output="type=local,dest=OUT"),
    # buildx (of 2026) received all files and then waited for ever
    Case(name="local-12000", goal=1.2, context=Bench.many, output="type=local,dest=OUT", usual=False),
]


@contextlib.contextmanager
def daemon(folder: Path) -> Iterator[tuple[str, Path, str]]:
    """Start what there is; gives the address for the remote driver, buildx, and DOCKER_HOST."""
    program, buildx = shutil.which("buildkitd"), shutil.which("docker-buildx") or shutil.which("buildx")
    if program and buildx:
        path = folder / "buildkitd.sock"
        process = services.Process(
            [
                *services.NAMESPACES,
                *(program, "--root", f"{folder}/root", "--addr", f"unix://{path}"),
                *("--oci-worker-binary", "runc", "--group", str(os.getgid())),
            ],
            log=folder / "log",
            env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        )
        try:
            process.wait_until(path.exists, what="buildkitd")
            yield f"unix://{path}", Path(buildx), ""
        finally:
            process.stop()
        return
    with services.DockerEngine("26.1", containerd_store=True, data=folder / "data") as engine:
        if engine.plugins is None:
            msg = "the Engine's packages have no docker-buildx"
            raise services.ServiceError(msg)
        yield "", engine.plugins / "docker-buildx", engine.address


def main() -> int:
    """Run the cases and print a table; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", action="append", choices=[c.name for c in CASES])
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    chosen = [c for c in CASES if (c.name in arguments.case if arguments.case else c.usual)]
    with tempfile.TemporaryDirectory(prefix="crossdock-bench-", dir="/var/tmp") as text:
        folder = Path(text)
        (folder / "daemon").mkdir()
        with daemon(folder / "daemon") as (address, buildx, host):
            bench = Bench(folder, address, buildx, host)
            missed = [not compare(bench, case, arguments.runs) for case in chosen]
    return int(any(missed))


def compare(bench: Bench, case: Case, runs: int) -> bool:
    """Measure one case; True when its goals are met."""
    found: dict[str, list[measure.Measurement]] = {name: [] for name in bench.clients}
    for name in bench.clients:
        bench.run(name, case)  # what is cached is cached
    for number in range(runs):
        order: Sequence[str] = list(bench.clients)
        for name in order if number % 2 else order[::-1]:
            found[name].append(bench.run(name, case))
    seconds = {name: statistics.median(m.seconds for m in ms) for name, ms in found.items()}
    memory = {name: max(m.client_bytes for m in ms) // 2**20 for name, ms in found.items()}
    cpu = {name: statistics.median(m.cpu_s for m in ms) for name, ms in found.items()}
    ratio = seconds["crossdock"] / seconds["buildx"]
    met = ratio <= case.goal and memory["crossdock"] <= MEMORY_GOAL_MB
    for name in bench.clients:
        print(
            f"{case.name:12} {name:10} {seconds[name]:7.3f} s  {cpu[name]:6.2f} s cpu  {memory[name]:4} MB",
            flush=True,
        )
    print(f"{case.name:12} ratio {ratio:.2f}, goal {case.goal} ({'met' if met else 'MISSED'})\n", flush=True)
    return met


if __name__ == "__main__":
    sys.exit(main())
