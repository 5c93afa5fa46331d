"""Start real registries and Docker Engines on loopback, and end them without a trace.

For the demo, the tests and the benchmark. The programs come from PATH or are unpacked from Debian's packages into the
developer cache (installing those packages would start services on the host). Each runs with a death signal, so it
cannot outlive the process that started it; an Engine also has PID and mount namespaces of its own, so its
containers and mounts end with it.

Only the standard library.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import certificates
import privateapt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

#: the account of registries started with ``auth=True``; the hash is bcrypt of the password
USERNAME = "crossdock"
PASSWORD = "open sesame"
_HTPASSWD = f"{USERNAME}:$2y$04$afA7pgAZod5zFl3QtGe4hOJqO7qEW2qe8hoLJgYBw5qnzVl/hErAS\n"

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0

#: engines by name: suite and packages to unpack
ENGINES: Mapping[str, tuple[str, Sequence[str]]] = {
    "20.10": ("bookworm", ["docker.io", "containerd", "runc", "tini", "libdevmapper1.02.1", "libseccomp2"]),
    # without its runc, which needs a newer C library than Debian 12 and Ubuntu 22.04 have
    "26.1": ("trixie", ["docker.io", "docker-cli", "docker-buildx", "containerd", "tini"]),
}


#: words before a daemon's own: its mounts and processes end with it
NAMESPACES = (
    *("unshare", "--mount", "--propagation", "private"),
    *("--pid", "--fork", "--kill-child", "--mount-proc"),
)


class ServiceError(Exception):
    """A service could not be started; the text ends with what it said."""


class Process:
    """A child with its output in a file; it dies with its parent and is ended by its own id."""

    def __init__(self, argv: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None) -> None:
        self.log = log
        self._wrapped = argv[0] == "unshare"
        setpriv = shutil.which("setpriv")
        command = [setpriv, "--pdeathsig", "KILL", *argv] if setpriv else list(argv)
        with log.open("ab") as out:
            self._child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, start_new_session=True
            )

    @property
    def pid(self) -> int:
        """The program itself, also where it runs behind :data:`NAMESPACES`."""
        if not self._wrapped:
            return self._child.pid
        # unshare(1) passes no signals on: its one child is the program, and it exits with it
        children = Path(f"/proc/{self._child.pid}/task/{self._child.pid}/children").read_text().split()
        return int(children[0]) if children else self._child.pid

    def wait_until(self, ready: Callable[[], bool], *, what: str) -> None:
        """Wait for ``ready()``.

        Raises: ServiceError when the program ends first or takes too long.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready():
            if self._child.poll() is not None or time.monotonic() > deadline:
                self.stop()
                tail = self.log.read_text(errors="replace")[-2000:]
                msg = f"{what} did not start:\n{tail}"
                raise ServiceError(msg)
            time.sleep(0.02)

    def stop(self) -> None:
        """End it: politely, then by force; idempotent."""
        if self._child.poll() is None:
            self._terminate()
            try:
                self._child.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
        self._child.wait()

    def _terminate(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)


def _remove_cgroups(name: str) -> None:
    """Remove the empty control groups ``name`` of every hierarchy."""
    for parent in [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*/")]:
        for folder, _, _ in os.walk(parent / name, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()


class _Service:
    """Context manager base: a scratch folder, a process, both gone at exit."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start(self, stack: contextlib.ExitStack) -> None:
        """Start what the service is, each undoing registered on ``stack`` at once."""
        raise TypeError(type(self), stack)

    def _scratch(self, stack: contextlib.ExitStack, prefix: str) -> Path:
        # not TMPDIR: socket paths must stay below 108 bytes
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        return folder


def registry_binary() -> Path:
    """docker-registry from PATH, or unpacked from Debian's package.

    Raises: privateapt.AptError.
    """
    if not os.environ.get("CROSSDOCK_DEV_UNPACKED") and (found := shutil.which("docker-registry")):
        return Path(found)
    folder = privateapt.fetch_unpacked("docker-registry", suite="bookworm", packages=["docker-registry"])
    return folder / "usr/bin/docker-registry"


class Registry(_Service):
    """A registry (CNCF distribution) on a free port of 127.0.0.1; ``with Registry() as registry``.

    ``auth`` asks for basic authentication (:data:`USERNAME`, :data:`PASSWORD`). ``tls`` serves HTTPS with a
    certificate for localhost and 127.0.0.1 signed by a CA made for it (:attr:`ca`). ``mirror_of`` makes it a pull-through cache.
    ``port`` is used when it is free.
    """

    def __init__(
        self,
        *,
        auth: bool = False,
        tls: bool = False,
        mirror_of: str | None = None,
        storage: Path | None = None,
        port: int = 0,
    ) -> None:
        super().__init__()
        self._auth, self._tls, self._mirror_of, self._storage = auth, tls, mirror_of, storage
        self._port = port if port and _is_free(port) else 0
        #: ``127.0.0.1:PORT``
        self.host = ""
        #: certificate of the CA, when ``tls``
        self.ca: Path | None = None
        #: folder of the registry's own files
        self.folder = Path()
        self.log = Path()

    def _start(self, stack: contextlib.ExitStack) -> None:
        binary = registry_binary()
        self.folder = self._scratch(stack, "crossdock-registry-")
        self.log = self.folder / "log"
        config = self.folder / "config.json"  # JSON is YAML
        config.write_text(json.dumps(self._config()))
        process = Process([str(binary), "serve", str(config)], log=self.log, env={"HOME": str(self.folder)})
        stack.callback(process.stop)
        process.wait_until(self._ready, what="docker-registry")

    def _config(self) -> dict[str, object]:
        http_section: dict[str, object] = {"addr": f"127.0.0.1:{self._port}", "secret": "loopback"}
        config: dict[str, object] = {
            "version": 0.1,
            "log": {"level": "info", "accesslog": {"disabled": False}},
            "storage": {
                "filesystem": {"rootdirectory": str(self._storage or self.folder / "data")},
                "delete": {"enabled": True},
                "redirect": {"disable": True},
            },
            "http": http_section,
        }
        if self._auth:
            (self.folder / "htpasswd").write_text(_HTPASSWD)
            config["auth"] = {"htpasswd": {"realm": "crossdock test", "path": str(self.folder / "htpasswd")}}
        if self._tls:
            authority = certificates.CertificateAuthority(self.folder / "tls")
            certificate, key = authority.issue("localhost", ["DNS:localhost", "IP:127.0.0.1"])
            http_section["tls"] = {"certificate": str(certificate), "key": str(key)}
            self.ca = authority.certificate
        if self._mirror_of:
            config["proxy"] = {"remoteurl": self._mirror_of}
        return config

    def _ready(self) -> bool:
        # port 0 was asked for, so the log is what knows the port: no race with other programs
        found = re.search(r"listening on 127\.0\.0\.1:(\d+)", self.log.read_text(errors="replace"))
        if not found:
            return False
        self.host = f"127.0.0.1:{found.group(1)}"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(found.group(1))), 1):
            return True
        return False


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def engine_folder(version: str) -> Path:
    """The unpacked programs of an Engine of :data:`ENGINES`.

    Raises: privateapt.AptError.
    """
    suite, packages = ENGINES[version]
    return privateapt.fetch_unpacked(f"docker-{version}", suite=suite, packages=packages)


class DockerEngine(_Service):
    """A Docker Engine with its own data, socket and namespaces; needs root. Containers get ``--network none``.

    ``containerd_store`` turns the containerd image store on (26.1: multi-platform images). ``data`` is a folder to keep
    images in; without it they go with the Engine. ``bounded`` lets privileged containers run where root lacks a
    capability (scripts/boundedruntime.py).
    """

    def __init__(
        self,
        version: str = "20.10",
        *,
        containerd_store: bool = False,
        insecure: Sequence[str] = (),
        data: Path | None = None,
        bounded: bool = False,
    ) -> None:
        super().__init__()
        self._data = data
        self._bounded = bounded
        self.version = version
        self._containerd_store = containerd_store
        self._insecure = insecure
        #: process id of dockerd
        self.pid = 0
        #: value for DOCKER_HOST
        self.address = ""
        self.socket = Path()
        self.folder = Path()
        self.log = Path()
        #: the docker client of the same packages, when they have one
        self.client: Path | None = None
        #: folder of CLI plug-ins (docker-buildx) of the same packages, when they have one
        self.plugins: Path | None = None

    def _start(self, stack: contextlib.ExitStack) -> None:
        programs = engine_folder(self.version)
        client, plugins = programs / "usr/bin/docker", programs / "usr/libexec/docker/cli-plugins"
        self.client = client if client.exists() else None
        self.plugins = plugins if plugins.exists() else None
        self.folder = self._scratch(stack, "crossdock-docker-")
        self.log = self.folder / "log"
        self.socket = self.folder / "docker.sock"
        self.address = f"unix://{self.socket}"
        # not where the source lies: a checkout may be on a file system that runs nothing
        runtime = self.folder / "boundedruntime"
        if self._bounded:
            shutil.copy(Path(__file__).with_name("boundedruntime.py"), runtime)
        (self.folder / "daemon.json").write_text(
            json.dumps(
                {
                    "features": {"containerd-snapshotter": self._containerd_store},
                    "insecure-registries": list(self._insecure),
                    **({"runtimes": {"bounded": {"path": str(runtime)}}} if self._bounded else {}),
                    **({"default-runtime": "bounded"} if self._bounded else {}),
                }
            )
        )
        oldest = engine_folder("20.10")
        bins = [str(folder / part) for folder in (programs, oldest) for part in ("usr/bin", "usr/sbin")]
        libraries = {str(library.parent) for library in oldest.rglob("lib*.so.*")}
        env = {
            "PATH": ":".join([*bins, "/usr/sbin", "/usr/bin", "/sbin", "/bin"]),
            "LD_LIBRARY_PATH": ":".join(sorted(libraries)),
            "HOME": str(self.folder),
        }
        process = Process(
            [
                *NAMESPACES,
                str(programs / "usr/sbin/dockerd"),
                *("--config-file", str(self.folder / "daemon.json")),
                *(
                    "--data-root",
                    str(self._data or self.folder / "data"),
                    "--exec-root",
                    str(self.folder / "exec"),
                ),
                *("--pidfile", str(self.folder / "pid"), "--host", self.address, "--group", str(os.getgid())),
                *("--bridge", "none", "--iptables=false", "--ip6tables=false", "--log-level", "warn"),
                *("--cgroup-parent", f"/{self.folder.name}"),
            ],
            log=self.log,
            env=env,
        )
        stack.callback(_remove_cgroups, self.folder.name)
        stack.callback(process.stop)
        process.wait_until(self._ready, what=f"dockerd {self.version}")
        self.pid = process.pid

    def request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> bytes:
        """One request to the Engine's API; returns the body.

        Raises: ServiceError on a status of 400 or more.
        """
        connection = _UnixConnection(self.socket)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        if answer.status >= 400:
            msg = f"{method} {path}: HTTP {answer.status}: {data[:500]!r}"
            raise ServiceError(msg)
        return data

    def _ready(self) -> bool:
        if not self.socket.exists():
            return False
        try:
            return self.request("GET", "/_ping") == b"OK"
        except (OSError, http.client.HTTPException, ServiceError):
            return False


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=120)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
