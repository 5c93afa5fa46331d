"""Limits of a step through control groups, version 1, 2 or both at once, where the worker may make any.

The runtime does not manage them (it refuses mixed hierarchies); the step's processes start inside a group made here.
A worker that may not make groups says why, and steps then run without limits.

Spec: kernel ``admin-guide/cgroup-v2.rst``, ``admin-guide/cgroup-v1``.
"""

from __future__ import annotations

import errno
import os
import shlex
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from crossdock.llb.ops import LinuxResources

__all__ = ["Group", "Limits", "Unavailable", "find_limits", "hierarchy_of", "limit_files", "refusal"]

_OURS = "crossdock"
_CONTROLLERS = ("cpu", "cpuset", "memory")
#: enters the groups given before "--" and becomes the command after it
_ENTER = 'while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs" || exit 125; shift; done; shift; exec "$@"'
_SHARES_MIN, _SHARES_MAX = 2, 262144
_WEIGHT_MAX = 10000
_STALE_NS = 60 * 10**9


class Unavailable(NamedTuple):
    """No groups can be made; ``reason`` says why."""

    reason: str


class Group:
    """The group (on version 1: one per controller) of one step."""

    def __init__(
        self, directories: tuple[Path, ...], *, unified: bool, missing: tuple[str, ...] = ()
    ) -> None:
        self._directories = directories
        self._unified = unified
        #: files of limits that this group does not have: their controllers are not there
        self.missing = missing

    def command(self, argv: list[str]) -> list[str]:
        """Return ``argv`` so that it starts inside the group."""
        return ["/bin/sh", "-c", _ENTER, "sh", *map(str, self._directories), "--", *argv]

    def oom_kills(self) -> int:
        """Count processes that were killed for memory."""
        name = "memory.events" if self._unified else "memory.oom_control"
        for directory in self._directories:
            with suppress(OSError):
                for line in (directory / name).read_text(encoding="ascii").splitlines():
                    key, _, value = line.partition(" ")
                    if key == "oom_kill":
                        return int(value)
        return 0


class Limits:
    """Makes groups below ``parents``: one directory on version 2, one per controller on version 1."""

    def __init__(self, parents: Mapping[str, Path], *, unified: bool) -> None:
        self._parents = dict(parents)
        self._unified = unified

    @contextmanager
    def group(self, name: str, limits: LinuxResources) -> Iterator[Group]:
        """Hold a group with ``limits`` for the length of a step. Raises: OSError."""
        made: list[Path] = []
        files = limit_files(limits, unified=self._unified)
        missing = [] if self._unified else [n for n in files if n.partition(".")[0] not in self._parents]
        # The worker's PID says nothing: it is the same in every PID namespace.
        token = os.urandom(6).hex()
        try:
            for controller, parent in self._parents.items():
                wanted = (
                    files
                    if self._unified
                    else {n: v for n, v in files.items() if n.startswith(f"{controller}.")}
                )
                directory = parent / f"{name}-{token}"
                directory.mkdir()
                made.append(directory)
                if controller == "cpuset":
                    _inherit_cpuset(directory)
                missing += [file for file, value in wanted.items() if not _set(directory / file, value)]
            if self._unified:
                _check_entry(made[0])
            yield Group(tuple(made), unified=self._unified, missing=tuple(missing))
        finally:
            for directory in made:
                with suppress(OSError):
                    directory.rmdir()


def _set(path: Path, value: str) -> bool:
    """Write a limit; False when the group has no such file. Raises: OSError."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        os.write(fd, value.encode("ascii"))
    finally:
        os.close(fd)
    return True


def _check_entry(directory: Path) -> None:
    """Try to enter a group of version 2: the group above both it and us must be ours too. Raises: OSError."""
    import subprocess

    script = 'echo $$ > "$1/cgroup.procs"'
    done = subprocess.run(
        ["/bin/sh", "-c", script, "sh", str(directory)], stderr=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        code = errno.EACCES
        raise OSError(code, os.strerror(code), str(directory / "cgroup.procs"))


def hierarchy_of(layout: str, run_dir: Path) -> Path:
    """Return where a worker sees the host's control groups: version 1 was moved out of the runtime's sight."""
    return run_dir / "cgroup" if layout in ("hybrid", "v1") else Path("/sys/fs/cgroup")


def refusal(exc: OSError, hierarchy: Path) -> str:
    """Return which file refused what, by the name that users know it by."""
    where = str(exc.filename or hierarchy)
    shown = where.replace(str(hierarchy), "/sys/fs/cgroup", 1) if where.startswith(str(hierarchy)) else where
    return f"{shlex.quote(shown)}: {exc.strerror}"


def limit_files(limits: LinuxResources, *, unified: bool) -> dict[str, str]:
    """Return what to write where for ``limits``."""
    return _v2_files(limits) if unified else _v1_files(limits)


def _v1_files(limits: LinuxResources) -> dict[str, str]:
    files: dict[str, str] = {}
    if limits.memory:
        files["memory.limit_in_bytes"] = str(limits.memory)
    if limits.memory_swap:
        files["memory.memsw.limit_in_bytes"] = str(limits.memory_swap)
    if limits.cpu_shares:
        files["cpu.shares"] = str(limits.cpu_shares)
    if limits.cpu_period:
        files["cpu.cfs_period_us"] = str(limits.cpu_period)
    if limits.cpu_quota:
        files["cpu.cfs_quota_us"] = str(limits.cpu_quota)
    if limits.cpuset_cpus:
        files["cpuset.cpus"] = limits.cpuset_cpus
    if limits.cpuset_mems:
        files["cpuset.mems"] = limits.cpuset_mems
    return files


def _v2_files(limits: LinuxResources) -> dict[str, str]:
    files: dict[str, str] = {}
    if limits.memory:
        files["memory.max"] = str(limits.memory)
    if limits.memory_swap:
        # The request counts memory and swap together, version 2 counts swap alone.
        swap = limits.memory_swap - limits.memory
        files["memory.swap.max"] = "max" if limits.memory_swap < 0 else str(max(swap, 0))
    if limits.cpu_shares:
        shares = min(max(limits.cpu_shares, _SHARES_MIN), _SHARES_MAX)
        weight = 1 + (shares - _SHARES_MIN) * (_WEIGHT_MAX - 1) // (_SHARES_MAX - _SHARES_MIN)
        files["cpu.weight"] = str(weight)
    if limits.cpu_quota or limits.cpu_period:
        quota = str(limits.cpu_quota) if limits.cpu_quota > 0 else "max"
        files["cpu.max"] = f"{quota} {limits.cpu_period or 100000}"
    if limits.cpuset_cpus:
        files["cpuset.cpus"] = limits.cpuset_cpus
    if limits.cpuset_mems:
        files["cpuset.mems"] = limits.cpuset_mems
    return files


def _inherit_cpuset(directory: Path) -> None:
    """A version 1 cpuset starts empty and takes no process until both lists are set."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        # What was delegated has its own, which is not ours to change.
        if not (directory / name).read_text(encoding="ascii").strip():
            _set(directory / name, (directory.parent / name).read_text(encoding="ascii"))


def find_limits(layout: str, hierarchy: Path, *, parent: str = "") -> Limits | Unavailable:
    """Prepare for making groups; ``hierarchy`` is where the host's control groups can be seen.

    ``parent`` is the group asked for with ``--cgroup-parent``: below the root of all, or of what was delegated to the user.
    """
    if layout == "none":
        return Unavailable("no control groups are mounted")
    try:
        if layout == "v2":
            return _unified(hierarchy, parent)
        return _per_controller(hierarchy, parent)
    except OSError as exc:
        reason = f"this user may not make control groups ({refusal(exc, hierarchy)})"
        if layout == "v2" and os.path.isdir("/run/systemd/system"):
            reason += "; start the build with `systemd-run --user --scope crossdock …`"
        return Unavailable(reason)


def _per_controller(hierarchy: Path, parent: str) -> Limits:
    parents: dict[str, Path] = {}
    for controller in _CONTROLLERS:
        top = hierarchy / controller
        if not top.is_dir():
            continue
        directory = top
        for part in (*filter(None, parent.split("/")), _OURS):
            directory = directory / part
            directory.mkdir(exist_ok=True)
            if controller == "cpuset":
                _inherit_cpuset(directory)
        _sweep(directory)
        parents[controller] = directory
    if "memory" not in parents:
        code = 2
        raise OSError(code, os.strerror(code), str(hierarchy / "memory"))
    return Limits(parents, unified=False)


def _unified(hierarchy: Path, parent: str) -> Limits:
    base = _delegated(hierarchy)
    directory = base
    for part in (*filter(None, parent.split("/")), _OURS):
        _enable(directory)
        directory = directory / part
        directory.mkdir(exist_ok=True)
    _enable(directory)
    _sweep(directory)
    return Limits({"": directory}, unified=True)


def _delegated(hierarchy: Path) -> Path:
    """Return the highest group that this process may fill: the root for root, else what was delegated to the user."""
    own = ""
    for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
        if line.startswith("0::"):
            own = line[3:].strip("/")
    candidates = [hierarchy]
    for part in filter(None, own.split("/")):
        candidates.append(candidates[-1] / part)
    for candidate in candidates:
        inside = candidate != hierarchy and (candidate / "cgroup.procs").read_text(encoding="ascii").strip()
        if os.access(candidate / "cgroup.subtree_control", os.W_OK) and not inside:
            return candidate
    code = 13
    raise OSError(code, os.strerror(code), str(candidates[-1]))


def _enable(directory: Path) -> None:
    available = (directory / "cgroup.controllers").read_text(encoding="ascii").split()
    wanted = " ".join(f"+{name}" for name in _CONTROLLERS if name in available)
    if wanted:
        (directory / "cgroup.subtree_control").write_text(wanted, encoding="ascii")


def _sweep(directory: Path) -> None:
    """Remove groups that killed workers left: those in use refuse, and one just made is left alone."""
    for entry in directory.iterdir():
        with suppress(OSError):
            if entry.is_dir() and time.time_ns() - entry.stat().st_ctime_ns > _STALE_NS:
                entry.rmdir()
