"""The OCI runtime: found, started for one bundle, its output streamed, killed when asked.

crun is preferred: it is fast and works in a user namespace without control groups. The runtime gets no environment of
the caller's, no terminal and an empty standard input.

Spec: OCI runtime-spec ``runtime.md``; crun(1), runc(8).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
from typing import TYPE_CHECKING

from crossdock.engine.sandbox.paths import find_program
from crossdock.engine.sandbox.sealed import sealed_copy
from crossdock.engine.sandbox.supervise import descendants
from crossdock.errors import SandboxError
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from crossdock.cancel import CancelToken
    from crossdock.engine.sandbox.console import ConsoleSocket
    from crossdock.engine.sandbox.step import StepStdio

__all__ = ["Outcome", "Runtime", "find_runtime"]

_NAMES = ("crun", "runc")
_SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CHUNK = 1 << 16
#: what crun writes to the step's stderr when exec itself fails, its log being out of reach by then
_EXEC_FAILED = b'{"msg":"'
_DEFAULTED = (signal.SIGPIPE, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGXFSZ)


class Outcome(NamedTuple):
    """How the runtime ended: its exit code and, where the step did not start, its own error."""

    exit_code: int
    error: str


class Runtime(NamedTuple):
    """A runtime on this machine."""

    name: str
    path: str

    def run(
        self,
        *,
        state: Path,
        bundle: Path,
        step_id: str,
        wrap: Callable[[list[str]], list[str]] | None = None,
        log: Callable[[int, bytes], None],
        cancel: CancelToken,
        idle: Callable[[int, float], None] | None = None,
        stdio: StepStdio | None = None,
        inside: str = "",
    ) -> Outcome:
        """Run the step described by ``bundle/config.json`` to its end; ``inside`` a step that runs, that of ``process.json``.

        ``wrap`` turns the runtime's command into one that runs it, e.g. inside a control group. ``log`` gets (1 or 2,
        bytes) in the calling thread; ``idle`` is called about once a second with the runtime's
        PID and the seconds since the last output. Returns only when every process of the step is gone.
        Raises: the token's cause when cancelled; SandboxError when the runtime cannot be started.
        """
        runtime_log = bundle / "runtime.log"
        argv = [self.name, "--root", str(state), "--log", str(runtime_log), "--log-format", "json"]
        # Groups are made by ``cgroups``: crun is told to make none, runc to go on where it may not.
        argv += ["--cgroup-manager", "disabled"] if self.name == "crun" else ["--rootless", "true"]
        console = self._console(bundle, stdio)
        more = [] if console is None else ["--console-socket", str(console.path)]
        if inside:
            argv += ["exec", *more, "--process", str(bundle / "process.json"), inside]
        else:
            argv += ["run", *more, "--bundle", str(bundle), step_id]
        path, copy = self.path, ""
        if wrap is not None:
            argv = wrap([path, *argv[1:]])
            path = argv[0]
        elif self.name in _NAMES:
            copy = self._sealed(bundle)
        with contextlib.nullcontext() if console is None else console:
            cancel.check()
            process = _Process.start(
                path, argv, copy=copy, run_dir=str(state), stdio=stdio if console is None else None
            )
            try:
                if stdio is not None:
                    stdio.started(process.pid)
                with cancel.waking(process.wake):
                    process.pump(log, idle=idle, cancelled=lambda: cancel.cancelled)
            finally:
                code = process.finish()
        cancel.check()
        error = (_logged_error(runtime_log) or process.exec_error) if code else ""
        return Outcome(code, error)

    def _console(self, bundle: Path, stdio: StepStdio | None) -> ConsoleSocket | None:
        """Return what takes the terminal inside: crun loses the end of what is written when it copies it itself."""
        if stdio is None or not stdio.terminal or stdio.console is None or self.name != "crun":
            return None
        from crossdock.engine.sandbox.console import ConsoleSocket

        return ConsoleSocket(bundle / "tty", stdio.console)

    def _sealed(self, bundle: Path) -> str:
        """Return what runs the sealed copy, by a link that has the runtime's name, since lists of processes show it."""
        copy = sealed_copy(self.path)
        if copy == self.path:
            return ""
        link = str(bundle / self.name)
        try:
            os.symlink(copy, link)
        except OSError:
            return copy
        return link

    def is_running(self, state: Path, step_id: str) -> bool:
        """Whether the program of a step has been started and has not ended."""
        import subprocess  # only containers are asked after

        argv = [self.path, "--root", str(state), "state", step_id]
        environ = {"PATH": _SEARCH, "XDG_RUNTIME_DIR": str(state)}
        done = subprocess.run(argv, env=environ, capture_output=True, check=False)
        try:
            return bool(json.loads(done.stdout)["status"] == "running")
        except (ValueError, KeyError, TypeError):
            return False


def find_runtime(wanted: str = "") -> Runtime:
    """Return what is ``wanted`` by name or path, else crun, else runc. Raises: SandboxError naming the package."""
    chosen = wanted or os.environ.get("CROSSDOCK_RUNTIME", "")
    for name in (chosen,) if chosen else _NAMES:
        path = find_program(name) or find_program(name, _SEARCH)
        if path is not None:
            base = os.path.basename(path)
            return Runtime(next((n for n in _NAMES if n in base), base), path)
    from crossdock.distro import install_hint

    summary = f"no OCI runtime found (looked for {chosen or ' and '.join(_NAMES)})"
    raise SandboxError(summary, missing="crun", hint=install_hint("crun"))


def _logged_error(path: Path) -> str:
    """Return the last error of the runtime's log."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    return next((text for line in reversed(lines) if (text := _error_of(line))), "")


def _error_of(line: str) -> str:
    try:
        record = json.loads(line)
    except ValueError:
        return ""
    if not isinstance(record, dict) or record.get("level") not in ("error", "fatal"):
        return ""
    return str(record.get("msg", ""))


class _Process:
    """One running runtime with its pipes."""

    def __init__(self, pid: int, streams: dict[int, int]) -> None:
        """``streams`` are the ends of pipes, and which of its streams each carries."""
        self._pid = pid
        self._pidfd = os.pidfd_open(pid)
        self._streams = streams
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_w, False)
        self._ended = False
        self._seen_output = False
        self._held = b""
        #: the runtime's message when exec failed inside the container
        self.exec_error = ""

    @classmethod
    def start(
        cls, path: str, argv: list[str], *, copy: str = "", run_dir: str, stdio: StepStdio | None = None
    ) -> _Process:
        """Start ``path``, or the ``copy`` of it where the machine lets it run. Raises: SandboxError."""
        out_r, out_w = os.pipe()
        err_r, err_w = os.pipe()
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        given = null if stdio is None else stdio.stdin
        terminal = stdio is not None and stdio.terminal
        actions = [
            (os.POSIX_SPAWN_DUP2, given, 0),
            (os.POSIX_SPAWN_DUP2, given if terminal else out_w, 1),
            (os.POSIX_SPAWN_DUP2, given if terminal else err_w, 2),
        ]
        environ = {"PATH": _SEARCH, "XDG_RUNTIME_DIR": run_dir}

        def spawn(program: str) -> int:
            return os.posix_spawn(
                program, argv, environ, file_actions=actions, setpgroup=0, setsigmask=(), setsigdef=_DEFAULTED
            )

        try:
            try:
                pid = spawn(copy or path)
            except OSError:
                if not copy:
                    raise
                pid = spawn(path)  # vm.memfd_noexec or SELinux forbid the copy
        except OSError as exc:
            os.close(out_r)
            os.close(err_r)
            summary = f"cannot start {path}: {exc.strerror}"
            raise SandboxError(summary, missing=argv[0]) from exc
        finally:
            for fd in (null, out_w, err_w):
                os.close(fd)
        return cls(pid, {out_r: 1, err_r: 2})

    @property
    def pid(self) -> int:
        """Of the runtime."""
        return self._pid

    def wake(self) -> None:
        """Make :meth:`pump` look at the token; safe from any thread and signal handler."""
        try:
            os.write(self._wake_w, b"x")
        except (BlockingIOError, OSError):
            return

    def pump(
        self,
        log: Callable[[int, bytes], None],
        *,
        idle: Callable[[int, float], None] | None,
        cancelled: Callable[[], bool],
    ) -> None:
        """Pass output on until the runtime has ended, or until cancelled.

        The runtime's end is the end: a process that outlived it with the pipes open is not waited for.
        """
        poll = select.poll()
        for fd in (*self._streams, self._pidfd, self._wake_r):
            poll.register(fd, select.POLLIN)
        quiet_s = 0.0
        while not self._ended:
            events = poll.poll(1000 if idle is not None else None)
            quiet_s = quiet_s + 1.0 if not events else 0.0
            if not events and idle is not None:
                idle(self._pid, quiet_s)
            for fd, _ in events:
                if fd == self._wake_r and cancelled():
                    return
                if fd == self._pidfd:
                    self._ended = True
                elif fd in self._streams and not self._read(fd, log):
                    poll.unregister(fd)
                    os.close(fd)
                    del self._streams[fd]
        self._drain(log)

    def _drain(self, log: Callable[[int, bytes], None]) -> None:
        for fd in self._streams:
            os.set_blocking(fd, False)
            while self._read(fd, log):
                pass
        held, self._held = self._held, b""
        self.exec_error = _error_of(held.decode(errors="replace").strip())
        if held:
            log(2, self.exec_error.encode() + b"\n" if self.exec_error else held)

    def _read(self, fd: int, log: Callable[[int, bytes], None]) -> bool:
        """Read once; False at the end of the stream, or when it is empty and the runtime has ended."""
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        if not data:
            return False
        if self._streams[fd] == 2 and not self._seen_output and data.startswith(_EXEC_FAILED):
            self._held = data
        else:
            if self._held:
                log(2, self._held)
                self._held = b""
            log(self._streams[fd], data)
        self._seen_output = True
        return True

    def finish(self) -> int:
        """Kill what still runs, reap, close; returns the exit code."""
        if not self._ended:
            self._kill()
        _, status = os.waitpid(self._pid, 0)
        for fd in (*self._streams, self._pidfd, self._wake_r, self._wake_w):
            os.close(fd)
        self._streams.clear()
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    def _kill(self) -> None:
        """SIGKILL the step's init, which takes its PID namespace along, and the runtime."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        while True:
            for pid in descendants(self._pid):
                _kill_quietly(pid)
            if poll.poll(20):
                return
            # The runtime ends by itself once its child is dead; before it has one it must be killed.
            if not descendants(self._pid):
                _kill_quietly(self._pid)


def _kill_quietly(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError as exc:
        if exc.errno != errno.ESRCH:
            raise
