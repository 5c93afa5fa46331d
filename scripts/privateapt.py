"""Debian packages fetched and unpacked beside the host's own package system.

For foreign-architecture packages (busybox-static for the base images) and for programs whose packages would start a
service when installed (docker-registry, docker.io). Nothing of the host's configuration, lists or status is read
or written, except the host's mirror and its Acquire settings (proxies). Signatures are checked by apt against
Debian's archive keyring.

Not for: installing packages. That is ``bootstrap.py``.
Only the standard library: this runs before the virtual environment exists.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
DEFAULT_MIRROR = "http://deb.debian.org/debian"
LISTS_MAX_AGE_S = 7 * 24 * 3600


class AptError(Exception):
    """apt or dpkg could not do what was asked; the text says what to do."""


def cache_dir() -> Path:
    """Where downloads are kept: ``$CROSSDOCK_DEV_CACHE``, else /var/cache for root, else the user's cache."""
    if chosen := os.environ.get("CROSSDOCK_DEV_CACHE"):
        return Path(chosen)
    if os.geteuid() == 0:
        return Path("/var/cache/crossdock-dev")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crossdock-dev"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` (created when absent); freed by the kernel when the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def debian_mirror() -> str:
    """The mirror to use: ``$CROSSDOCK_DEBIAN_MIRROR``, the host's own if it is Debian, else deb.debian.org."""
    if chosen := os.environ.get("CROSSDOCK_DEBIAN_MIRROR"):
        return chosen.rstrip("/")
    sources = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    for source in sources:
        if source.suffix not in {".list", ".sources"} or not source.is_file():
            continue
        text = "\n".join(
            line for line in source.read_text().splitlines() if not line.lstrip().startswith("#")
        )
        if found := re.search(r"\bhttps?://\S+/debian/?(?=\s)", text + "\n"):
            return found.group().rstrip("/")
    return DEFAULT_MIRROR


class PrivateApt:
    """One suite of Debian for some architectures, with state, cache and configuration in ``directory``."""

    def __init__(self, directory: Path, *, suite: str, architectures: Sequence[str]) -> None:
        self._directory = directory
        self._suite = suite
        self._architectures = tuple(architectures)

    def download(self, packages: Sequence[str], dest: Path) -> list[Path]:
        """Download ``packages`` (``name`` or ``name:arch``) into ``dest``; returns the files in the same order.

        Raises: AptError when apt is missing, the mirror is unreachable, a signature is bad or a package unknown.
        """
        config = self._prepare()
        dest.mkdir(parents=True, exist_ok=True)
        files = []
        with tempfile.TemporaryDirectory(dir=dest, prefix=".download-") as scratch:
            for package in packages:
                self._apt(config, ["download", package], cwd=Path(scratch))
                (deb,) = Path(scratch).glob("*.deb")
                files.append(deb.rename(dest / deb.name))
        return files

    def _prepare(self) -> Path:
        """Write the configuration and refresh the package lists when they are old; returns the apt.conf."""
        if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
            msg = "apt-get and dpkg-deb are needed to fetch Debian packages (on Debian and Ubuntu they are there)"
            raise AptError(msg)
        if not KEYRING.exists():
            msg = f"{KEYRING} is missing: install debian-archive-keyring"
            raise AptError(msg)
        base = self._directory.resolve()
        for folder in ("state/lists/partial", "cache/archives/partial", "etc/parts", "etc/preferences.d"):
            (base / folder).mkdir(parents=True, exist_ok=True)
        (base / "state/status").touch()
        source = f"deb [signed-by={KEYRING}] {debian_mirror()} {self._suite} main\n"
        config = self._config(base)
        stamp = base / "updated"
        wanted = source + config
        fresh = stamp.exists() and stamp.read_text() == wanted
        if fresh and time.time() - stamp.stat().st_mtime < LISTS_MAX_AGE_S:  # noqa: TID251 - against an mtime
            return base / "etc/apt.conf"
        (base / "etc/sources.list").write_text(source)
        (base / "etc/apt.conf").write_text(config)
        self._apt(base / "etc/apt.conf", ["update"], cwd=base)
        stamp.write_text(wanted)
        return base / "etc/apt.conf"

    def _config(self, base: Path) -> str:
        dump = [
            "apt-config",
            "dump",
            "--no-empty",
            "Acquire::http",
            "Acquire::https",
            "Acquire::Check-Valid-Until",
        ]
        acquire = subprocess.run(dump, capture_output=True, text=True, check=False).stdout
        architectures = " ".join(f'"{name}";' for name in self._architectures)
        return (
            f"{acquire}"
            f'APT::Architecture "{self._architectures[0]}";\n'
            f"APT::Architectures {{ {architectures} }};\n"
            f'Dir::State "{base}/state"; Dir::State::status "{base}/state/status";\n'
            f'Dir::Cache "{base}/cache";\n'
            f'Dir::Etc::sourcelist "{base}/etc/sources.list"; Dir::Etc::sourceparts "/dev/null";\n'
            f'Dir::Etc::parts "{base}/etc/parts"; Dir::Etc::main "/dev/null";\n'
            f'Dir::Etc::preferences "/dev/null"; Dir::Etc::preferencesparts "{base}/etc/preferences.d";\n'
            'Acquire::Languages "none"; Acquire::Retries "3";\n'
            'APT::Sandbox::User "";\n'
            'APT::Get::List-Cleanup "false";\n'
        )

    def _apt(self, config: Path, arguments: Sequence[str], *, cwd: Path) -> None:
        env = {**os.environ, "APT_CONFIG": str(config), "LC_ALL": "C"}
        done = subprocess.run(
            ["apt-get", "-qq", *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            msg = f"apt-get {' '.join(arguments)} ({self._suite} of {debian_mirror()}) failed:\n{done.stderr.strip()}"
            raise AptError(msg)


def unpack(deb: Path, dest: Path) -> None:
    """Unpack the files of a package into ``dest``; its maintainer scripts are not run."""
    dest.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["dpkg-deb", "-x", str(deb), str(dest)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        msg = f"dpkg-deb -x {deb} failed: {done.stderr.strip()}"
        raise AptError(msg)


def host_architecture() -> str:
    """Debian's name of this machine's architecture (amd64, arm64, …)."""
    done = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        msg = "dpkg is needed to know Debian's name of this architecture"
        raise AptError(msg)
    return done.stdout.strip()


def fetch_unpacked(
    name: str, *, suite: str, packages: Sequence[str], architecture: str | None = None
) -> Path:
    """Unpack ``packages`` of ``suite`` once into the cache folder ``name`` and return that folder.

    Safe with several processes at once: one fetches, the others wait. Nothing is visible before it is whole.
    Raises: AptError.
    """
    root = cache_dir()
    dest = root / "unpacked" / name
    marker = f"{suite} {' '.join(packages)}\n"
    if _is_whole(dest, marker):
        return dest
    with locked(root / "locks" / f"{name}.lock"):
        if _is_whole(dest, marker):
            return dest
        machine = architecture or host_architecture()
        apt = PrivateApt(root / "apt" / f"{suite}-{machine}", suite=suite, architectures=[machine])
        with locked(root / "locks" / f"apt-{suite}-{machine}.lock"):
            debs = apt.download(packages, root / "debs" / f"{suite}-{machine}")
        partial = dest.with_name(f".{name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        for deb in debs:
            unpack(deb, partial)
        (partial / ".complete").write_text(marker)
        shutil.rmtree(dest, ignore_errors=True)
        partial.rename(dest)
    return dest


def _is_whole(dest: Path, marker: str) -> bool:
    complete = dest / ".complete"
    return complete.exists() and complete.read_text() == marker
