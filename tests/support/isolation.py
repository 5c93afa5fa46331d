"""Keep the suite apart from the machine, and each case clean.

Before collection: a home, a temporary folder and an environment of the suite's own. After each case: no new
descriptors, threads, children, mounts, and no files outside the case's own folder.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import privateapt

if TYPE_CHECKING:
    from collections.abc import Iterator

_PREFIXES = ("CROSSDOCK_", "DOCKER_", "BUILDX_", "BUILDKIT_", "XDG_", "BUILDKITD_")
_NAMES = (
    "SOURCE_DATE_EPOCH",
    "NO_COLOR",
    "FORCE_COLOR",
    "CLICOLOR",
    "COLUMNS",
    "LINES",
    "TERM",
    "TZ",
    "GITHUB_ACTIONS",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
)
_KEEP = ("CROSSDOCK_DEV_CACHE", "CROSSDOCK_DEV_UNPACKED", "CROSSDOCK_DEBIAN_MIRROR")
#: what a case may need to wind down (a thread that was told to end, a child being reaped)
GRACE_S = 2.0

_scratch = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    """Give this process (and so its children) a home and an environment of its own."""
    os.environ["CROSSDOCK_DEV_CACHE"] = str(privateapt.cache_dir())
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    for name in list(os.environ):
        if name not in _KEEP and (name in _NAMES or name.startswith(_PREFIXES)):
            del os.environ[name]
    scratch = Path(tempfile.mkdtemp(prefix="crossdock-tests-", dir=os.environ["PYTEST_DEBUG_TEMPROOT"]))
    config.stash[_scratch] = scratch
    for name, folder in (("HOME", "home"), ("TMPDIR", "tmp")):
        (scratch / folder).mkdir()
        os.environ[name] = str(scratch / folder)
    tempfile.tempdir = None
    os.environ["CROSSDOCK_ROOT"] = str(scratch / "home/store-of-no-case")
    os.environ["LC_ALL"] = "C.UTF-8"
    _keep_examples_out_of_the_tree(scratch)
    os.environ["PATH"] = ":".join([*_path(), *(p for p in ("/usr/sbin", "/sbin") if p not in _path())])


def _keep_examples_out_of_the_tree(scratch: Path) -> None:
    """Hypothesis keeps what it found below the working directory, which an ordinary user may not write."""
    from hypothesis import configuration, settings

    configuration.set_hypothesis_home_dir(scratch / "hypothesis")
    settings.register_profile("crossdock", database=None)
    settings.load_profile("crossdock")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the home."""
    if scratch := config.stash.get(_scratch, None):
        shutil.rmtree(scratch, ignore_errors=True)


def _path() -> list[str]:
    return os.environ.get("PATH", "/usr/bin:/bin").split(":")


class Footprint:
    """What this process holds right now."""

    def __init__(self) -> None:
        self.fds = _open_files()
        self.threads = set(threading.enumerate())
        self.children = _children()
        self.mounts = _mounts()
        self.files = _outside_files()
        self.cwd = Path.cwd()

    def left_since(self, before: Footprint) -> list[str]:
        """One line for each thing that is here and was not before."""
        lines = [
            f"file descriptor {fd} -> {name}" for fd, name in self.fds.items() if before.fds.get(fd) != name
        ]
        lines += [f"thread {thread.name}" for thread in self.threads - before.threads if thread.is_alive()]
        lines += [
            f"child process {pid}: {name}"
            for pid, name in self.children.items()
            if pid not in before.children
        ]
        lines += [f"mount {point}" for point in sorted(self.mounts - before.mounts)]
        lines += [f"file {path}" for path in sorted(self.files - before.files)]
        if self.cwd != before.cwd:
            lines.append(f"working directory {self.cwd}")
        return lines


def _open_files() -> dict[str, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue  # the descriptor of this listing
        # grpcio keeps its pollers for the life of the process
        if target.startswith("anon_inode:[event") and "grpc" in sys.modules:
            continue
        if not target.startswith("/proc/"):
            found[fd] = target
    return found


def _children() -> dict[int, str]:
    found = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            pids = (task / "children").read_text().split()
        except OSError:
            continue  # the thread has ended
        for pid in pids:
            try:
                found[int(pid)] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
    return found


def _mounts() -> set[str]:
    """Mounts below the folders of this suite: what others mount elsewhere meanwhile is none of its doing."""
    points = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    folders = _own_folders()
    return {point for point in points if point.startswith(folders)}


def _own_folders() -> tuple[str, ...]:
    """The scratch folder, pytest's folders of cases, and the run directory of workers."""
    base = os.path.realpath(os.environ["PYTEST_DEBUG_TEMPROOT"])
    scratch = os.path.realpath(Path(os.environ["TMPDIR"]).parent)
    return (f"{scratch}/", f"{base}/pytest-of-", "/run/crossdock")


def _outside_files() -> set[str]:
    folders = (os.environ["HOME"], os.environ["TMPDIR"])
    return {f"{folder}/{name}" for folder in folders if os.path.isdir(folder) for name in os.listdir(folder)}


@pytest.fixture(autouse=True)
def _leaves_nothing() -> Iterator[None]:
    """Fail a case that leaves something behind; session-wide services are there before it looks."""
    before = Footprint()
    yield
    deadline = time.monotonic() + GRACE_S
    while left := Footprint().left_since(before):
        if time.monotonic() > deadline:
            pytest.fail("left behind:\n  " + "\n  ".join(left), pytrace=False)
        time.sleep(0.01)
