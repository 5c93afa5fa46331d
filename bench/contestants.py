"""Who is compared: Crossdock and the peers found on this machine.

A contestant builds what a :class:`Job` says, with a warm daemon where it has one, and can forget all it has cached.
Peers, first that fits: ``buildkitd`` with ``docker-buildx`` (or ``buildx``) from PATH; a Docker Engine 26.1 with
Debian's buildx, unpacked from Debian's packages. ``buildah`` from PATH comes third where it can do the case.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import idmap
import services

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, kw_only=True)
class Job:
    """One build, in words that every contestant knows."""

    context: Path
    #: where to push; empty: build only
    push: str = ""
    platforms: Sequence[str] = ()
    build_args: Mapping[str, str] = field(default_factory=dict)
    no_cache: bool = False
    #: compression of layers: gzip or zstd
    compression: str = ""


class Contestant(ABC):
    """Base: the command line that buildx and Crossdock share, and a state folder that can be left behind.

    To forget is to go on with an empty folder, not to remove the old one: ext4 takes a millisecond for each new file
    for minutes after thousands of files were removed, whoever makes it. All folders go at the very end.
    """

    name: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "docker").mkdir(parents=True, exist_ok=True)
        (folder / "docker/config.json").write_text("{}")
        self.env: dict[str, str] = {
            **os.environ,
            "DOCKER_CONFIG": str(folder / "docker"),
            "HOME": str(folder),
        }
        #: process id of the daemon, 0 for none
        self.daemon = 0
        #: where what is cached is kept
        self.state = folder
        self._number = 0
        self._running = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.forget()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def forget(self) -> None:
        """Go on, or begin, with nothing cached and with a daemon that is ready."""
        self._running.close()
        self._number += 1
        self.state = self.folder / f"state-{self._number}"
        self.state.mkdir()
        with contextlib.ExitStack() as stack:
            self.start(stack)
            self._running = stack.pop_all()

    @abstractmethod
    def start(self, stack: contextlib.ExitStack) -> None:
        """Start what serves builds, on :attr:`state`; its end is registered on ``stack``."""

    @abstractmethod
    def version(self) -> str:
        """Name and version, as it tells them."""

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder)

    def command(self, job: Job) -> list[str]:
        """The command that does ``job``."""
        arguments = ["--progress", "quiet"]
        if job.platforms:
            arguments += ["--platform", ",".join(job.platforms)]
        for name, value in job.build_args.items():
            arguments += ["--build-arg", f"{name}={value}"]
        if job.no_cache:
            arguments.append("--no-cache")
        if job.push:
            compression = f",compression={job.compression},force-compression=true" if job.compression else ""
            arguments += ["--output", f"type=image,name={job.push},push=true{compression}"]
        else:
            arguments += ["--output", "type=cacheonly"]
        return [*self.program(), *arguments, str(job.context)]

    @abstractmethod
    def program(self) -> list[str]:
        """The words before the flags."""


class Crossdock(Contestant):
    """This project, from the environment that runs the benchmark."""

    name = "crossdock"

    def start(self, stack: contextlib.ExitStack) -> None:  # noqa: ARG002 - there is no daemon
        """Choose the store. Python may keep what it compiles, as it does where the package is installed."""
        self.env["CROSSDOCK_ROOT"] = str(self.state)
        self.env.pop("PYTHONDONTWRITEBYTECODE", None)

    def version(self) -> str:
        """What ``crossdock version`` says."""
        return _first_line([str(Path(sys.executable).with_name("crossdock")), "version"], self.env)

    def program(self) -> list[str]:
        """The installed command."""
        return [str(Path(sys.executable).with_name("crossdock")), "build", "--builder", "embedded"]

    def remove(self) -> None:
        """Remove the stores, whose files may belong to other ids."""
        idmap.remove_tree(self.folder)


class _Buildx(Contestant):
    buildx: Path

    def program(self) -> list[str]:
        """Buildx with the builder made at the start; without the attestations that it adds by default."""
        return [str(self.buildx), "build", "--provenance=false"]

    def version(self) -> str:
        """Buildx, and what serves it."""
        return f"{_first_line([str(self.buildx), 'version'], self.env)} with {self.served_by()}"

    @abstractmethod
    def served_by(self) -> str:
        """Name and version of the daemon."""

    def control(self, *arguments: str) -> None:
        """Run a command of buildx that must work."""
        subprocess.run([str(self.buildx), *arguments], env=self.env, check=True, capture_output=True)


class Buildkit(_Buildx):
    """Buildkitd and buildx from PATH."""

    name = "buildx+buildkitd"

    def start(self, stack: contextlib.ExitStack) -> None:
        """Start buildkitd in namespaces of its own, with runc, and a builder for it."""
        self.buildx = buildx_on_path() or Path("docker-buildx")
        socket = self.state / "buildkitd.sock"
        process = services.Process(
            [
                *services.NAMESPACES,
                *(shutil.which("buildkitd") or "buildkitd", "--root", str(self.state / "root")),
                *("--addr", f"unix://{socket}", "--oci-worker-binary", "runc", "--group", str(os.getgid())),
            ],
            log=self.folder / "buildkitd.log",
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder)},
        )
        stack.callback(process.stop)
        process.wait_until(socket.exists, what="buildkitd")
        self.daemon = process.pid
        self.control("create", "--name", self.state.name, "--use", "--driver", "remote", f"unix://{socket}")
        self.control("inspect", "--bootstrap")

    def served_by(self) -> str:
        """Buildkitd's own word."""
        return _first_line(["buildkitd", "--version"], self.env)


class Served(_Buildx):
    """Buildx from PATH, and ``crossdock serve``: both sides with a warm daemon and the same client."""

    name = "buildx+crossdock serve"

    def start(self, stack: contextlib.ExitStack) -> None:
        """Start the server on the state folder, and a builder for it."""
        self.buildx = buildx_on_path() or Path("docker-buildx")
        socket = self.state / "serve.sock"
        program = Path(sys.executable).with_name("crossdock")
        environ = {name: text for name, text in self.env.items() if name != "PYTHONDONTWRITEBYTECODE"}
        process = services.Process(
            [str(program), "serve", "--root", str(self.state / "root"), "--addr", f"unix://{socket}"],
            log=self.folder / "serve.log",
            env=environ,
        )
        stack.callback(process.stop)
        process.wait_until(socket.exists, what="crossdock serve")
        # Two processes watch over the one that serves.
        self.daemon = _only_child(_only_child(process.pid))
        self.control("create", "--name", self.state.name, "--use", "--driver", "remote", f"unix://{socket}")
        self.control("inspect", "--bootstrap")

    def served_by(self) -> str:
        """This project."""
        return "crossdock serve"

    def remove(self) -> None:
        """Remove the stores, whose files may belong to other ids."""
        idmap.remove_tree(self.folder)


class DockerBuild(_Buildx):
    """Docker Engine 26.1 with the containerd image store (BuildKit inside) and Debian's buildx."""

    name = "docker 26.1 (BuildKit)"

    def start(self, stack: contextlib.ExitStack) -> None:
        """Start the Engine from unpacked packages."""
        engine = services.DockerEngine("26.1", containerd_store=True, data=self.state)
        stack.enter_context(engine)
        if engine.plugins is None:
            msg = "the Engine's packages have no docker-buildx"
            raise services.ServiceError(msg)
        self.buildx = engine.plugins / "docker-buildx"
        self.env["DOCKER_HOST"] = engine.address
        self.daemon = engine.pid
        self.control("inspect", "--bootstrap")

    def served_by(self) -> str:
        """The Engine."""
        return "Docker Engine 26.1 (containerd store)"

    def program(self) -> list[str]:
        """The engine has no bridge, so steps share the host's network, as everywhere else here."""
        return [*super().program(), "--network", "host", "--allow", "network.host"]


class Buildah(Contestant):
    """Buildah from PATH, as root with its own storage."""

    name = "buildah"

    def start(self, stack: contextlib.ExitStack) -> None:
        """Unmount at the end what buildah leaves mounted."""
        command = [*self.program(), "umount", "--all"]
        stack.callback(subprocess.run, command, env=self.env, check=False, capture_output=True)

    def version(self) -> str:
        """What ``buildah --version`` says."""
        return _first_line(["buildah", "--version"], self.env)

    def program(self) -> list[str]:
        """Buildah with its storage."""
        root, runroot = self.state / "root", self.state / "runroot"
        return ["buildah", "--root", str(root), "--runroot", str(runroot), "--storage-driver", "overlay"]

    def command(self, job: Job) -> list[str]:
        """Build into a local manifest list, then push it whole."""
        name = "bench-list"
        build = [*self.program(), "build", "--quiet", "--isolation", "chroot", "--tls-verify=false"]
        build.append("--no-cache" if job.no_cache else "--layers")
        for key, value in job.build_args.items():
            build += ["--build-arg", f"{key}={value}"]
        if job.platforms:
            build += ["--platform", ",".join(job.platforms)]
        build += ["--manifest", name, str(job.context)]
        # one name serves all runs, so the list of the run before goes first
        script = [
            f"{shlex.join([*self.program(), 'manifest', 'rm', name])} >/dev/null 2>&1 || true",
            shlex.join(build),
        ]
        if job.push:
            push = [*self.program(), "manifest", "push", "--all", "--tls-verify=false"]
            if job.compression:
                push += ["--compression-format", job.compression]
            script.append(shlex.join([*push, name, f"docker://{job.push}"]))
        return ["sh", "-ec", "\n".join(script)]


def _only_child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def _first_line(command: Sequence[str], env: Mapping[str, str]) -> str:
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    return next(iter(done.stdout.splitlines()), "").strip()


def buildx_on_path() -> Path | None:
    """Buildx where docker or a user has put it."""
    found = shutil.which("docker-buildx") or shutil.which("buildx")
    return Path(found) if found else None


def peers(names: Sequence[str]) -> list[type[Contestant]]:
    """The peers to compare with: those of ``names``, or what this machine has.

    The Engine stands in where buildkitd or buildx is absent. All need root.
    """
    known: dict[str, type[Contestant]] = {
        "buildkitd": Buildkit,
        "docker": DockerBuild,
        "buildah": Buildah,
        "serve": Served,
    }
    if names:
        return [known[name] for name in names]
    if os.geteuid() != 0:
        print("bench: not root, so no peer can be started", file=sys.stderr)
        return []
    chosen: list[type[Contestant]] = [
        Buildkit if shutil.which("buildkitd") and buildx_on_path() else DockerBuild
    ]
    if shutil.which("buildah"):
        chosen.append(Buildah)
    return chosen
