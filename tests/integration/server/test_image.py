"""The image of packaging/image: built with crossdock itself, run by a real Engine, driven by buildx and by our own driver.

Debian's packages are not fetched here: the stage ``system`` is made of this machine's own Python, runtime and emulator with
the libraries they need, and ``program`` of the packages that the tests run with.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import baseimage
from support.programs import add_program, put

if TYPE_CHECKING:
    from collections.abc import Iterator

    import services
    from support.cli import Crossdock
    from support.servers import BaseImages, DockerCli

pytestmark = [
    pytest.mark.needs("root", "docker", "dockercli", "base", "qemu", "crun", "userns", "overlay"),
    pytest.mark.slow,
]

REPOSITORY = Path(__file__).resolve().parents[3]
IMAGE = "case/crossdock:1"
_LAUNCHER = """#!/usr/bin/python3
import sys
sys.path.insert(0, "/opt/crossdock/lib")
from crossdock.__main__ import main
sys.exit(main())
"""


def system_tree(root: Path) -> Path:
    """What Debian's packages would bring."""
    (busybox,) = baseimage.busybox_packages(["amd64"]).values()
    put(root, busybox, "/bin/busybox")
    for applet in ("sh", "ln", "cat", "mkdir"):
        (root / "bin" / applet).symlink_to("busybox")
    add_program(root, sys._base_executable, "/usr/bin/python3")  # type: ignore[attr-defined]
    library = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix}))
    ignored = shutil.ignore_patterns(
        "test", "tests", "idlelib", "lib2to3", "ensurepip", "site-packages", "dist-packages"
    )
    shutil.copytree(library, root / str(library).lstrip("/"), ignore=ignored)
    for module in (library / "lib-dynload").glob("*.so"):
        add_program(root, str(module), str(module))
    for name in ("crun", "qemu-aarch64-static"):
        found = shutil.which(name)
        assert found, name
        add_program(root, found, f"/usr/bin/{name}")
    (root / "tmp").mkdir(mode=0o1777)
    (root / "usr/local/bin").mkdir(parents=True)
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    return root


def program_tree(root: Path, system: Path) -> Path:
    """What pip would bring; libraries that extensions need go into ``system``."""
    lib = root / "opt/crossdock/lib"
    shutil.copytree(
        REPOSITORY / "src/crossdock", lib / "crossdock", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in runtime_packages():
        for file in importlib.metadata.files(name) or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                put(lib, Path(str(file.locate())), str(file))
    for extension in lib.rglob("*.so"):
        add_program(system, str(extension), f"/unused/{extension.name}")
    shutil.rmtree(system / "unused")
    launcher = root / "opt/crossdock/bin/crossdock"
    launcher.parent.mkdir()
    launcher.write_text(_LAUNCHER)
    launcher.chmod(0o755)
    return root


def runtime_packages() -> set[str]:
    """The distributions that crossdock needs here, without extras."""
    found: set[str] = set()
    wanted = ["crossdock"]
    while wanted:
        for text in importlib.metadata.requires(wanted.pop()) or ():
            name = re.split(r"[ ;<>=!~\[(]", text, maxsplit=1)[0]
            if "extra ==" in text or name in found:
                continue
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # for other systems
                importlib.metadata.distribution(name)
                found.add(name)
                wanted.append(name)
    return found


@pytest.fixture(scope="module")
def image(docker_engine_bounded: services.DockerEngine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image, in the Engine; built by the crossdock of this tree."""
    from support.cli import PROGRAM

    folder = tmp_path_factory.mktemp("image")
    (folder / "empty").mkdir()
    system = system_tree(folder / "system")
    command = [
        *(PROGRAM, "build", "-f", REPOSITORY / "packaging/image/Dockerfile"),
        *("--build-context", f"system={system}"),
        *("--build-context", f"program={program_tree(folder / 'program', system)}"),
        *("-t", IMAGE, "-o", f"type=docker,dest={folder / 'image.tar'}", folder / "empty"),
    ]
    environment: dict[str, Any] = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(folder),
        "DOCKER_CONFIG": str(folder / "docker"),
        "CROSSDOCK_ROOT": str(folder / "store"),
    }
    done = subprocess.run(
        [str(word) for word in command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    docker_engine_bounded.request("POST", "/images/load", (folder / "image.tar").read_bytes())
    shutil.rmtree(system)
    return IMAGE


@pytest.fixture
def cli(docker_engine_bounded: services.DockerEngine, docker_cli: DockerCli) -> Iterator[DockerCli]:
    """Debian's docker client; what builders it made is gone afterwards."""
    connected = dataclasses.replace(docker_cli, host=docker_engine_bounded.address)
    yield connected
    for listed, remove in (("ps -aq", "rm -f"), ("volume ls -q", "volume rm -f")):
        for name in connected(*listed.split()).stdout.split():
            connected(*remove.split(), name, check=False)


def options(engine: services.DockerEngine) -> list[str]:
    values = (f"image={IMAGE}", "network=host", f"cgroup-parent=/{engine.folder.name}")
    return [f"--driver-opt={value}" for value in values]


def context(folder: Path, base: BaseImages) -> Path:
    folder.mkdir()
    (folder / "Dockerfile").write_text(f"FROM {base.index}\nCOPY file /file\nRUN uname -m > /machine\n")
    (folder / "file").write_text("sent")
    return folder


def test_buildx_makes_a_container_of_it_and_builds(
    docker_engine_bounded: services.DockerEngine,
    image: str,
    cli: DockerCli,
    base: BaseImages,
    tmp_path: Path,
) -> None:
    del image

    def buildx(*args: str | Path) -> subprocess.CompletedProcess[str]:
        command = [cli.buildx, *args]
        done = subprocess.run(
            command, env=cli.environment(), capture_output=True, text=True, timeout=240, check=False
        )
        if done.returncode:
            logs = cli("logs", "buildx_buildkit_boxed0", check=False)
            pytest.fail(f"{command}: {done.stdout}{done.stderr}\n{logs.stdout}{logs.stderr}")
        return done

    buildx(
        "create", "--name", "boxed", "--use", "--driver", "docker-container", *options(docker_engine_bounded)
    )
    shown = buildx("inspect", "--bootstrap").stdout
    assert re.search(r"Status: +running", shown)
    assert re.search(r"crossdock.version: +\S", shown)
    assert re.search(r"(?i)buildkit.*: +v[0-9.]+\+crossdock", shown)
    folder = context(tmp_path / "c", base)
    two = ("--platform", "linux/amd64,linux/arm64")
    buildx("build", "--progress", "plain", *two, "-o", tmp_path / "out", folder)
    assert (tmp_path / "out/linux_amd64/machine").read_text() == "x86_64\n"
    assert (tmp_path / "out/linux_arm64/machine").read_text() == "aarch64\n"
    buildx("stop", "boxed")
    again = buildx("build", "--progress", "plain", *two, "-o", tmp_path / "again", folder)
    assert again.stderr.count("CACHED") >= 4
    buildx("rm", "boxed")


def test_our_own_driver_builds_in_it(
    docker_engine_bounded: services.DockerEngine,
    image: str,
    crossdock: Crossdock,
    cli: DockerCli,
    base: BaseImages,
    tmp_path: Path,
) -> None:
    del image
    env = {"DOCKER_HOST": cli.host}
    made = ("create", "--name", "boxed", "--driver", "docker-container", *options(docker_engine_bounded))
    crossdock(*made, env=env).ok()
    crossdock(
        "build", "--builder", "boxed", "-o", tmp_path / "out", context(tmp_path / "c", base), env=env
    ).ok()
    assert (tmp_path / "out/file").read_text() == "sent"
    crossdock("rm", "boxed", env=env).ok()
