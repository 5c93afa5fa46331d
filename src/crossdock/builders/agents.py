"""``--ssh``: sockets of agents, and agents of our own for key files.

An agent of ours lives for one build: its socket is in a directory that only this user can enter, and it ends when the
process that started it does, however that happens.

Spec: docker/buildx ``util/buildflags/ssh.go``; moby/buildkit ``session/sshforward/sshprovider``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from crossdock.errors import SandboxError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import ExitStack

__all__ = ["agent_sockets", "implied_ssh"]

_TIMEOUT_S = 20.0
_MAX_FOLDER_BYTES = 70


def implied_ssh(context: str, given: tuple[str, ...]) -> tuple[str, ...]:
    """Return ``--ssh``; a Git context over ssh uses the default agent without being told, where there is one."""
    is_ssh = context.startswith("ssh://") or "@" in context.partition("/")[0]
    if given or not is_ssh or not os.environ.get("SSH_AUTH_SOCK"):
        return given
    return ("default",)


def agent_sockets(specs: Sequence[str], stack: ExitStack, *, folder: Path | None = None) -> dict[str, Path]:
    """Read ``--ssh`` values, ``default`` or ``id[=socket | =key[,key…]]``; agents started here end with ``stack``.

    ``folder`` is where their sockets are made; the default is the system's folder for temporary files.
    Raises: UsageError when there is no agent, or a key cannot be used; SandboxError when ssh-agent is not installed.
    """
    out: dict[str, Path] = {}
    for spec in specs:
        name, _, value = spec.partition("=")
        name = name or "default"
        if name in out:
            summary = f"--ssh {spec}: {name} is given twice"
            raise UsageError(summary)
        paths = [path for path in value.split(",") if path] or [os.environ.get("SSH_AUTH_SOCK", "")]
        out[name] = _agent(spec, paths, stack, folder)
    return out


def _agent(spec: str, paths: list[str], stack: ExitStack, folder: Path | None) -> Path:
    if not paths[0]:
        summary = f"--ssh {spec}: SSH_AUTH_SOCK is not set"
        raise UsageError(summary, hint="start an agent with ssh-agent, or give --ssh default=SOCKET")
    found = [Path(path).expanduser().absolute() for path in paths]
    sockets = [path for path in found if path.is_socket()]
    if sockets:
        if len(found) > 1:
            summary = f"--ssh {spec}: only one socket is allowed, and no keys beside it"
            raise UsageError(summary)
        return sockets[0]
    for path in found:
        if not path.is_file():
            what = "is neither a socket nor a key file" if path.exists() else "does not exist"
            summary = f"--ssh {spec}: {path} {what}"
            raise UsageError(summary)
    return stack.enter_context(_own_agent(spec, found, folder))


@contextmanager
def _own_agent(spec: str, keys: list[Path], parent: Path | None) -> Iterator[Path]:
    """Run an agent that knows ``keys``."""
    # The path of a socket has 107 bytes at most.
    where = os.fspath(parent) if parent is not None else tempfile.gettempdir()
    if len(os.fsencode(where)) > _MAX_FOLDER_BYTES:
        where = "/tmp"  # noqa: S108
    with tempfile.TemporaryDirectory(prefix="crossdock-ssh-", dir=where) as folder:
        socket = Path(folder) / "agent"
        # ssh-agent becomes the command, and the agent its child, which ends when the command does. The command
        # ends when its standard input does, and that is a pipe of ours.
        # Leaving the block closes it and waits.
        with _start(["ssh-agent", "-a", str(socket), "sh", "-c", "echo $SSH_AGENT_PID; exec cat"]) as process:
            pid = process.stdout.readline().strip() if process.stdout is not None else b""
            if not pid.isdigit():
                summary = f"--ssh {spec}: ssh-agent did not start"
                raise SandboxError(summary, missing="ssh-agent")
            try:
                for key in keys:
                    _add(spec, key, socket)
                yield socket
            finally:
                # The agent is a child of the command: its number stays its own until the command is gone.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGTERM)


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
    except FileNotFoundError as exc:
        summary = "ssh-agent is not installed, and --ssh names a key file"
        raise SandboxError(summary, missing="ssh-agent", hint="install the package openssh-client") from exc


def _add(spec: str, key: Path, socket: Path) -> None:
    env = {**os.environ, "SSH_AUTH_SOCK": str(socket), "SSH_ASKPASS_REQUIRE": "never", "LC_ALL": "C"}
    # No terminal to ask for a passphrase at: it would be asked in the middle of the build's progress.
    done = subprocess.run(
        ["ssh-add", "-q", str(key)],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        start_new_session=True,
        check=False,
    )
    if done.returncode == 0:
        return
    lines = [line for line in done.stderr.splitlines() if line.strip(" @")]
    reason = next((line for line in lines if "UNPROTECTED" not in line), "it has a passphrase, or is no key")
    summary = f"--ssh {spec}: cannot use the key {key}: {reason}"
    raise UsageError(summary, hint="add it to an agent with ssh-add, and use --ssh default")
