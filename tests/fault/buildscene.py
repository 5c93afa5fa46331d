"""A build that can be killed at any moment and judged afterwards: what the fault tests of ``crossdock build`` share.

The seed is a file that steps mount and do not keep: with every new seed everything is done again, and the image is
the same, digest and all.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from crossdock.engine.sandbox.supervise import descendants

if TYPE_CHECKING:
    import random
    import subprocess

    from support.cli import Crossdock, Ran

DOCKERFILE = """
FROM {base} AS work
RUN --mount=type=bind,source=seed,target=/seed cat /seed > /dev/null && mkdir /w && \\
    for i in $(seq 150); do echo $i > /w/$i; done
COPY tree /tree
RUN dd if=/dev/zero of=/big bs=1M count=6 && echo end >> /big
FROM {base}
RUN --mount=type=bind,source=seed,target=/seed cat /seed > /dev/null && mkdir /a && echo one > /a/one
COPY --from=work /big /w /out/
COPY tree /tree
RUN rm /tree/file3 && ln -s one /a/two && chown 0:0 /tree && echo last > /last
"""
#: what remains may still be ending; a Ctrl-C must be over by then too
GONE_S = 1.0
EPOCH = "1700000000"


class Scene:
    """A context, a store, a repository to push to; ``expected`` is the digest the image must have."""

    def __init__(self, crossdock: Crossdock, base: str, repository: str) -> None:
        self.crossdock = crossdock
        self.repository = repository
        self.folder = crossdock.folder / "context"
        (self.folder / "tree/deep").mkdir(parents=True)
        (self.folder / "Dockerfile").write_text(DOCKERFILE.format(base=base))
        (self.folder / ".dockerignore").write_text("Dockerfile\n")
        for number in range(30):
            (self.folder / f"tree/file{number}").write_text(f"{number}\n" * 500)
        (self.folder / "tree/deep/link").symlink_to("../file1")
        self.environment = {"SOURCE_DATE_EPOCH": EPOCH}
        self.expected = ""

    def seed(self, text: str) -> None:
        """Make everything new work."""
        (self.folder / "seed").write_text(text)

    def arguments(self, *outputs: str, folder: Path | None = None) -> list[str]:
        """Arguments of a build."""
        wanted = outputs or ("--push",)
        return [
            "build", str(folder or self.folder), "--progress=plain", "--provenance=false",
            "-t", f"{self.repository}:v", "--metadata-file", str(self.crossdock.folder / "meta.json"), *wanted,
        ]  # fmt: skip

    def build(self, *outputs: str) -> Ran:
        """Build to the end."""
        return self.crossdock(*self.arguments(*outputs), env=self.environment)

    def start(self, *outputs: str, folder: Path | None = None) -> subprocess.Popen[str]:
        """Start a build, of this context or another."""
        return self.crossdock.start(*self.arguments(*outputs, folder=folder), env=self.environment)

    def digest(self) -> str:
        """The digest that the last build gave."""
        data = json.loads((self.crossdock.folder / "meta.json").read_text())
        return str(data["containerimage.digest"])

    def judge_store(self) -> None:
        """Fail when the store has anything that a check complains about."""
        self.crossdock("store", "check").ok()

    def judge_build(self, finished: set[str]) -> None:
        """Build again: the result must be right, whole in the registry, and made of what was ``finished`` before."""
        done = self.build("--push").ok()
        assert self.digest() == self.expected
        lost = finished - cached_steps(done.err)
        assert not lost, f"done before, done again: {sorted(lost)}\n{done.err}"
        self.judge_registry()

    def judge_registry(self) -> None:
        """Everything of the pushed image must be there."""
        host, _, name = self.repository.partition("/")
        connection = http.client.HTTPConnection(host, timeout=20)
        try:
            manifest = self._get(connection, "GET", f"/v2/{name}/manifests/v")
            data = json.loads(manifest)
            for blob in (data["config"], *data["layers"]):
                self._get(connection, "HEAD", f"/v2/{name}/blobs/{blob['digest']}")
        finally:
            connection.close()

    @staticmethod
    def _get(connection: http.client.HTTPConnection, method: str, path: str) -> bytes:
        accept = "application/vnd.oci.image.manifest.v1+json"
        connection.request(method, path, headers={"accept": accept})
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200, (method, path, answer.status, body)
        return body


def kill_some(child: subprocess.Popen[str], chance: random.Random) -> str:
    """``kill -9`` the supervisor, or one of the processes below it; says which."""
    below = descendants(child.pid)
    which = chance.choice(["supervisor", "init", "worker", "any"])
    victim = child.pid
    if which == "init" and below:
        victim = below[0]
    elif which == "worker" and len(below) > 1:
        victim = below[1]
    elif which == "any" and below:
        victim = chance.choice(below)
    with suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
    return which


def all_gone(pids: list[int]) -> list[int]:
    """Wait a second for processes to be gone; returns those that are not. Zombies of others count as gone."""
    deadline = time.monotonic() + GONE_S
    while left := [pid for pid in pids if _alive(pid)]:
        if time.monotonic() > deadline:
            return left
        time.sleep(0.01)
    return []


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


_STEP = re.compile(r"^#(\d+) (\[(?!internal).*|DONE .*|CACHED)$")


def _steps(log: str, *, ending: str) -> set[str]:
    names: dict[str, str] = {}
    found = set()
    for line in log.splitlines():
        if match := _STEP.match(line):
            number, text = match.groups()
            if text.startswith("["):
                names[number] = text
            elif text.startswith(ending) and number in names:
                found.add(names[number])
    return found


def finished_steps(log: str) -> set[str]:
    """Steps (RUN, COPY) that a plain log shows as done or cached; a last line that was cut does not count."""
    whole = log[: log.rfind("\n") + 1]
    steps = _steps(whole, ending="DONE") | _steps(whole, ending="CACHED")
    return {name for name in steps if " RUN " in name or " COPY " in name}


def cached_steps(log: str) -> set[str]:
    """Steps that a plain log shows as cached."""
    return _steps(log, ending="CACHED")
