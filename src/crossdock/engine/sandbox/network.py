"""A network of its own for a step, with outgoing access through a user-mode helper: slirp4netns or pasta.

The namespace has loopback and one interface; what leaves it is sent by the helper from the host's network, except to
the host's loopback addresses. Nothing of the host is configured and nobody can connect to the step.

The helper ends with the step. It also ends with the worker: through the PID namespace, and where there is none because
slirp4netns watches a pipe, and pasta has a parent-death signal (when setpriv is there).

Spec: slirp4netns(1), pasta(1), network_namespaces(7).
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from crossdock import linux
from crossdock.errors import SandboxError, translate
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from crossdock.cancel import CancelToken

__all__ = ["Helper", "find_helper", "isolated_network"]

_SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TUN = "/dev/net/tun"
_READY_S = 10.0
_STOP_S = 1.0
_MTU = "65520"
#: pasta is given slirp4netns's addresses: with its default, those of the host, a step could not reach the host
_ADDRESS, _GATEWAY, _NAMESERVER = "10.0.2.100", "10.0.2.2", "10.0.2.3"


class Helper(NamedTuple):
    """A program that connects a network namespace."""

    #: ``slirp4netns`` or ``pasta``
    name: str
    path: str

    @property
    def nameserver(self) -> str:
        """Address at which a step reaches the host's resolver."""
        return _NAMESERVER


def find_helper(*, path: str | None = None, tun: str = _TUN) -> Helper:
    """Find a helper that can work on this machine; ``path`` is searched instead of PATH.

    Raises: SandboxError naming the package, or what is wrong with ``/dev/net/tun``.
    """
    for name in ("slirp4netns", "pasta"):
        found = shutil.which(name, path=path) or (shutil.which(name, path=_SEARCH) if path is None else None)
        if found is not None:
            _check_tun(tun)
            return Helper(name, found)
    from crossdock.distro import install_hint

    summary = "an isolated network needs slirp4netns or pasta, and neither is on PATH"
    raise SandboxError(
        summary,
        missing="slirp4netns",
        hint=f"{install_hint('slirp4netns')}, or build with the host's network (network=host)",
    )


def _check_tun(path: str) -> None:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        hints = {
            errno.ENOENT: "load the driver: `sudo modprobe tun`; in a container, start it with `--device /dev/net/tun`",
            errno.ENODEV: "load the driver: `sudo modprobe tun`",
            errno.ENXIO: "load the driver: `sudo modprobe tun`",
            errno.EACCES: f"let users open it, as distributions do: `sudo chmod 666 {path}`",
            errno.EPERM: "the device is forbidden here: in a container, start it with `--device /dev/net/tun`",
        }
        summary = f"an isolated network needs {path}, which cannot be opened: {exc.strerror}"
        raise SandboxError(summary, missing=path, hint=hints.get(exc.errno or 0)) from exc


@contextmanager
def isolated_network(helper: Helper, directory: Path, name: str, cancel: CancelToken) -> Iterator[Path]:
    """Hold a connected network namespace for the length of a step; its path is for the runtime to join.

    ``directory`` is on a file system of this mount namespace.
    Raises: SandboxError with the helper's own words; the token's cause.
    """
    path = directory / f"{name}.net"
    with translate({OSError: _cannot_make}):
        path.touch(mode=0o600)
        _make_namespace(path)
    try:
        start = _slirp if helper.name == "slirp4netns" else _pasta
        with start(helper, path, cancel):
            yield path
    finally:
        linux.umount(path, linux.MNT_DETACH)
        path.unlink()


def _cannot_make(exc: BaseException) -> SandboxError:
    return SandboxError(f"cannot make a network namespace: {exc}", missing="network namespaces")


def _make_namespace(path: Path) -> None:
    """Bind a new network namespace to ``path``. It is made by a thread, since the thread then has no other."""
    problems: list[BaseException] = []

    def make() -> None:
        try:
            linux.unshare(linux.CLONE_NEWNET)
            linux.bring_loopback_up()
            linux.mount("/proc/thread-self/ns/net", path, None, linux.MS_BIND)
        except OSError as exc:
            problems.append(exc)

    thread = threading.Thread(target=make, name="network-namespace")
    thread.start()
    thread.join()
    if problems:
        raise problems[0]


@contextmanager
def _slirp(helper: Helper, namespace: Path, cancel: CancelToken) -> Iterator[None]:
    ready_r, ready_w = os.pipe()
    exit_r, exit_w = os.pipe()
    try:
        argv = [
            helper.path, "--configure", f"--mtu={_MTU}", "--disable-host-loopback", "--enable-sandbox",
            "--enable-seccomp", f"--ready-fd={ready_w}", f"--exit-fd={exit_r}", "--netns-type=path",
            str(namespace), "tap0",
        ]  # fmt: skip
        log = namespace.with_suffix(".log")
        process = _started(helper, argv, log, pass_fds=(ready_w, exit_r))
        os.close(ready_w)
        ready_w = -1
        try:
            os.set_blocking(ready_r, False)
            _wait(helper, process, log, cancel, lambda: _readable(ready_r))
            yield
        finally:
            os.close(exit_w)
            exit_w = -1
            _end(process)
            log.unlink(missing_ok=True)
    finally:
        for fd in (ready_r, ready_w, exit_r, exit_w):
            if fd >= 0:
                os.close(fd)


@contextmanager
def _pasta(helper: Helper, namespace: Path, cancel: CancelToken) -> Iterator[None]:
    pid_file = namespace.with_suffix(".pid")
    log = namespace.with_suffix(".log")
    argv = [
        helper.path, "--config-net", "--no-map-gw", "--foreground", "--quiet", "--stderr", "--runas", "0:0",
        "--mtu", _MTU, *("-t", "none", "-u", "none", "-T", "none", "-U", "none"),
        "--address", _ADDRESS, "--netmask", "24", "--gateway", _GATEWAY, "--dns-forward", _NAMESERVER,
        "--pid", str(pid_file), "--netns", str(namespace),
    ]  # fmt: skip
    setpriv = shutil.which("setpriv", path=_SEARCH)
    if setpriv is not None:
        argv = [setpriv, "--pdeathsig", "KILL", *argv]
    process = _started(helper, argv, log)
    try:
        _wait(helper, process, log, cancel, lambda: pid_file.exists() and pid_file.stat().st_size > 0)
        yield
    finally:
        _end(process)
        pid_file.unlink(missing_ok=True)
        log.unlink(missing_ok=True)


def _started(
    helper: Helper, argv: list[str], log: Path, *, pass_fds: tuple[int, ...] = ()
) -> subprocess.Popen[bytes]:
    def refuse(exc: BaseException) -> SandboxError:
        return SandboxError(f"cannot start {helper.path}: {exc}", missing=helper.name)

    with translate({OSError: refuse}), log.open("wb") as out:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            pass_fds=pass_fds,
            env={"PATH": _SEARCH},
            process_group=0,
        )


def _wait(
    helper: Helper,
    process: subprocess.Popen[bytes],
    log: Path,
    cancel: CancelToken,
    ready: Callable[[], bool],
) -> None:
    """Wait until the interface is there. Raises: SandboxError with what the helper said; the token's cause."""
    deadline = time.monotonic() + _READY_S
    while not ready():
        cancel.check()
        ended = process.poll() is not None
        if ended or time.monotonic() > deadline:
            said = log.read_text(encoding="utf-8", errors="replace").strip()
            what = (
                f"ended with status {process.returncode}" if ended else f"was not ready after {_READY_S:g} s"
            )
            summary = f"{helper.name} cannot connect the step to the network: it {what}"
            hint = "build with the host's network (network=host), or without one (--network=none)"
            raise SandboxError(summary, missing=helper.name, detail=said or None, hint=hint)
        time.sleep(0.005)


def _readable(fd: int) -> bool:
    try:
        return os.read(fd, 1) != b""
    except BlockingIOError:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(subprocess.TimeoutExpired):
        process.terminate()
        process.wait(_STOP_S)
        return
    process.kill()
    process.wait()
