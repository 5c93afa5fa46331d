"""Run the whole suite: as an ordinary user and as root when started by root, else as whoever started it.

    python scripts/runtests.py [pytest arguments]

The ordinary user is made for the run, with subordinate id ranges, on a copy of the tree, and removed afterwards. A
process of that user which outlives the suite is ended and fails the run. ``REQUIRE=all`` (CI) makes a case fail that
would be skipped for want of something; ``JOBS`` sets the number of workers.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import objectstores
import privateapt
import services
import sshserver

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

TOP = Path(__file__).resolve().parent.parent
ENVIRONMENT = ("REQUIRE", "CI", "JOBS", "CROSSDOCK_DEBIAN_MIRROR", "CROSSDOCK_DEV_UNPACKED")


def main() -> int:
    """Command line."""
    signal.signal(signal.SIGTERM, _terminated)
    arguments = sys.argv[1:]
    fetch()
    if os.geteuid() != 0:
        return pytest(TOP, [], arguments)
    started = time.monotonic()
    with scratch_user() as name, tree_copy(name) as tree:
        print(f"== as the ordinary user {name}", flush=True)
        as_user = run_as(name, tree, arguments)
        leftovers = end_processes(name)
    print(f"== as root (after {time.monotonic() - started:.0f} s)", flush=True)
    as_root = pytest(TOP, [], arguments)
    if leftovers:
        print("left running by the ordinary user's suite:\n  " + "\n  ".join(leftovers), file=sys.stderr)
    if as_user:
        print(f"the ordinary user's run failed (exit {as_user}); see above", file=sys.stderr)
    return as_user or as_root or bool(leftovers)


def _terminated(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def fetch() -> None:
    """Fetch what is unpacked rather than installed, so that the ordinary user's run finds it and both are quick."""
    import baseimage

    try:
        services.registry_binary()
        for version in services.ENGINES:
            services.engine_folder(version)
        sshserver.server_folder()
        baseimage.busybox_packages([arch for arch, _ in baseimage.PLATFORMS.values()])
    except privateapt.AptError as error:
        # the cases that need it skip with this reason, or fail where all is required
        print(f"not available: {error}", file=sys.stderr)
    try:
        objectstores.azurite()
    except objectstores.MissingError as error:
        print(f"not available: {error}", file=sys.stderr)


def pytest(tree: Path, prefix: Sequence[str], arguments: Sequence[str]) -> int:
    """Run pytest in ``tree`` with its own environment; returns the exit code."""
    jobs = os.environ.get("JOBS") or str(min(len(os.sched_getaffinity(0)), 4))
    command = [
        *prefix,
        str(tree / ".venv/bin/python"),
        *("-m", "pytest", "-q", "-n", jobs, "--dist", "loadgroup", "--durations", "10"),
        *arguments,
    ]
    return subprocess.run(command, cwd=tree, check=False, stdin=subprocess.DEVNULL).returncode


def run_as(name: str, tree: Path, arguments: Sequence[str]) -> int:
    """Run pytest as ``name`` with a login's environment."""
    entry = pwd.getpwnam(name)
    keep = [f"{key}={os.environ[key]}" for key in ENVIRONMENT if key in os.environ]
    prefix = [
        *("setpriv", "--reuid", str(entry.pw_uid), "--regid", str(entry.pw_gid), "--init-groups"),
        *("env", "-i", f"HOME={entry.pw_dir}", f"USER={name}", f"LOGNAME={name}", "LANG=C.UTF-8"),
        "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        f"CROSSDOCK_DEV_CACHE={privateapt.cache_dir()}",
        f"TMPDIR={_temporary(entry)}",
        *keep,
    ]
    return pytest(tree, prefix, arguments)


def _temporary(entry: pwd.struct_passwd) -> Path:
    """A temporary folder that goes with the user's home."""
    folder = Path(entry.pw_dir) / "t"
    folder.mkdir(exist_ok=True)
    os.chown(folder, entry.pw_uid, entry.pw_gid)
    return folder


@contextlib.contextmanager
def scratch_user() -> Iterator[str]:
    """A new ordinary user with a home in /var/tmp and subordinate ids; removed at the end."""
    name = f"cdtest{os.getpid()}"
    home = Path(tempfile.mkdtemp(prefix="cd", dir="/var/tmp"))  # short: sockets are below it
    home.rmdir()  # useradd makes it, with the right owner
    _run(["useradd", "--create-home", "--home-dir", str(home), "--user-group", "--shell", "/bin/sh", name])
    uid = pwd.getpwnam(name).pw_uid
    try:
        _ensure_subids(name)
        yield name
    finally:
        end_processes(name)
        # the mount point of builds, which outlives them on purpose: the next user of this id must not find it
        shutil.rmtree(f"/tmp/crossdock-{uid}", ignore_errors=True)
        subprocess.run(["userdel", "--force", "--remove", name], check=False, capture_output=True)
        shutil.rmtree(home, ignore_errors=True)


def _ensure_subids(name: str) -> None:
    """Useradd gives ranges where login.defs asks for them; elsewhere take one above all others."""
    for table, option in (("/etc/subuid", "--add-subuids"), ("/etc/subgid", "--add-subgids")):
        lines = Path(table).read_text().splitlines() if Path(table).exists() else []
        if any(line.startswith(f"{name}:") for line in lines):
            continue
        ends = [int(line.split(":")[1]) + int(line.split(":")[2]) for line in lines if line.count(":") == 2]
        start = max([100000, *ends])
        _run(["usermod", option, f"{start}-{start + 65535}", name])


@contextlib.contextmanager
def tree_copy(name: str) -> Iterator[Path]:
    """A copy of the work tree and its virtual environment that ``name`` owns."""
    entry = pwd.getpwnam(name)
    tree = Path(entry.pw_dir) / "tree"
    listing = _run(["git", "-C", str(TOP), "ls-files", "-z", "--cached", "--others", "--exclude-standard"])
    for relative in filter(None, listing.split("\0")):
        source = TOP / relative
        if source.is_file() or source.is_symlink():
            (tree / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, tree / relative, follow_symlinks=False)
    copy_venv(TOP / ".venv", tree / ".venv")
    _run(["chown", "-R", "--no-dereference", f"{entry.pw_uid}:{entry.pw_gid}", str(tree)])
    yield tree


def copy_venv(source: Path, dest: Path) -> None:
    """Copy a virtual environment so that it works at ``dest``, the project installed editable from beside it."""
    shutil.copytree(source, dest, symlinks=True)
    old, new = str(source.parent).encode(), str(dest.parent).encode()
    scripts = [path for path in (dest / "bin").iterdir() if path.is_file() and not path.is_symlink()]
    for path in [*scripts, *dest.glob("lib/python*/site-packages/*.pth"), dest / "pyvenv.cfg"]:
        data = path.read_bytes()
        if old in data and b"\0" not in data[:1024]:
            path.write_bytes(data.replace(old, new))


def end_processes(name: str) -> list[str]:
    """End every process of the user ``name`` or of its subordinate ids; returns what they were."""
    uid = pwd.getpwnam(name).pw_uid
    ranges = [(uid, 1)]
    for line in Path("/etc/subuid").read_text().splitlines():
        owner, _, numbers = line.partition(":")
        if owner == name:
            start, _, count = numbers.partition(":")
            ranges.append((int(start), int(count)))
    ended = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            owner_id = process.stat().st_uid
            command = (process / "cmdline").read_text().replace("\0", " ").strip()
            if ") Z " in (process / "stat").read_text():
                continue
        except OSError:
            continue  # it ended by itself
        if any(start <= owner_id < start + count for start, count in ranges):
            ended.append(f"{process.name}: {command}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process.name), signal.SIGKILL)
    return ended


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(f"failed: {' '.join(command)}\n{done.stderr}", file=sys.stderr)
        raise SystemExit(1)
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
