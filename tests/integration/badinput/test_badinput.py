"""Bad input through the command: one clear error, an exit code that is not 0, and nothing half-written.

What other tests of the command cover is not repeated: missing sources, failing steps, unknown instructions, bases without
the platform and missing images (``cli/test_build.py``), archives with ``..`` (``dockerfile/test_copy_add.py``), user
namespaces (``sandbox/test_ladder.py``), full disks and prunes (``fault``).
"""

from __future__ import annotations

import gzip
import io
import os
import re
import shutil
import socket
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crossdock.image.platform import local_platform
from support.cli import PROGRAM, Ran
from support.imagekit import Layer, Shelf, layer
from support.scripted import Reply, ScriptedServer, error_reply

if TYPE_CHECKING:
    from collections.abc import Iterator

    import services
    from support.cli import Crossdock
    from support.servers import BaseImages

pytestmark = pytest.mark.needs("crun", "userns", "overlay")

HERE = str(local_platform())


class Project:
    """A context to build from, and places where results would be."""

    def __init__(self, crossdock: Crossdock) -> None:
        self.crossdock = crossdock
        self.folder = crossdock.folder / "context"
        self.folder.mkdir()
        self.results = crossdock.folder / "results"
        self.results.mkdir()

    def run(self, dockerfile: str, *flags: str | Path, files: dict[str, bytes] | None = None) -> Ran:
        """Build to an archive and a metadata file."""
        (self.folder / "Dockerfile").write_text(dockerfile)
        for name, data in (files or {}).items():
            (self.folder / name).write_bytes(data)
        outputs = flags or ("-o", f"type=oci,dest={self.results}/out.tar")
        results: tuple[str | Path, ...] = ("--metadata-file", self.results / "meta.json")
        if not any("type=local" in str(flag) or "type=tar" in str(flag) for flag in outputs):
            results += ("--iidfile", self.results / "iid")
        return self.crossdock("build", self.folder, "--progress=plain", *results, *outputs)

    def refused(self, done: Ran, *words: str) -> Ran:
        """Fail the case unless there is one error, with these words, and nothing was written."""
        done.failed()
        errors = re.findall(r"^ERROR: .*", done.err, re.MULTILINE)
        assert len(errors) == 1, done.err
        for word in words:
            assert word in done.err, done.err
        assert os.listdir(self.results) == []
        return done


@pytest.fixture
def project(crossdock: Crossdock) -> Project:
    return Project(crossdock)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as made:
        yield made


class TestDockerfile:
    @pytest.mark.parametrize(
        ("text", "flags", "words"),
        [
            (
                "FROM scratch\nCOPY --form=x a b\n",
                (),
                ("Dockerfile:2", "unknown flag: --form", "did you mean from?"),
            ),
            ("FROM scratch AS base\n", ("--target", "bsae"), ("bsae", "base")),
            (
                "FROM scratch AS a\nCOPY --from=b x /\nFROM scratch AS b\nCOPY --from=a x /\n",
                (),
                ("circular", "Dockerfile:"),
            ),
            ("FROM ${NOTHING}\n", (), ("Dockerfile:1",)),
            ("FROM scratch\nENV a\n", (), ("Dockerfile:2",)),
        ],
        ids=["unknown flag", "unknown target", "stages in a circle", "empty base name", "half an ENV"],
    )
    def test_a_mistake_is_shown_where_it_is(
        self, project: Project, text: str, flags: tuple[str, ...], words: tuple[str, ...]
    ) -> None:
        output = ("-o", f"type=oci,dest={project.results}/out.tar")
        project.refused(project.run(text, *output, *flags), *words)


class TestPlatforms:
    def test_a_builder_that_was_made_for_others(self, project: Project) -> None:
        project.crossdock(
            "create", "--name", "narrow", "--driver", "embedded", "--platform", "linux/amd64"
        ).ok()
        output = ("-o", f"type=oci,dest={project.results}/out.tar")
        done = project.run(
            "FROM scratch\nWORKDIR /x\n",
            *output,
            "--builder",
            "narrow",
            "--platform",
            "linux/amd64,linux/s390x",
        )
        project.refused(
            done, "does not offer linux/s390x", "create --name narrow", "--platform linux/amd64,linux/s390x"
        )

    def test_a_platform_that_is_none(self, project: Project) -> None:
        output = ("-o", f"type=oci,dest={project.results}/out.tar")
        project.refused(project.run("FROM scratch\n", *output, "--platform", "linux/"), "linux/")

    @pytest.mark.needs("base")
    def test_no_emulator(self, project: Project, base: BaseImages) -> None:
        if any(Path("/proc/sys/fs/binfmt_misc").glob("qemu-s390x")):
            pytest.skip("the host has a handler for s390x")
        (project.folder / "Dockerfile").write_text(f"FROM {base.index}\nRUN true\n")
        hide = (
            'for f in /usr/bin/qemu-* /usr/local/bin/qemu-*; do test -f "$f" && mount --bind /dev/null "$f"; done; '
            'exec "$@"'
        )
        done = subprocess.run(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", hide, "sh", PROGRAM, "build",
             project.folder, "--platform", "linux/s390x", "--progress=plain"],
            env={**project.crossdock.environment, "CROSSDOCK_QEMU_PATH": str(project.results)},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        ran = Ran("build", done.returncode, done.stdout, done.stderr)
        project.refused(
            ran, "cannot run s390x programs: no QEMU for it was found", "CROSSDOCK_QEMU_PATH", "qemu"
        )


class TestRegistries:
    @pytest.mark.parametrize(
        ("reply", "words"),
        [
            (
                error_reply(401, "UNAUTHORIZED", **{"www-authenticate": 'Basic realm="r"'}),
                ("401", "docker login"),
            ),
            (error_reply(403, "DENIED"), ("403", "docker login")),
            (error_reply(404, "NAME_UNKNOWN"), ("404",)),
            (error_reply(418, "TEAPOT"), ("418",)),
            (Reply(200, b"{}", {"content-type": "text/html"}), ("app:v",)),
        ],
        ids=["401", "403", "404", "an odd status", "not a manifest"],
    )
    def test_a_base_that_is_refused(
        self, project: Project, server: ScriptedServer, reply: Reply, words: tuple[str, ...]
    ) -> None:
        server.on("GET", "/v2/", Reply(200, b"{}"))
        for method in ("HEAD", "GET"):
            server.on(method, "/v2/app/manifests/v", reply)
        project.refused(project.run(f"FROM {server.host}/app:v\n"), server.host, "Dockerfile:1", *words)

    @pytest.mark.slow
    def test_a_registry_that_is_broken(self, project: Project, server: ScriptedServer) -> None:
        for method in ("HEAD", "GET"):
            server.on(method, "/v2/app/manifests/v", error_reply(503, "UNAVAILABLE"))
        project.refused(project.run(f"FROM {server.host}/app:v\n"), server.host, "503")
        assert len(server.lines()) > 1, "it was tried again"

    def test_a_registry_that_is_not_there(self, project: Project) -> None:
        with socket.create_server(("127.0.0.1", 0)) as unused:
            host = f"127.0.0.1:{unused.getsockname()[1]}"
        done = project.run(f"FROM {host}/app:v\n")
        project.refused(done, host, "onnection refused", "Dockerfile:1")
        done = project.run("FROM scratch\nWORKDIR /x\n", "-t", f"{host}/app:v", "--push")
        project.refused(done, host, "onnection refused")

    @pytest.mark.needs("registry", "openssl")
    def test_a_certificate_of_nobody_known(self, project: Project, registry_tls: services.Registry) -> None:
        done = project.run(f"FROM {registry_tls.host}/app:v\n")
        project.refused(done, registry_tls.host, "certificate", "certs.d")
        done = project.run("FROM scratch\nWORKDIR /x\n", "-t", f"{registry_tls.host}/app:v", "--push")
        project.refused(done, registry_tls.host, "certificate")

    @pytest.mark.needs("registry")
    def test_a_push_without_a_login(self, project: Project, registry_auth: services.Registry) -> None:
        done = project.run("FROM scratch\nWORKDIR /x\n", "-t", f"{registry_auth.host}/app:v", "--push")
        project.refused(done, registry_auth.host, "401", "docker login")


class TestContent:
    def test_a_layer_that_is_not_what_its_digest_says(self, project: Project, server: ScriptedServer) -> None:
        shelf = Shelf(server)
        good = layer({"file": b"good" * 1000})
        shelf.image(HERE, [good])
        shelf.index("v")
        bad = bytes([*good.blob[:-1], good.blob[-1] ^ 1])
        shelf.blob(good.blob, Reply(200, bad))
        text = f"FROM {shelf.repository}:v\nCOPY --from=0 file /copy\n".replace(
            "--from=0", f"--from={shelf.repository}:v"
        )
        project.refused(project.run(text), good.descriptor.digest)
        project.crossdock("store", "check").ok()
        shelf.blob(good.blob)
        project.run(text).ok()

    def test_a_layer_that_is_no_archive(self, project: Project, server: ScriptedServer) -> None:
        shelf = Shelf(server)
        noise = os.urandom(3000)
        shelf.image(HERE, [Layer(noise, gzip.compress(noise))])
        shelf.index("v")
        text = f"FROM scratch\nCOPY --from={shelf.repository}:v /x /x\n"
        project.refused(project.run(text), "Dockerfile:2")
        project.crossdock("store", "check").ok()

    def test_a_config_that_is_no_json(self, project: Project, server: ScriptedServer) -> None:
        shelf = Shelf(server)
        shelf.image(HERE, [layer({"a": b"a"})], raw_config=b"\xff not json")
        shelf.index("v")
        project.refused(project.run(f"FROM {shelf.repository}:v\n"), "Dockerfile:1")


class TestDestinations:
    @pytest.mark.parametrize(
        "output",
        ["type=oci,dest={file}/x.tar", "type=docker,dest={file}/x.tar", "type=tar,dest={file}/x.tar",
         "type=local,dest={file}/x", "type=oci,dest=/proc/x/out.tar", "type=local,dest=/proc/x"],
    )  # fmt: skip
    def test_one_that_cannot_be_written(self, project: Project, output: str) -> None:
        file = project.crossdock.folder / "file"
        file.write_text("mine")
        done = project.run("FROM scratch\nWORKDIR /x\n", "-o", output.format(file=file))
        project.refused(done, str(file) if "{file}" in output else "/proc/x")
        assert file.read_text() == "mine"

    @pytest.mark.needs("user")
    def test_one_that_belongs_to_somebody_else(self, project: Project) -> None:
        done = project.run("FROM scratch\nWORKDIR /x\n", "-o", "type=oci,dest=/usr/x.tar")
        project.refused(done, "/usr/x.tar", "ermission denied")

    def test_a_directory_where_a_file_should_be(self, project: Project) -> None:
        folder = project.crossdock.folder / "folder"
        folder.mkdir()
        (folder / "kept").write_text("kept")
        done = project.run("FROM scratch\nWORKDIR /x\n", "-o", f"type=oci,dest={folder}")
        project.refused(done, str(folder))
        assert os.listdir(folder) == ["kept"]

    @pytest.mark.parametrize("flag", ["--metadata-file", "--iidfile"])
    def test_result_files_in_folders_that_are_not_there(self, project: Project, flag: str) -> None:
        (project.folder / "Dockerfile").write_text("FROM scratch\nWORKDIR /x\n")
        path = project.results / "absent/file"
        done = project.crossdock("build", project.folder, "--progress=plain", flag, path)
        project.refused(done, str(path))


def hostile(kind: str, outside: Path) -> bytes:
    """An archive that tries to write ``outside``."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:

        def add(name: str, type_: bytes = tarfile.REGTYPE, link: str = "", data: bytes = b"evil") -> None:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = type_, link
            entry.size = len(data) if type_ == tarfile.REGTYPE else 0
            archive.addfile(entry, io.BytesIO(data) if entry.size else None)

        up = "../" * 30
        match kind:
            case "absolute name":
                add(f"{outside}/new")
            case "dots inside":
                add("a/../../../../../../../../" + str(outside) + "/new")
            case "absolute symlink":
                add("link", tarfile.SYMTYPE, str(outside))
                add("link/new")
            case "relative symlink":
                add("link", tarfile.SYMTYPE, f"{up}{outside}")
                add("link/new")
            case "two symlinks":
                add("a", tarfile.SYMTYPE, "b/..")
                add("b", tarfile.SYMTYPE, str(outside))
                add("a/" + outside.name + "/new")
            case "hard link":
                add("link", tarfile.LNKTYPE, f"{up}{outside}/kept")
                add("link")
            case "absolute hard link":
                add("link", tarfile.LNKTYPE, f"{outside}/kept")
                add("link")
            case "hard link through a symlink":
                add("s", tarfile.SYMTYPE, str(outside))
                add("link", tarfile.LNKTYPE, "s/kept")
                add("link")
            case "file over a symlink":
                add("link", tarfile.SYMTYPE, f"{outside}/kept")
                add("link")
            case "directory over a symlink":
                add("link", tarfile.SYMTYPE, str(outside))
                add("link", tarfile.DIRTYPE)
                add("link/new")
            case _:
                raise ValueError(kind)
    return buffer.getvalue()


HOSTILE = [
    "absolute name", "dots inside", "absolute symlink", "relative symlink", "two symlinks", "hard link",
    "absolute hard link", "hard link through a symlink", "file over a symlink", "directory over a symlink",
]  # fmt: skip


class TestHostileArchives:
    @pytest.fixture
    def outside(self) -> Iterator[Path]:
        # not below the case's folder: a path that the worker may write, and that no image has
        folder = Path("/tmp") / f"crossdock-outside-{os.getpid()}"
        folder.mkdir()
        (folder / "kept").write_text("kept")
        yield folder
        shutil.rmtree(folder)

    @pytest.mark.parametrize("kind", HOSTILE)
    @pytest.mark.parametrize("way", ["ADD", "layer", "context"])
    def test_nothing_leaves_its_place(
        self, project: Project, server: ScriptedServer, outside: Path, kind: str, way: str
    ) -> None:
        data = hostile(kind, outside)
        target = project.crossdock.folder / "tree"
        output = ("-o", f"type=local,dest={target}")
        if way == "ADD":
            done = project.run("FROM scratch\nADD a.tar /in/\n", *output, files={"a.tar": data})
        elif way == "layer":
            shelf = Shelf(server)
            shelf.image(HERE, [Layer(data, gzip.compress(data))])
            shelf.index("v")
            done = project.run(f"FROM {shelf.repository}:v\nCOPY Dockerfile /in/\n", *output)
        else:
            done = stdin_build(project, data, target)
        assert "Traceback" not in done.err
        assert os.listdir(outside) == ["kept"]
        assert (outside / "kept").read_text() == "kept"
        assert (outside / "kept").stat().st_nlink == 1
        if done.code == 0:
            inside = {p.name for p in target.rglob("*")} | {p.name for p in target.rglob("*/")}
            assert inside & {"new", "link", "in"}, inside
            shutil.rmtree(project.results)
            project.results.mkdir()
        else:
            project.refused(done, " archive: ")
        project.crossdock("store", "check").ok()


def stdin_build(project: Project, archive: bytes, target: Path) -> Ran:
    """Build with a hostile context on standard input."""
    with_dockerfile = io.BytesIO(archive)
    with tarfile.open(fileobj=with_dockerfile, mode="a") as tar:
        entry = tarfile.TarInfo("Dockerfile")
        text = b"FROM scratch\nCOPY . /in/\n"
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text))
    done = subprocess.run(
        [PROGRAM, "build", "-", "--progress=plain", "-o", f"type=local,dest={target}"],
        env=project.crossdock.environment,
        input=with_dockerfile.getvalue(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    return Ran("build -", done.returncode, done.stdout.decode(), done.stderr.decode())
