"""The worker namespace: the process moves into its own user, mount and PID namespaces before a build.

Three processes come of it. The *supervisor* is the one the user started: it stays outside, maps ids, forwards
signals and ends as the worker ended. *Init* is PID 1 inside: it makes the private mounts, reaps orphans and ends the
whole PID namespace with itself. The *worker* returns to the caller. Each dies with its parent (``PDEATHSIG``), so
``kill -9`` of any one ends every step and frees every mount. Init is a process of its own so that reaping never takes
a child that ``subprocess`` waits for.

Where something is refused the next rung of a ladder is tried; :class:`WorkerInfo` says which were taken.
Not for: mounts and steps of a build (``mounts``, ``runtime``).

Spec: user_namespaces(7), pid_namespaces(7), mount_namespaces(7).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from crossdock.engine.sandbox.idmap import contains, read_id_map
from crossdock.engine.sandbox.launch import PID_NAMESPACE, Attempt, Refused, launch
from crossdock.errors import InternalError, SandboxError
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from crossdock.engine.sandbox.idmap import IdRange

__all__ = ["Rung", "WorkerInfo", "WorkerOptions", "become_worker", "current_worker"]


class WorkerOptions(NamedTuple):
    """What to try; the defaults try everything and fall back by themselves."""

    #: directory the private tmpfs is mounted over, made when absent; ``None`` chooses one
    run_dir: Path | None = None
    #: ``False`` goes without a user namespace (needs root)
    user_namespace: bool = True
    #: ``False`` maps one id even where ranges exist
    id_ranges: bool = True
    #: ``False`` shares the PID namespace and ``/proc`` of the host
    pid_namespace: bool = True


class Rung(NamedTuple):
    """One decision of the ladder, for ``inspect``: what, which way, and why not better (or ``""``)."""

    name: str
    state: str
    note: str = ""


class WorkerInfo(NamedTuple):
    """Where the worker found itself."""

    #: ``identity``, ``ranges``, ``single`` or ``none``
    ids: str
    uid_map: tuple[IdRange, ...]
    gid_map: tuple[IdRange, ...]
    #: whether the worker has its own PID namespace with a fresh ``/proc``
    pid_namespace: bool
    #: whether steps can have PID namespaces; with the host's ``/proc`` they then see processes but reach none
    step_pid_namespaces: bool
    #: ``v2``, ``v1``, ``hybrid`` or ``none``: how the host's control groups are mounted
    cgroups: str
    #: private tmpfs, gone with the worker
    run_dir: Path
    rungs: tuple[Rung, ...]

    def note_on(self, name: str) -> str:
        """Return why a rung is not a better one, or ``""``."""
        return next((rung.note for rung in self.rungs if rung.name == name), "")

    def has_id(self, uid: int, gid: int) -> bool:
        """Whether a user and group exist here."""
        return contains(self.uid_map, uid) and contains(self.gid_map, gid)


_current: WorkerInfo | None = None


def current_worker() -> WorkerInfo | None:
    """Return what :func:`become_worker` returned in this process, or ``None``."""
    return _current


def become_worker(options: WorkerOptions = WorkerOptions()) -> WorkerInfo:  # noqa: B008  (immutable)
    """Move this process into a worker namespace; returns only in the worker.

    The calling process becomes the supervisor: it never returns, never runs ``finally`` blocks or exit handlers, and
    ends with the worker's status. Call it before any thread, pool or gRPC channel exists.
    Raises: SandboxError when no rung of the ladder holds, naming the setting; the process is then unchanged.
    InternalError when a second thread exists or the process is a worker already.
    """
    global _current  # noqa: PLW0603  (one namespace per process, as the kernel has it)
    if _current is not None:
        summary = "become_worker was called twice"
        raise InternalError(summary)
    if len(os.listdir("/proc/self/task")) != 1:
        summary = "become_worker was called after a thread had been started"
        raise InternalError(summary)
    run_dir = _make_run_dir(options.run_dir)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    rungs: list[Rung] = []
    first: Refused | None = None
    for attempt in _attempts(options, rungs):
        try:
            inside = launch(attempt, run_dir)
        except Refused as refused:
            first = first or refused
            rungs.append(Rung(refused.what, "refused", os.strerror(refused.code)))
            continue
        maps = inside.maps
        _current = WorkerInfo(
            ids=maps.kind,
            uid_map=maps.uids,
            gid_map=maps.gids,
            pid_namespace=attempt.pidns,
            step_pid_namespaces=not any(rung.name == PID_NAMESPACE for rung in rungs),
            cgroups=inside.cgroups,
            run_dir=run_dir,
            rungs=(
                Rung("ids", maps.kind, maps.note),
                Rung("pid namespace", "own" if attempt.pidns else "host's"),
                Rung("cgroups", inside.cgroups),
                *rungs,
            ),
        )
        return _current
    from crossdock.engine.sandbox.refusal import namespace_refused

    if first is None:
        summary = "an ordinary user needs a user namespace"
        raise SandboxError(summary, missing="user namespaces")
    raise namespace_refused(first.code, first.what)


def _attempts(options: WorkerOptions, rungs: list[Rung]) -> list[Attempt]:
    pidns = options.pid_namespace
    if pidns and (cover := _covered_proc()):
        rungs.append(Rung("fresh /proc", "refused", f"{cover} is mounted over part of /proc"))
        pidns = False
    kinds = [True] if options.user_namespace else []
    if os.geteuid() == 0:
        kinds.append(False)
    pids = [True, False] if pidns else [False]
    return [Attempt(userns, pid, options.id_ranges) for userns in kinds for pid in pids]


def _covered_proc() -> str:
    """Return a mount that hides part of /proc, which makes the kernel refuse a fresh one; or ``""``."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            point = line.split(" ", 5)[4]
            if point.startswith("/proc/") and point != "/proc/sys/fs/binfmt_misc":
                return point
    return ""


def _make_run_dir(chosen: Path | None) -> Path:
    """Make the mount point of the private tmpfs. In /tmp it has no parent that another user could exchange."""
    candidates = [chosen] if chosen is not None else _run_dirs(os.geteuid())
    for path in candidates:
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            owner = path.lstat().st_uid
        except OSError as exc:
            summary = f"cannot make the run directory {path}: {exc.strerror}"
            raise SandboxError(summary, missing="run directory") from exc
        if owner == os.geteuid() and not path.is_symlink():
            return path.resolve()
    summary = f"the run directory {candidates[0]} belongs to another user"
    raise SandboxError(summary, missing="run directory", hint="remove it, or set XDG_RUNTIME_DIR")


def _run_dirs(uid: int) -> list[Path]:
    """Where to look for a place; in /tmp the root of one user's namespace must not meet that of another's."""
    base = Path(os.environ.get("XDG_RUNTIME_DIR", "") if uid else "/run")
    if base.is_absolute() and os.access(base, os.W_OK):
        return [base / "crossdock"]
    outer = next((r.outside + uid - r.inside for r in read_id_map("uid") if contains((r,), uid)), uid)
    name = f"/tmp/crossdock-{outer}"  # noqa: S108
    return [Path(name), Path(f"{name}-{os.stat('/proc/self/ns/user').st_ino}")]
