"""The same Dockerfile through a Docker Engine's BuildKit and through the embedded engine."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from crossdock.builders.dockerconfig import DockerEndpoint
from crossdock.builders.dockerengine import connect

if TYPE_CHECKING:
    from pathlib import Path

    import services
    from support.cli import Crossdock
    from support.servers import BaseImages

#: what an Engine adds to its own images, or leaves out, whoever builds them
_ENGINE_FIELDS = (
    "created",
    "container",
    "container_config",
    "docker_version",
    "moby.buildkit.buildinfo.v1",
    "id",
)
#: the Engines run without a network of their own
_COMMON = ("--network=host",)
#: BuildKit makes mount points there for a step and removes them, which Crossdock undoes
_TOUCHED = ("etc", "tmp")


@dataclass
class Built:
    """What one builder made."""

    config: dict[str, Any]
    history: list[tuple[str, bool, str]]
    tree: dict[str, tuple[object, ...]]


@dataclass
class Pair:
    """Both builders, with one project."""

    crossdock: Crossdock
    engine: services.DockerEngine
    folder: Path
    base: str
    #: BuildKit 0.8
    old: bool

    def ours(self, name: str, *args: str) -> Built:
        """Build with the embedded engine."""
        archive = self.folder.parent / f"{name}-ours.docker.tar"
        tree = self.folder.parent / f"{name}-ours.tar"
        self.crossdock(
            "build",
            *_COMMON,
            *args,
            "-o",
            f"type=docker,dest={archive}",
            "-o",
            f"type=tar,dest={tree}",
            self.folder,
        ).ok()
        with tarfile.open(archive) as tar:
            manifest = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
            config = json.load(tar.extractfile(manifest[0]["Config"]))  # type: ignore[arg-type]
        return _built(config, tree, old=self.old)

    def theirs(self, name: str, *args: str) -> Built:
        """Build with the Engine."""
        archive = self.folder.parent / f"{name}-theirs.docker.tar"
        tree = self.folder.parent / f"{name}-theirs.tar"
        environment = {"DOCKER_HOST": self.engine.address, "BUILDX_BUILDER": "default"}
        tag = f"parity/{name}:1"
        common = ("build", "--provenance=false", *_COMMON, *args)
        self.crossdock(*common, "-t", tag, "--load", self.folder, env=environment).ok()
        self.crossdock(*common, "-o", f"type=tar,dest={tree}", self.folder, env=environment).ok()
        connection = connect(DockerEndpoint("test", self.engine.address))
        connection.request("GET", f"/images/{tag}/get")
        archive.write_bytes(connection.getresponse().read())
        connection.close()
        with tarfile.open(archive) as tar:
            manifest = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
            config = json.load(tar.extractfile(manifest[0]["Config"]))  # type: ignore[arg-type]
        return _built(config, tree, old=self.old)


def _built(config: dict[str, Any], tree: Path, *, old: bool) -> Built:
    history = [
        (_current_words(h.get("created_by", ""), old=old), bool(h.get("empty_layer")), h.get("comment", ""))
        for h in config.pop("history")
    ]
    config["layers"] = len(config.pop("rootfs")["diff_ids"] or ())
    kept = {k: v for k, v in config.items() if k not in _ENGINE_FIELDS}
    # Engines write what is not set, too.
    kept["config"] = {
        k: v for k, v in (config.get("config") or {}).items() if v not in (None, "", [], {}, False)
    }
    return Built(kept, history, _entries(tree, old=old))


def _current_words(text: str, *, old: bool) -> str:
    """Leave out of a history text what the Engines' BuildKits (0.8, 0.12) write in another way than current ones."""
    kind, _, rest = text.partition(" ")
    if kind == "EXPOSE":
        return " ".join(["EXPOSE", *re.findall(r"\d+/\w+", rest)])
    if kind == "HEALTHCHECK":
        return kind  # the struct is printed another way
    if kind == "ARG":
        return " ".join(
            ["ARG", *(word.partition("=")[0] for word in rest.split())]
        )  # inherited values were left out
    if old and kind in ("ADD", "COPY"):
        return " ".join(
            word for word in text.split(" ") if not word.startswith("--ch")
        )  # flags were left out
    return text


def _entries(path: Path, *, old: bool) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    now = time.time_ns() // 10**9
    with tarfile.open(path) as tar:
        for entry in tar:
            name = entry.name.strip("/").removeprefix("./")
            what: object = entry.linkname
            if entry.isfile():
                file = tar.extractfile(entry)
                what = hashlib.sha256(file.read()).hexdigest()[:12] if file else ""
            elif entry.islnk():
                what = found[entry.linkname.strip("/")][-1]
            kind = "file" if entry.isfile() or entry.islnk() else entry.type.decode()
            # What the build made just now has a time of its own.
            timeless = name in _TOUCHED or (old and entry.isdir())  # 0.8 does not keep directories' times
            when = int(entry.mtime) if entry.mtime < now - 3600 and not timeless else "new"
            found[name] = (kind, oct(entry.mode), entry.uid, entry.gid, when, what)
    found.pop("", None)
    found.pop(".", None)
    return found


@pytest.fixture(params=["docker_engine", "docker_engine_containerd"], ids=["20.10", "26.1"], scope="session")
def engine(request: pytest.FixtureRequest) -> services.DockerEngine:
    """One of the Engines."""
    found: services.DockerEngine = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def pair(
    engine: services.DockerEngine, shared_crossdock: Crossdock, base: BaseImages, tmp_path: Path
) -> Pair:
    """A project folder, the command and one Engine."""
    folder = tmp_path / "context"
    folder.mkdir()
    return Pair(shared_crossdock, engine, folder, base.index, engine.version == "20.10")
