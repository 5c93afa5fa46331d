"""Who is compared: Crossdock and the peers found on this machine.

A contestant builds what a :class:`Job` says, with a warm daemon where it has one, and can forget all it has cached.
Peers, first that fits: ``buildkitd`` with ``docker-buildx`` (or ``buildx``) from PATH; a Docker Engine 26.1 with
Debian's buildx, unpacked from Debian's packages. ``buildah`` from PATH comes third where it can do the case.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import urllib.parse
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import idmap
import services

if TYPE_CHECKING:
    import contextlib
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
    """Base: the command line that buildx and Crossdock share."""

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

    @abstractmethod
    def start(self, stack: contextlib.ExitStack) -> None:
        """Start what serves builds; its end is registered on ``stack``."""

    @abstractmethod
    def version(self) -> str:
        """Name and version, as it tells them."""

    @abstractmethod
    def forget(self) -> None:
        """Drop all that is cached."""

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

    def start(self, stack: contextlib.ExitStack) -> None:
        """No daemon."""
        self.env["CROSSDOCK_ROOT"] = str(self.folder / "store")
        stack.callback(self.forget)

    def version(self) -> str:
        """What ``crossdock version`` says."""
        return _first_line([str(Path(sys.executable).with_name("crossdock")), "version"], self.env)

    def forget(self) -> None:
        """Remove the store."""
        idmap.remove_tree(self.folder / "store")

    def program(self) -> list[str]:
        """The installed command."""
        return [str(Path(sys.executable).with_name("crossdock")), "build", "--builder", "embedded"]


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

    def forget(self) -> None:
        """Prune everything."""
        subprocess.run([str(self.buildx), "prune", "-af"], env=self.env, check=True, capture_output=True)


class Buildkit(_Buildx):
    """Buildkitd and buildx from PATH."""

    name = "buildx+buildkitd"

    def start(self, stack: contextlib.ExitStack) -> None:
        """Start buildkitd in namespaces of its own, with runc."""
        self.buildx = buildx_on_path() or Path("docker-buildx")
        socket = self.folder / "buildkitd.sock"
        log = self.folder / "buildkitd.log"
        process = services.Process(
            [
                *services.NAMESPACES,
                *(shutil.which("buildkitd") or "buildkitd", "--root", str(self.folder / "root")),
                *("--addr", f"unix://{socket}", "--oci-worker-binary", "runc", "--group", str(os.getgid())),
            ],
            log=log,
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder)},
        )
        stack.callback(process.stop)
        process.wait_until(socket.exists, what="buildkitd")
        self.daemon = process.pid
        create = ["create", "--name", "peer", "--use", "--driver", "remote", f"unix://{socket}"]
        subprocess.run([str(self.buildx), *create], env=self.env, check=True, capture_output=True)
        subprocess.run(
            [str(self.buildx), "inspect", "--bootstrap"], env=self.env, check=True, capture_output=True
        )

    def served_by(self) -> str:
        """Buildkitd's own word."""
        return _first_line(["buildkitd", "--version"], self.env)


class DockerBuild(_Buildx):
    """Docker Engine 26.1 with the containerd image store (BuildKit inside) and Debian's buildx."""

    name = "docker 26.1 (BuildKit)"

    def start(self, stack: contextlib.ExitStack) -> None:
        """Start the Engine from unpacked packages."""
        engine = stack.enter_context(services.DockerEngine("26.1", containerd_store=True))
        self._engine = engine
        assert engine.plugins is not None
        self.buildx = engine.plugins / "docker-buildx"
        self.env["DOCKER_HOST"] = engine.address
        self.daemon = engine.pid

    def served_by(self) -> str:
        """The Engine."""
        return "Docker Engine 26.1 (containerd store)"

    def forget(self) -> None:
        """Prune the build cache and remove every image."""
        super().forget()
        filters = urllib.parse.quote('{"dangling":["false"]}')
        self._engine.request("POST", f"/images/prune?filters={filters}")

    def program(self) -> list[str]:
        """The engine has no bridge, so steps share the host's network, as everywhere else here."""
        return [*super().program(), "--network", "host", "--allow", "network.host"]


class Buildah(Contestant):
    """Buildah from PATH, as root with its own storage."""

    name = "buildah"

    def start(self, stack: contextlib.ExitStack) -> None:
        """No daemon."""
        stack.callback(self.forget)

    def version(self) -> str:
        """What ``buildah --version`` says."""
        return _first_line(["buildah", "--version"], self.env)

    def forget(self) -> None:
        """Remove the storage."""
        subprocess.run(
            [*self.program(), "rmi", "--all", "--force"], env=self.env, check=False, capture_output=True
        )
        subprocess.run([*self.program(), "umount", "--all"], env=self.env, check=False, capture_output=True)
        shutil.rmtree(self.folder / "root", ignore_errors=True)

    def program(self) -> list[str]:
        """Buildah with its storage."""
        root, runroot = self.folder / "root", self.folder / "runroot"
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
        script = [
            shlex.join([*self.program(), "manifest", "rm", name]) + " >/dev/null 2>&1 || true",
            shlex.join(build),
        ]
        if job.push:
            push = [*self.program(), "manifest", "push", "--all", "--tls-verify=false"]
            if job.compression:
                push += ["--compression-format", job.compression]
            script.append(shlex.join([*push, name, f"docker://{job.push}"]))
        return ["sh", "-ec", "\n".join(script)]


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
    known: dict[str, type[Contestant]] = {"buildkitd": Buildkit, "docker": DockerBuild, "buildah": Buildah}
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
