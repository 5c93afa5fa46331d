"""Run ``git`` for a build: no user configuration, no prompts, ended when the build is cancelled.

Credentials are given through a configuration file in a private directory, never on the command line.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from crossdock.engine.sandbox.worker import current_worker
from crossdock.errors import SandboxError

if TYPE_CHECKING:
    from crossdock.cancel import CancelToken

__all__ = ["Git", "GitFailed", "redact", "user_home"]

_USER = re.compile(r"(?<=://)[^/@]*@")
_SSH = "ssh -F /dev/null -o BatchMode=yes -o ConnectTimeout=30"
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_KEPT = (
    *("PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO", "GIT_SSL_CAPATH"),
    *_PROXIES,
    *map(str.lower, _PROXIES),
)
#: lines that say nothing of what went wrong
_EMPTY_WORDS = (
    "fatal: Could not read from remote repository.",
    "Please make sure you have the correct access rights",
    "and the repository exists.",
    "Cloning into ",
    "warning: ",
    "Warning: ",
)


class GitFailed(Exception):
    """git ended with an error; the text is the last line it wrote."""


def redact(url: str) -> str:
    """Return a URL without user and password, unless the user is only a login name (``git@``)."""
    return _USER.sub(lambda m: "" if ":" in m[0] else m[0], url)


class Git:
    """git with one environment; :meth:`at` gives it a repository."""

    def __init__(self, home: Path, cancel: CancelToken, prefix: tuple[str, ...] = ()) -> None:
        self._home = home
        self._cancel = cancel
        self._prefix = prefix
        self._config = home / "gitconfig"
        if not self._config.exists():
            # The cache of repositories belongs to the store, whoever runs the build. Submodules cannot name local
            # repositories: git's own rule for file:// is left as it is.
            self._config.write_text("[safe]\n\tdirectory = *\n")
            self._config.chmod(0o600)
        self._ssh = _SSH
        self._agent: Path | None = None

    def at(self, git_dir: Path, work_tree: Path | None = None) -> Git:
        """Return the same git in a repository."""
        prefix = ["--git-dir", str(git_dir), *(["--work-tree", str(work_tree)] if work_tree else [])]
        git = Git(self._home, self._cancel, ("-C", str(work_tree or git_dir), *prefix))
        git._ssh, git._agent = self._ssh, self._agent
        return git

    def set_header(self, scope: str, header: str) -> None:
        """Send an ``Authorization`` header to URLs that start with ``scope``."""
        with self._config.open("a") as file:
            file.write(f'[http "{scope}"]\n\textraheader = "Authorization: {header}"\n')

    def set_ssh(self, known_hosts: str, agent: Path | None) -> None:
        """Use an agent, and accept only ``known_hosts`` when they are given.

        Otherwise a host that the user knows must be as known, and others are taken as they come, for this build alone.
        """
        pinned = self._home / "known_hosts"
        pinned.write_text(known_hosts)
        if known_hosts:
            options = f"-o UserKnownHostsFile={pinned} -o GlobalKnownHostsFile=/dev/null -o StrictHostKeyChecking=yes"
        else:
            own = user_home() / ".ssh/known_hosts"
            files = (
                f"{pinned} {own}" if own.is_file() and not re.search(r"\s|\"|'", str(own)) else str(pinned)
            )
            options = f"-o 'UserKnownHostsFile={files}' -o StrictHostKeyChecking=accept-new"
        self._ssh = f"{_SSH} {options}"
        self._agent = agent

    def succeeds(self, *args: str) -> bool:
        """Run and say whether it went well."""
        try:
            self.run(*args)
        except GitFailed:
            return False
        return True

    def run(self, *args: str) -> str:
        """Run and return standard output as text. Raises: as :meth:`output`."""
        return self.output(*args).decode(errors="replace")

    def output(self, *args: str) -> bytes:
        """Run and return standard output.

        Raises: GitFailed; SandboxError when git is not installed; the token's cause.
        """
        try:
            process = subprocess.Popen(
                ["git", *self._prefix, *args],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environment(),
                start_new_session=True,
            )
        except FileNotFoundError as exc:
            summary = "git is not installed, and the build has a Git source"
            raise SandboxError(summary, missing="git", hint="install the package git") from exc
        with self._cancel.waking(lambda: _kill(process)):
            out, err = process.communicate()
        self._cancel.check()
        if process.returncode != 0:
            reason = _reason(err.decode(errors="replace"))
            raise GitFailed(redact(reason) or f"git {args[0]} exited with {process.returncode}")
        return out

    def _environment(self) -> dict[str, str]:
        env = {name: os.environ[name] for name in _KEPT if name in os.environ}
        env |= {
            "HOME": str(self._home),
            "LC_ALL": "C",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": str(self._config),
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_SSH_COMMAND": self._ssh,
            # A server that says nothing for a minute is gone.
            "GIT_HTTP_LOW_SPEED_LIMIT": "1",
            "GIT_HTTP_LOW_SPEED_TIME": "60",
        }
        if self._agent is not None:
            env["SSH_AUTH_SOCK"] = str(self._agent)
        return env


def user_home() -> Path:
    """Return the home directory of the user outside: here user 0 has another name, and root's entry in passwd."""
    if home := os.environ.get("HOME"):
        return Path(home)
    import pwd

    worker = current_worker()
    outside = os.getuid() if worker is None else next((r.outside for r in worker.uid_map if r.inside == 0), 0)
    try:
        return Path(pwd.getpwuid(outside).pw_dir)
    except KeyError:
        return Path("/")


def _reason(text: str) -> str:
    """Choose the line of git's messages that says what went wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if any(line.startswith("Host key verification failed") for line in lines):
        changed = "IDENTIFICATION HAS CHANGED" in text
        return "Host key verification failed" + (
            ": the host's key is not the one that is known" if changed else ""
        )
    telling = [line for line in lines if not line.startswith(_EMPTY_WORDS)] or lines
    return next((line for line in telling if line.startswith(("fatal: ", "error: "))), "".join(telling[:1]))


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):  # it may have ended by itself, a moment ago
            os.killpg(process.pid, signal.SIGKILL)
