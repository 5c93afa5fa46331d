"""Run ``git`` for a build: no user configuration, no prompts, ended when the build is cancelled.

Credentials are given through a configuration file in a private directory, never on the command line.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from typing import TYPE_CHECKING

from crossdock.errors import SandboxError

if TYPE_CHECKING:
    from pathlib import Path

    from crossdock.cancel import CancelToken

__all__ = ["Git", "GitFailed", "redact"]

_USER = re.compile(r"(?<=://)[^/@]*@")


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
            # The cache of repositories belongs to the store, whoever runs the build.
            self._config.write_text('[safe]\n\tdirectory = *\n[protocol "file"]\n\tallow = always\n')
            self._config.chmod(0o600)
        self._ssh = "ssh -F /dev/null -o BatchMode=yes"
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

    def set_ssh(self, known_hosts: Path | None, agent: Path | None) -> None:
        """Use an agent, and accept only known hosts when they are given."""
        hosts = (
            f"-o UserKnownHostsFile={known_hosts}" if known_hosts else "-o StrictHostKeyChecking=accept-new"
        )
        strict = " -o StrictHostKeyChecking=yes" if known_hosts else " -o UserKnownHostsFile=/dev/null"
        self._ssh = f"ssh -F /dev/null -o BatchMode=yes {hosts}{strict}"
        self._agent = agent

    def succeeds(self, *args: str) -> bool:
        """Run and say whether it went well."""
        try:
            self.run(*args)
        except GitFailed:
            return False
        return True

    def run(self, *args: str) -> str:
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
            lines = [line for line in err.decode(errors="replace").splitlines() if line.strip()]
            raise GitFailed(redact(lines[-1]) if lines else f"git {args[0]} exited with {process.returncode}")
        return out.decode(errors="replace")

    def _environment(self) -> dict[str, str]:
        kept = (
            "PATH",
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "NO_PROXY",
            "http_proxy",
            "https_proxy",
            "no_proxy",
            "SSL_CERT_FILE",
        )
        env = {name: os.environ[name] for name in kept if name in os.environ}
        env |= {
            "HOME": str(self._home),
            "LC_ALL": "C",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": str(self._config),
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_SSH_COMMAND": self._ssh,
        }
        if self._agent is not None:
            env["SSH_AUTH_SOCK"] = str(self._agent)
        return env


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
