"""Parse and convert a 1,000-line, 100-stage Dockerfile; and what importing the frontend costs.

Usage: python bench/dockerfile_convert.py [--rounds N]

Targets: parse and convert in less than 150 ms; imports for a plain file with at most 20 dataclasses.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

from crossdock.dockerfile import ConvertOptions, convert, parse
from crossdock.image.platform import Platform


@dataclass(frozen=True)
class Image:
    """An invented image."""

    ref: str
    digest: str
    config: bytes


class Images:
    """Resolves everything at once."""

    def resolve_image(self, ref: str, *, platform: Platform, mode: str, log_name: str) -> Image:
        del mode, log_name
        config = {
            "architecture": platform.architecture,
            "os": platform.os,
            "config": {"Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "1" * 64]},
        }
        return Image(ref, "sha256:" + "a" * 64, json.dumps(config).encode())

    def resolve_oci_layout(self, ref: str, *, store: str, platform: Platform, log_name: str) -> Image:
        return self.resolve_image(ref, platform=platform, mode=store, log_name=log_name)


class NoFiles:
    """No ignore file."""

    def read_file(self, path: str, *, local: str = "context") -> bytes | None:
        del path, local
        return None


def dockerfile(stages: int = 100) -> bytes:
    """Return a file of ten lines per stage, every stage needed by the last."""
    out = []
    for i in range(stages):
        base = f"stage{i - 1}" if i % 3 else "alpine:3"
        out.append(
            f"FROM {base} AS stage{i}\n"
            f"ARG VERSION{i}=1.{i}\n"
            f'ENV NAME{i}="value $VERSION{i}" OTHER={i}\n'
            f"WORKDIR /src/{i}\n"
            f"COPY --chown=1000:1000 src{i}/*.c include/ ./\n"
            f"RUN --mount=type=cache,target=/root/.cache/{i} make -j4 \\\n"
            f'    && echo "done ${{NAME{i}:-none}}"\n'
            + (f"COPY --from=stage{i - 1} /out /in\n" if i else "COPY . /in\n")
            + f"LABEL org.example.stage{i}=$OTHER\n"
            f'CMD ["run", "{i}"]\n'
        )
    return "".join(out).encode()


def measure(rounds: int, platforms: int) -> list[float]:
    """Return milliseconds per round."""
    data = dockerfile()
    wanted = (Platform("linux", "amd64"), Platform("linux", "arm64"))[:platforms]
    options = ConvertOptions(platforms=wanted, multi_platform=platforms > 1)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        results = convert(parse(data), options, images=Images(), context=NoFiles(), warn=lambda _: None)
        for result in results:
            assert result.output is not None
            assert result.output.node.digest
        times.append((time.perf_counter() - start) * 1000)
    return times


_CHILD = """
import dataclasses, sys, time
made = 0
real = dataclasses._process_class
def counting(*args, **kwargs):
    global made
    made += 1
    return real(*args, **kwargs)
dataclasses._process_class = counting
import json
before = made
start = time.perf_counter()
from crossdock.llb import ops, codec
from crossdock.image import config
shared = made
middle = time.perf_counter()
from crossdock.dockerfile import convert, parse, ConvertOptions
from crossdock.dockerfile.convert import config, copy, run
parse(b"FROM a\\nARG x\\nENV a=b\\nRUN x\\nCOPY a b\\nWORKDIR /x\\nCMD y\\n")
print(json.dumps({"shared_ms": (middle - start) * 1000, "own_ms": (time.perf_counter() - middle) * 1000,
                  "shared_dataclasses": shared - before, "own_dataclasses": made - shared}))
"""


def imports() -> dict[str, float]:
    """Return the import cost in a fresh process: what llb and image cost, and the frontend on top."""
    runs = [
        json.loads(
            subprocess.run([sys.executable, "-c", _CHILD], capture_output=True, text=True, check=True).stdout
        )
        for _ in range(5)
    ]
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    lines = dockerfile().count(b"\n")
    for platforms in (1, 2):
        times = measure(rounds, platforms)
        print(
            f"parse+convert {lines} lines, 100 stages, {platforms} platform(s): "
            f"median {statistics.median(times):.0f} ms, first {times[0]:.0f} ms, best {min(times):.0f} ms"
        )
    print("imports:", {k: round(v, 1) for k, v in imports().items()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
