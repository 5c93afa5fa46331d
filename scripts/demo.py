"""The demonstration: one Dockerfile, six platforms, one command, no daemon.

Starts a registry on loopback, puts a base image made from Debian's busybox packages into it, builds
``examples/hello`` for every platform with the installed ``crossdock``, pushes it, then pulls each platform into an
empty store and runs it. Run it a second time to see everything cached.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import baseimage
import idmap
import privateapt
import services

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TOP = Path(__file__).resolve().parent.parent
CROSSDOCK = Path(sys.executable).with_name("crossdock")
#: the registry's data and port, so that a second run finds the names of the first
STATE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crossdock-demo"
#: what `uname -m` may say on each platform
MACHINES: Mapping[str, Sequence[str]] = {
    "linux/amd64": ("x86_64",),
    "linux/arm64": ("aarch64",),
    "linux/arm/v7": ("armv7l", "armv8l"),
    "linux/386": ("i386", "i486", "i586", "i686"),
    "linux/ppc64le": ("ppc64le",),
    "linux/s390x": ("s390x",),
}
_STEP = re.compile(r"#(\d+) \[.*\] (?:RUN|COPY|ADD|WORKDIR) ")
_END = re.compile(r"#(\d+) (CACHED|DONE)\b")
RUN_DOCKERFILE = """\
ARG IMAGE
FROM ${IMAGE} AS run
USER root
RUN ["/bin/sh", "-c", "/usr/local/bin/hello > /ran"]
FROM scratch
COPY --from=run /ran /ran
"""


class DemoError(Exception):
    """The demonstration did not work; the text says what failed."""


def main() -> int:
    """Command line."""
    try:
        with services.Registry(storage=STATE / "registry", port=_last_port()) as registry:
            (STATE / "port").write_text(registry.host.rpartition(":")[2])
            demonstrate(registry.host)
    except (DemoError, privateapt.AptError, services.ServiceError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


def _last_port() -> int:
    """The port of the last run, so that names stay the same; any other if that is taken now."""
    STATE.mkdir(parents=True, exist_ok=True)
    saved = STATE / "port"
    return int(saved.read_text()) if saved.exists() else 0


def demonstrate(host: str) -> None:
    """Build, push, pull back and run.

    Raises: DemoError.
    """
    say(f"registry on http://{host}; base image from Debian's busybox-static packages")
    base = f"{host}/base/busybox:1"
    baseimage.push(baseimage.busybox_image(), host, "base/busybox", "1")
    tag = f"{host}/demo/hello:latest"
    say(f"building examples/hello for {', '.join(MACHINES)} and pushing {tag}")
    digest, seconds, cached, steps = build(base, tag)
    say("pulling every platform into an empty store and running it")
    printed = run_each(f"{tag.rpartition(':')[0]}@{digest}")
    show(printed, digests_of(host, digest))
    print(f"index   {tag}@{digest}")
    what = "all cached" if cached == steps else f"{cached} cached, {steps - cached} executed"
    print(f"build   {seconds:.1f} s, {steps} steps: {what}")
    if cached != steps:
        print("        run `make demo` again to see it all cached")


def say(text: str) -> None:
    """A heading."""
    print(f"\n== {text}", flush=True)


def build(base: str, tag: str) -> tuple[str, float, int, int]:
    """Build and push; returns the index digest, the seconds, and how many of how many steps were cached."""
    with tempfile.TemporaryDirectory() as folder:
        metadata = Path(folder) / "metadata.json"
        command = [
            *(str(CROSSDOCK), "build", "--builder", "embedded", "--progress", "plain", "--push"),
            *("--platform", ",".join(MACHINES), "--build-arg", f"BASE={base}", "--tag", tag),
            *("--metadata-file", str(metadata), str(TOP / "examples/hello")),
        ]
        started = time.monotonic()
        cached, steps = _watch(command)
        seconds = time.monotonic() - started
        digest = json.loads(metadata.read_text())["containerimage.digest"]
    return digest, seconds, cached, steps


def _watch(command: Sequence[str]) -> tuple[int, int]:
    """Run a build, pass its progress on, and count its steps."""
    names: set[str] = set()
    ends: dict[str, str] = {}
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        for line in child.stderr:
            print(f"  {line}", end="", flush=True)
            if found := _STEP.match(line):
                names.add(found.group(1))
            elif found := _END.match(line):
                ends[found.group(1)] = found.group(2)
    if child.returncode != 0:
        msg = f"crossdock build ended with exit code {child.returncode}"
        raise DemoError(msg)
    return sum(ends.get(name) == "CACHED" for name in names), len(names)


def run_each(image: str) -> dict[str, list[str]]:
    """Pull and run each platform in a store of its own; returns the lines that each printed."""
    folder = Path(tempfile.mkdtemp(prefix="crossdock-demo-"))
    try:
        (folder / "Dockerfile").write_text(RUN_DOCKERFILE)
        command = [
            *(str(CROSSDOCK), "build", "--builder", "embedded", "--progress", "plain"),
            *("--platform", ",".join(MACHINES), "--build-arg", f"IMAGE={image}"),
            *("--output", f"type=local,dest={folder}/out", str(folder)),
        ]
        environment = {**os.environ, "CROSSDOCK_ROOT": str(folder / "store")}
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            msg = f"running the pushed image failed:\n{done.stderr[-3000:]}"
            raise DemoError(msg)
        return {
            platform: (folder / "out" / platform.replace("/", "_") / "ran").read_text().splitlines()
            for platform in MACHINES
        }
    finally:
        idmap.remove_tree(folder / "store")
        shutil.rmtree(folder, ignore_errors=True)


def digests_of(host: str, digest: str) -> dict[str, str]:
    """The manifest digest of each platform, as the registry has them."""
    index = json.loads(baseimage.read_manifest(host, "demo/hello", digest))
    found = {}
    for entry in index["manifests"]:
        parts = [entry["platform"].get(key) for key in ("os", "architecture", "variant")]
        name = "/".join(filter(None, parts))
        found["linux/arm64" if name == "linux/arm64/v8" else name] = entry["digest"]
    return found


def show(printed: Mapping[str, Sequence[str]], digests: Mapping[str, str]) -> None:
    """Print what each platform said, and check it.

    Raises: DemoError when a platform ran on, or was built on, another machine than its own.
    """
    for platform, lines in printed.items():
        greeting, machine = lines
        print(f"{platform:<15} uname -m: {machine:<8} {greeting!r:<45} {digests[platform]}")
    for platform, lines in printed.items():
        built = lines[0].split()[2]
        if lines[1] not in MACHINES[platform] or built not in MACHINES[platform]:
            msg = f"{platform} was built on {built!r} and ran on {lines[1]!r}"
            raise DemoError(msg)
    print()


if __name__ == "__main__":
    sys.exit(main())
