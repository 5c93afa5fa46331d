"""Many builds on one ``crossdock serve``: what grows?

    python bench/serve_soak.py [--builds 1000] [--every 100] [--parallel 2]

Builds of a real docker-buildx: cached ones, contexts that change between five states, new steps, steps that fail, clients
that are killed, secrets, outputs sent to the client. After every hundred a line is printed: memory (PSS) of the server's
processes, descriptors, threads, temporary files and mounts, size of the store. The history is limited to 50 records.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import baseimage
import serve_clients
import services

CONFIG = "[history]\nmaxAge = 1\nmaxEntries = 50\n"


class Soak:
    """The server and the kinds of builds."""

    def __init__(self, daemon: serve_clients.Daemon, base: str, folder: Path) -> None:
        self.daemon = daemon
        self.base = base
        self.folder = folder
        (folder / "secret").write_text("s3cr3t")
        for state in range(5):
            context = folder / f"c{state}"
            context.mkdir()
            (context / "file").write_text(f"{state}" * 10_000)
            (context / "Dockerfile").write_text(f"FROM {base}\nRUN true\nCOPY file /file\nRUN wc /file\n")
        (folder / "slow").mkdir()
        (folder / "slow/Dockerfile").write_text(f"FROM {base}\nRUN sleep 60\n")
        (folder / "bad").mkdir()
        (folder / "bad/Dockerfile").write_text(f"FROM {base}\nRUN echo no; exit 3\n")
        (folder / "step").mkdir()
        (folder / "step/Dockerfile").write_text(f"FROM {base}\nRUN cat /proc/uptime > /x\n")
        (folder / "hidden").mkdir()
        (folder / "hidden/Dockerfile").write_text(
            f"FROM {base}\nRUN --mount=type=secret,id=t cat /run/secrets/t\n"
        )

    def build(self, number: int) -> None:
        """Run one build of the kind that its number says."""
        kind = number % 20
        if kind == 3:
            self.killed()
        elif kind == 7:
            self.run("bad", check=False)
        elif kind in (11, 17):
            self.run("step", "--no-cache")
        elif kind == 13:
            self.run("hidden", "--no-cache", "--secret", f"id=t,src={self.folder / 'secret'}")
        elif kind == 15:
            with tempfile.TemporaryDirectory(dir=self.folder) as out:
                self.run("c0", "-o", out)
        else:
            self.run(f"c{number % 5}", "--platform", serve_clients.TWO if number % 2 else "linux/amd64")

    def run(self, context: str, *args: str, check: bool = True) -> None:
        command = [str(self.daemon.buildx), "build", "--progress", "quiet", *args, str(self.folder / context)]
        done = subprocess.run(command, env=self.daemon.env, capture_output=True, text=True, check=False)
        if check and done.returncode:
            sys.exit(f"{command}: {done.stderr[-2000:]}")

    def killed(self) -> None:
        """Have a client die in the middle of a step."""
        flags = ["--progress", "quiet", "--no-cache"]
        command = [str(self.daemon.buildx), "build", *flags, str(self.folder / "slow")]
        with subprocess.Popen(command, env=self.daemon.env, stderr=subprocess.DEVNULL) as client:
            time.sleep(0.7)
            client.send_signal(signal.SIGKILL)

    def sample(self) -> dict[str, float]:
        """Look at the server."""
        pids = serve_clients.tree(self.daemon.process.pid)
        fds = threads = mounts = 0
        for pid in pids:
            with contextlib.suppress(OSError):
                fds += len(os.listdir(f"/proc/{pid}/fd"))
                threads += len(os.listdir(f"/proc/{pid}/task"))
                mounts = max(mounts, len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines()))
        root = self.daemon.folder / "root"
        usage = subprocess.run(["du", "-s", "-B1", root], capture_output=True, text=True, check=False)
        return {
            "PSS MB": self.daemon.resident_mb(),
            "processes": len(pids),
            "fds": fds,
            "threads": threads,
            "mounts": mounts,
            "files in TMPDIR": sum(len(files) for _, _, files in os.walk(self.daemon.folder / "tmp")),
            "files in the store": sum(len(files) for _, _, files in os.walk(root)),
            "store MB": int((usage.stdout or "0").split()[0]) / 1e6,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--builds", type=int, default=1000)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--parallel", type=int, default=2)
    options = parser.parse_args()
    buildx = services.engine_folder("26.1") / "usr/libexec/docker/cli-plugins/docker-buildx"
    with contextlib.ExitStack() as stack:
        place = tempfile.TemporaryDirectory(prefix="crossdock-soak-", dir="/var/tmp")
        folder = Path(stack.enter_context(place))
        registry = stack.enter_context(services.Registry())
        baseimage.push(baseimage.busybox_image(), registry.host, "base/busybox", "1")
        (folder / "buildkitd.toml").write_text(CONFIG)
        program = str(Path(sys.executable).with_name("crossdock"))
        os.environ["TMPDIR"] = str(folder / "soak/tmp")
        command = [program, "serve", "--config", str(folder / "buildkitd.toml")]
        daemon = serve_clients.Daemon("soak", command, folder, buildx)
        (folder / "soak/tmp").mkdir(exist_ok=True)
        stack.callback(daemon.stop)
        soak = Soak(daemon, f"{registry.host}/base/busybox:1", folder)
        started = time.monotonic()
        lock = threading.Lock()
        for at in range(0, options.builds + 1, options.every):
            found = soak.sample()
            if not at:
                print("| builds | seconds | " + " | ".join(found) + " |")
                print("|--|--|" + "--|" * len(found))
            cells = " | ".join(f"{value:.0f}" for value in found.values())
            with lock:
                print(f"| {at} | {time.monotonic() - started:.0f} | {cells} |", flush=True)
            if at < options.builds:
                with ThreadPoolExecutor(options.parallel) as pool:
                    list(pool.map(soak.build, range(at, at + options.every)))
                time.sleep(3)  # what follows a build: killed steps end, records are finished


if __name__ == "__main__":
    main()
