"""The cases of the benchmark. Each is a table row: what is built, what is prepared before every run, how often.

``foundation`` are the cases of the first table, ``engine`` those of the wider one (``--all``).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import baseimage
import privateapt
from contestants import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from contestants import Contestant

TOP = Path(__file__).resolve().parent.parent
TWO = ("linux/amd64", "linux/arm64")
FILES = 12_000
BIG_FILE_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What the cases stand on."""

    #: HOST:PORT of the registry
    registry: str
    #: the busybox base in it
    base: str
    #: scratch folder
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row."""

    name: str
    title: str
    #: greatest ratio to the peer that is wanted
    goal: float
    #: makes the context; called once
    prepare: Callable[[Bench], Job]
    #: called before each timed run, not timed: (contestant forgets?, job of this run)
    cold: bool = False
    #: run once, untimed, after ``cold`` and before the measured runs
    warm_up: bool = True
    #: changes the context before each run
    touch: Callable[[Job, int], None] | None = None
    #: several builds at once
    parallel: int = 1
    runs: int = 7
    group: str = "foundation"

    def job(self, job: Job, contestant: Contestant, run: int, copy: int = 0) -> Job:
        """The job of one run: pushes to a repository of its own, so that nothing is there already when cold."""
        if not job.push:
            return job
        end = f"-{run}" if self.cold else ""
        who = "".join(c if c.isalnum() else "-" for c in contestant.name.lower()).strip("-")
        return replace(job, push=f"{job.push}-{who}{end}-{copy}:latest")


def demo(bench: Bench) -> Job:
    """``examples/hello`` for two platforms, pushed."""
    return Job(
        context=TOP / "examples/hello",
        push=f"{bench.registry}/bench/demo",
        platforms=TWO,
        build_args={"BASE": bench.base},
    )


def demo_no_cache(bench: Bench) -> Job:
    """The same without the cache."""
    return replace(demo(bench), push=f"{bench.registry}/bench/demo-fresh", no_cache=True)


def many_files(bench: Bench) -> Job:
    """12,000 files, about 200 MB, into one layer."""
    folder = bench.folder / "files"
    if not folder.exists():
        source = random.Random(12)
        words = source.randbytes(1 << 20).hex().encode()
        for number in range(FILES):
            path = folder / f"tree/d{number // 500:03}/s{number % 20:02}/f{number:05}"
            path.parent.mkdir(parents=True, exist_ok=True)
            size = int(source.paretovariate(1.3) * 5000) % 180_000
            offset = source.randrange(len(words) - 180_000)
            path.write_bytes(b"%d\n" % number + words[offset : offset + size] + source.randbytes(size // 8))
        (folder / "Dockerfile").write_text("ARG BASE\nFROM ${BASE}\nCOPY tree /tree\n")
    return Job(
        context=folder,
        push=f"{bench.registry}/bench/files",
        build_args={"BASE": bench.base},
        platforms=("linux/amd64",),
    )


def changed_file(bench: Bench) -> Job:
    """One file among them changes."""
    return replace(many_files(bench), push=f"{bench.registry}/bench/changed")


def touch_one(job: Job, run: int) -> None:
    """Give one file new content."""
    (job.context / "tree/d003/s07/f01507").write_text(f"run {run}, {random.random()}\n")


def run_chain(bench: Bench) -> Job:
    """40 RUN steps, one after the other."""
    steps = "".join(f"RUN echo {number} > /step-{number}\n" for number in range(40))
    return _written(bench, "chain", f"ARG BASE\nFROM ${{BASE}}\n{steps}", no_cache=True)


def stages(bench: Bench) -> Job:
    """16 stages that do not depend on each other, gathered in one."""
    lines = ["ARG BASE"]
    for number in range(16):
        work = f"RUN dd if=/dev/zero bs=1M count=8 2>/dev/null | md5sum > /s{number}"
        lines += [f"FROM ${{BASE}} AS s{number}", work]
    lines.append("FROM scratch")
    lines += [f"COPY --from=s{number} /s{number} /" for number in range(16)]
    return _written(bench, "stages", "\n".join(lines) + "\n", no_cache=True)


def cold_base(bench: Bench) -> Job:
    """Pull and unpack a large base, then one RUN."""
    reference = large_base(bench)
    job = _written(bench, "coldbase", "ARG BASE\nFROM ${BASE}\nRUN true\n")
    return replace(job, build_args={"BASE": reference})


def big_file(bench: Bench, compression: str) -> Job:
    """One file of 1 GB into one layer."""
    folder = bench.folder / "bigfile"
    if not folder.exists():
        folder.mkdir()
        (folder / "Dockerfile").write_text("FROM scratch\nCOPY big /big\n")
        source = random.Random(1)
        with (folder / "big").open("wb") as out:
            for _ in range(BIG_FILE_BYTES >> 20):
                out.write(
                    source.randbytes(1 << 18) + bytes(1 << 18) + source.randbytes(1 << 18).hex().encode()
                )
    push = f"{bench.registry}/bench/big-{compression}"
    return Job(context=folder, push=push, platforms=("linux/amd64",), compression=compression)


def ten_at_once(bench: Bench) -> Job:
    """The demonstration without the cache, ten times at once."""
    return replace(demo_no_cache(bench), push=f"{bench.registry}/bench/ten", platforms=("linux/amd64",))


def ten_with_platforms(bench: Bench) -> Job:
    """The demonstration for two platforms without the cache, ten times at once."""
    return replace(demo_no_cache(bench), push=f"{bench.registry}/bench/ten-platforms")


def ten_with_output(bench: Bench) -> Job:
    """Ten times at once: a file of eight megabytes made by a step, and pushed."""
    text = "ARG BASE\nFROM ${BASE}\nRUN dd if=/dev/urandom of=/data bs=1M count=8 2>/dev/null\nRUN md5sum /data > /sum\n"
    job = _written(bench, "output", text, no_cache=True)
    return replace(job, push=f"{bench.registry}/bench/ten-output")


def _written(bench: Bench, name: str, dockerfile: str, *, no_cache: bool = False) -> Job:
    folder = bench.folder / name
    folder.mkdir(exist_ok=True)
    (folder / "Dockerfile").write_text(dockerfile)
    return Job(context=folder, build_args={"BASE": bench.base}, platforms=("linux/amd64",), no_cache=no_cache)


def large_base(bench: Bench) -> str:
    """A Debian system of about 170 MB in the registry, as one gzip layer; made once and kept in the developer cache."""
    import subprocess

    saved = privateapt.cache_dir() / "large-base.tar"
    if not saved.exists():
        print("bench: making a Debian base with mmdebstrap (once)", flush=True)
        partial = saved.with_suffix(".partial.tar")
        include = "--include=perl,python3-minimal,gpg"
        command = ["mmdebstrap", "--variant=minbase", include, "--format=tar", baseimage.SUITE, str(partial)]
        mirror = f"deb {privateapt.debian_mirror()} {baseimage.SUITE} main"
        subprocess.run([*command, mirror], check=True, stdout=subprocess.DEVNULL)
        partial.rename(saved)
    image = baseimage.assemble({"linux/amd64": saved.read_bytes()})
    baseimage.push(image, bench.registry, "base/large", "1")
    return f"{bench.registry}/base/large:1"


CASES: Sequence[Case] = (
    Case(name="cached", title="cached two-platform rebuild, push", goal=1.0, prepare=demo, runs=11),
    Case(name="no-cache", title="the same with --no-cache", goal=0.5, prepare=demo_no_cache, runs=7),
    Case(
        name="files",
        title=f"{FILES:,} files into one layer, push",
        goal=0.3,
        prepare=many_files,
        cold=True,
        warm_up=False,
        runs=5,
    ),
    Case(name="chain", title="40-step RUN chain", goal=0.35, prepare=run_chain, runs=5),
    Case(
        name="cold-base",
        title="cold pull and unpack of a large base",
        goal=0.6,
        prepare=cold_base,
        cold=True,
        warm_up=False,
        runs=5,
    ),
    Case(
        name="changed",
        title=f"one changed file among {FILES:,}, rebuild, push",
        goal=0.3,
        prepare=changed_file,
        touch=touch_one,
        runs=5,
        group="engine",
    ),
    Case(name="stages", title="16 independent stages", goal=0.8, prepare=stages, runs=5, group="engine"),
    Case(
        name="big-gzip",
        title="one 1 GB file, gzip, push",
        goal=0.4,
        prepare=lambda bench: big_file(bench, "gzip"),
        cold=True,
        warm_up=False,
        runs=3,
        group="engine",
    ),
    Case(
        name="big-zstd",
        title="one 1 GB file, zstd, push",
        goal=0.4,
        prepare=lambda bench: big_file(bench, "zstd"),
        cold=True,
        warm_up=False,
        runs=3,
        group="engine",
    ),
    Case(
        name="ten",
        title="10 builds at once",
        goal=0.8,
        prepare=ten_at_once,
        parallel=10,
        runs=5,
        group="engine",
    ),
    Case(
        name="ten-platforms",
        title="10 builds at once of two platforms each",
        goal=0.8,
        prepare=ten_with_platforms,
        parallel=10,
        runs=5,
        group="engine",
    ),
    Case(
        name="ten-output",
        title="10 builds at once that make 8 MB each",
        goal=0.8,
        prepare=ten_with_output,
        parallel=10,
        runs=5,
        group="engine",
    ),
)
