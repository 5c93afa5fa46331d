"""The processes behind ``become_worker``: opener, init, worker, and the supervisor they leave outside.

The opener unshares and forks init, then ends; so the caller itself stays in its own namespaces and can try again
after a refusal. Orphaned init falls to the caller, which is its subreaper. Two pipes carry one-line records.
"""

from __future__ import annotations

import errno
import os
import signal
from typing import TYPE_CHECKING, NoReturn

from crossdock import linux
from crossdock.engine.sandbox import supervise
from crossdock.engine.sandbox.idmap import (
    IdRange,
    format_map,
    identity_map,
    parse_subids,
    ranges_map,
    read_id_map,
)
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["PID_NAMESPACE", "Attempt", "Inside", "Maps", "Refused", "launch", "plan_maps", "user_name"]

#: what was refused when there are no PID namespaces at all
PID_NAMESPACE = "create a PID namespace"
_CGROUP2_MAGIC = 0x63677270
_TMPFS_MAGIC = 0x01021994
_ISOLATED = linux.CLONE_NEWNS | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS


class Attempt(NamedTuple):
    """One way down the ladder: with a user namespace, with a PID namespace, with id ranges."""

    userns: bool
    pidns: bool
    ranges: bool


class Refused(Exception):
    """The kernel refused ``what`` (an infinitive) with errno ``code``; the caller is as it was."""

    def __init__(self, what: str, code: int) -> None:
        super().__init__(what, code)
        self.what = what
        self.code = code


class Maps(NamedTuple):
    """The ids of a worker: kind, maps, and why the kind is not a better one."""

    kind: str
    uids: tuple[IdRange, ...]
    gids: tuple[IdRange, ...]
    note: str = ""


class Inside(NamedTuple):
    """What the worker learns from its start."""

    maps: Maps
    cgroups: str


class _Pipe:
    """One-line records from one process to another: a word, an errno, a text."""

    __slots__ = ("_rest", "r", "w")

    def __init__(self) -> None:
        self.r, self.w = os.pipe()
        self._rest = b""

    def send(self, word: str, code: int = 0, text: str = "") -> None:
        os.write(self.w, f"{word}\t{code}\t{text}\n".encode())

    def receive(self) -> tuple[str, int, str]:
        while b"\n" not in self._rest:
            data = os.read(self.r, 4096)
            if not data:
                return "gone", errno.ECHILD, "start the worker"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        word, code, text = line.decode().split("\t", 2)
        return word, int(code), text

    def expect(self) -> tuple[str, str]:
        """Receive; raise Refused for a failure record."""
        word, code, text = self.receive()
        if code:
            raise Refused(text, code)
        return word, text


class _Doing:
    """Name what is being done, so that an OSError becomes a failure record with that name."""

    __slots__ = ("_up", "what")

    def __init__(self, up: _Pipe, what: str) -> None:
        self._up = up
        self.what = what

    def failed(self, exc: OSError) -> NoReturn:
        self._up.send("failed", exc.errno or errno.EIO, self.what)
        os._exit(1)


def plan_maps(*, use_ranges: bool) -> Maps:
    """Choose the best maps for this user; :func:`launch` falls back from *ranges* to *single* by itself."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        return Maps("identity", identity_map(read_id_map("uid")), identity_map(read_id_map("gid")))
    single = Maps("single", (IdRange(0, uid, 1),), (IdRange(0, gid, 1),), "ranges not wanted")
    if not use_ranges:
        return single
    name = user_name(uid)
    granted = [parse_subids(_read(f"/etc/sub{kind}"), name=name, uid=uid) for kind in ("uid", "gid")]
    if not all(granted):
        return single._replace(note=f"no id ranges for {name} in /etc/subuid and /etc/subgid")
    return Maps("ranges", ranges_map(uid, granted[0]), ranges_map(gid, granted[1]))


def user_name(uid: int) -> str:
    """Return a user's name, or the number of one that has none."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def launch(attempt: Attempt, run_dir: Path) -> Inside:
    """Make one attempt; returns in the worker only.

    Raises: Refused, in the caller, which is then as before.
    """
    maps = plan_maps(use_ranges=attempt.ranges) if attempt.userns else _present_maps()
    up, down = _Pipe(), _Pipe()
    mask = supervise.block_signals()
    opener = os.fork()
    if opener == 0:
        os.close(up.r)
        os.close(down.w)
        return _opener(attempt, maps, run_dir, up, down, mask)
    os.close(up.w)
    os.close(down.r)
    linux.set_child_subreaper(on=True)
    try:
        init = _bring_up(opener, attempt, maps, up, down)
    except Refused:
        os.close(up.r)
        os.close(down.w)
        linux.set_child_subreaper(on=False)
        supervise.restore_signals(mask)
        raise
    _supervisor(init, up, down)


def _present_maps() -> Maps:
    return Maps("none", read_id_map("uid"), read_id_map("gid"))


def _bring_up(opener: int, attempt: Attempt, maps: Maps, up: _Pipe, down: _Pipe) -> int:
    """Drive the start from outside; returns init's PID. Leaves no child behind when it raises."""
    try:
        if attempt.userns:
            up.expect()
            applied = _apply_maps(opener, maps)
            down.send(applied.kind, 0, applied.note)
        init = int(up.expect()[1])
    except Refused:
        os.kill(opener, signal.SIGKILL)
        os.waitpid(opener, 0)
        raise
    os.waitpid(opener, 0)
    down.send("go")
    try:
        up.expect()
    except Refused:
        os.waitpid(init, 0)
        raise
    return init


def _supervisor(init: int, up: _Pipe, down: _Pipe) -> NoReturn:
    """Wait outside. The write end of ``down`` stays open: init takes its end for our death."""
    keep = sorted((up.r, down.w))
    os.closerange(3, keep[0])
    os.closerange(keep[0] + 1, keep[1])
    os.closerange(keep[1] + 1, 1 << 20)
    status = supervise.wait_for(init)
    word, _, text = up.receive()
    supervise.kill_descendants(os.getpid())
    supervise.end_like(int(text) if word == "exit" else status)


def _apply_maps(pid: int, maps: Maps) -> Maps:
    """Write the id maps of ``pid`` from outside, falling back to one id. Raises: Refused."""
    if maps.kind == "ranges":
        from crossdock.engine.sandbox.subids import write_with_helpers

        problem = write_with_helpers(pid, maps.uids, maps.gids)
        if not problem:
            return maps
        maps = Maps("single", maps.uids[:1], maps.gids[:1], problem)
    try:
        if maps.kind == "single":
            _write(f"/proc/{pid}/setgroups", "deny")
        _write(f"/proc/{pid}/uid_map", format_map(maps.uids))
        _write(f"/proc/{pid}/gid_map", format_map(maps.gids))
    except OSError as exc:
        what = "map ids into the user namespace"
        raise Refused(what, exc.errno or errno.EIO) from exc
    return maps


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _opener(attempt: Attempt, maps: Maps, run_dir: Path, up: _Pipe, down: _Pipe, mask: set[int]) -> Inside:
    """Unshare, fork init, end. Returns in the worker."""
    doing = _Doing(up, "create a user namespace")
    try:
        if attempt.userns:
            linux.unshare(linux.CLONE_NEWUSER)
            up.send("unshared")
            kind, _, note = down.receive()
            if kind != maps.kind:
                maps = Maps(kind, maps.uids[:1], maps.gids[:1], note)
        doing.what = "create a mount namespace"
        linux.unshare(_ISOLATED)
        if attempt.pidns:
            doing.what = PID_NAMESPACE
            linux.unshare(linux.CLONE_NEWPID)
        doing.what = "start init"
        init = os.fork()
    except OSError as exc:
        doing.failed(exc)
    if init != 0:
        up.send("init", 0, str(init))
        os._exit(0)
    return _init(attempt, maps, run_dir, up, down, mask)


def _init(attempt: Attempt, maps: Maps, run_dir: Path, up: _Pipe, down: _Pipe, mask: set[int]) -> Inside:
    """Mount, fork the worker, reap until it ends. Returns in the worker."""
    if down.receive()[0] != "go":
        os._exit(1)
    doing = _Doing(up, "tie the worker to its parent")
    try:
        linux.set_parent_death_signal(signal.SIGKILL)
        os.set_blocking(down.r, False)
        _exit_if_closed(down.r)
        if not attempt.pidns:
            linux.set_child_subreaper(on=True)
        cgroups = _private_mounts(run_dir, doing, fresh_proc=attempt.pidns)
        doing.what = "start the worker"
        init = os.getpid()
        worker = os.fork()
    except OSError as exc:
        doing.failed(exc)
    if worker == 0:
        linux.set_parent_death_signal(signal.SIGKILL)
        if os.getppid() != init:
            os._exit(1)
        os.close(up.w)
        os.close(down.r)
        supervise.restore_signals(mask)
        return Inside(maps, cgroups)
    up.send("ready")
    os.closerange(3, up.w)
    os.closerange(up.w + 1, 1 << 20)
    status = supervise.wait_for(worker)
    up.send("exit", 0, str(status))
    if not attempt.pidns:
        supervise.kill_descendants(os.getpid())
    os._exit(0)


def _exit_if_closed(fd: int) -> None:
    """End when the supervisor died before the death signal was set."""
    try:
        if os.read(fd, 1) == b"":
            os._exit(1)
    except BlockingIOError:
        return


def _private_mounts(run_dir: Path, doing: _Doing, *, fresh_proc: bool) -> str:
    """Make the mounts every worker has; returns how the host's control groups are mounted."""
    doing.what = "make the mounts private"
    linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
    plain = linux.MS_NOSUID | linux.MS_NODEV
    if fresh_proc:
        doing.what = "mount a fresh /proc"
        linux.mount("proc", "/proc", "proc", plain | linux.MS_NOEXEC)
    doing.what = f"mount a tmpfs on {run_dir}"
    linux.mount("tmpfs", run_dir, "tmpfs", plain, "mode=0700")
    cgroups = _cgroup_layout()
    if cgroups in ("hybrid", "v1"):
        doing.what = "hide /sys/fs/cgroup"
        _hide_cgroups(run_dir)
    return cgroups


def _hide_cgroups(run_dir: Path) -> None:
    """Put an empty read-only tree in place of version 1 hierarchies; the real one moves to ``run_dir/cgroup``.

    crun refuses mixed hierarchies; runc wants to make groups and takes "read-only", but not "no such directory".
    """
    plain = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    host = run_dir / "cgroup"
    host.mkdir()
    top = "/sys/fs/cgroup"
    linux.mount(top, host, None, linux.MS_BIND | linux.MS_REC)
    linux.mount("tmpfs", top, "tmpfs", plain, "mode=0755")
    for name in os.listdir(host):
        if name != "unified":
            os.mkdir(f"{top}/{name}")
    linux.mount(None, top, None, linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | plain)


def _cgroup_layout() -> str:
    """Return ``v2``, ``v1``, ``hybrid`` (crun refuses that one) or ``none``."""
    try:
        magic = linux.filesystem_magic("/sys/fs/cgroup")
        if magic == _CGROUP2_MAGIC:
            return "v2"
        if magic != _TMPFS_MAGIC or not os.listdir("/sys/fs/cgroup"):
            return "none"
        return "hybrid" if linux.filesystem_magic("/sys/fs/cgroup/unified") == _CGROUP2_MAGIC else "v1"
    except OSError:
        return "v1" if os.path.isdir("/sys/fs/cgroup/memory") else "none"
