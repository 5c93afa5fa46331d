"""A real OpenSSH server on a free port of 127.0.0.1, with its own keys, for whoever runs it.

The server is unpacked from Debian's package, not installed: the package would start one on port 22.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import privateapt
import services

if TYPE_CHECKING:
    from collections.abc import Mapping

_CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/client.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
PrintMotd no
PrintLastLog no
LogLevel VERBOSE
{environment}"""
#: the server of root wants an account and a folder of its own; both exist in its mount namespace only
_AS_ROOT = (
    'mount --bind "$1" /etc/passwd && mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd && '
    'shift && exec "$@"'
)


def server_folder() -> Path:
    """The unpacked package.

    Raises: privateapt.AptError.
    """
    return privateapt.fetch_unpacked("sshd", suite="bookworm", packages=["openssh-server", "libwrap0"])


class SshServer(services._Service):
    """``with SshServer() as server``: whoever has :attr:`key` may log in as :attr:`user`.

    ``environment`` is what commands find set, ``PATH`` above all.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._environment = dict(environment or {})
        self.user = pwd.getpwuid(os.geteuid()).pw_name
        self.port = 0
        #: private key of the client
        self.key = Path()
        #: a file in the form of ``~/.ssh/known_hosts``
        self.known_hosts = Path()
        #: a folder for the front of PATH, whose ``ssh`` is the real one with :attr:`known_hosts`
        self.programs = Path()
        self.log = Path()

    @property
    def url(self) -> str:
        """``ssh://user@127.0.0.1:port``."""
        return f"ssh://{self.user}@127.0.0.1:{self.port}"

    def _start(self, stack: contextlib.ExitStack) -> None:
        folder = self._scratch(stack, "crossdock-sshd-")
        unpacked = server_folder()
        for name in ("host", "client"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)]
            subprocess.run(command, check=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.key, self.log = folder / "client", folder / "log"
        pairs = " ".join(f'{k}="{v}"' for k, v in self._environment.items())
        (folder / "config").write_text(
            _CONFIG.format(port=self.port, folder=folder, environment=f"SetEnv {pairs}\n" if pairs else "")
        )
        public = (folder / "host.pub").read_text()
        self.known_hosts = folder / "known_hosts"
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {public}")
        self._wrap_client(folder)
        libraries = {str(library.parent) for library in unpacked.rglob("lib*.so.*")}
        command = [str(unpacked / "usr/sbin/sshd"), "-D", "-e", "-f", str(folder / "config")]
        if os.geteuid() == 0:
            accounts = folder / "passwd"
            accounts.write_text(
                Path("/etc/passwd").read_text() + "sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n"
            )
            command = [*services.NAMESPACES, "sh", "-c", _AS_ROOT, "sh", str(accounts), *command]
        environment = {"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": ":".join(sorted(libraries))}
        process = services.Process(command, log=self.log, env=environment)
        stack.callback(process.stop)
        process.wait_until(self._ready, what="sshd")

    def _wrap_client(self, folder: Path) -> None:
        self.programs = folder / "bin"
        self.programs.mkdir()
        real = shutil.which("ssh") or "/usr/bin/ssh"
        options = ["-F", "none", "-o", f"UserKnownHostsFile={self.known_hosts}", "-o", "BatchMode=yes"]
        (self.programs / "ssh").write_text(f'#!/bin/sh\nexec {shlex.join([real, *options])} "$@"\n')
        (self.programs / "ssh").chmod(0o755)

    def _ready(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False
