"""Where a build's files come from: directories, standard input, archives, URLs, Git, named contexts."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tarfile
import time
from typing import TYPE_CHECKING

import pytest

from integration.dockerfile.origins import archive, git, make_repository
from support.cli import PROGRAM

if TYPE_CHECKING:
    from pathlib import Path

    from integration.dockerfile.conftest import Project
    from support.cli import Crossdock
    from support.servers import BaseImages

pytestmark = [pytest.mark.needs("base", "crun", "userns", "overlay")]

COPY = "FROM scratch\nCOPY . /\n"


def names(project: Project) -> list[str]:
    return sorted(str(p.relative_to(project.out)) for p in project.out.rglob("*") if not p.is_dir())


def build_from_bytes(crossdock: Crossdock, data: bytes, *args: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [str(PROGRAM), "build", "--progress=plain", *args, "-"],
        input=data,
        env=crossdock.environment,
        cwd=crossdock.folder,
        capture_output=True,
        check=False,
        timeout=120,
    )


class TestDirectories:
    def test_dockerfiles_outside_and_their_ignore_files(self, project: Project, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        outside = tmp_path / "elsewhere/my.Dockerfile"
        outside.write_text(COPY)
        project.run(None, "-f", outside, files={"a": "", "b": "", ".dockerignore": "a\n"}).ok()
        assert names(project) == [".dockerignore", "b"]
        (tmp_path / "elsewhere/my.Dockerfile.dockerignore").write_text("b\n!a\n")
        project.run(None, "-f", outside).ok()
        assert names(project) == [".dockerignore", "a"]

    def test_a_dockerfile_on_standard_input(self, project: Project) -> None:
        project.run(None, "-f", "-", stdin=COPY, files={"a": "", "x/b": "", ".dockerignore": "x"}).ok()
        assert names(project) == [".dockerignore", "a"]
        project.run(None, stdin="FROM scratch\nCOPY <<f /f\nx\nf\n", context="-").ok()
        assert project.read("f") == "x\n"
        failed = project.run(None, stdin="FROM scratch\nCOPY a /\n", context="-").failed(1)
        assert "the build context is empty" in failed.err
        assert (
            "both build context and dockerfile"
            in project.run(None, "-f", "-", context="-", stdin="x").failed(1).err
        )

    def test_a_dockerfile_may_be_ignored_and_still_be_read(self, project: Project) -> None:
        project.run(COPY, files={"a": "", ".dockerignore": "*\n!a\n"}).ok()
        assert names(project) == ["a"]


class TestArchives:
    @pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
    def test_on_standard_input(self, crossdock: Crossdock, tmp_path: Path, mode: str) -> None:
        data = archive({"Dockerfile": COPY, "sub/a": "a"}, mode)
        done = build_from_bytes(crossdock, data, "-o", str(tmp_path / "out"))
        assert done.returncode == 0, done.stderr.decode()
        assert (tmp_path / "out/sub/a").read_text() == "a"

    def test_zstd(self, crossdock: Crossdock, tmp_path: Path) -> None:
        import zstandard

        data = zstandard.compress(archive({"sub/my": COPY, "sub/a": "a"}))
        done = build_from_bytes(crossdock, data, "-f", "sub/my", "-o", str(tmp_path / "out"))
        assert done.returncode == 0, done.stderr.decode()
        assert (tmp_path / "out/sub/a").read_text() == "a"

    @pytest.mark.parametrize("name", ["../evil", "/abs/../../evil", "link/x"])
    def test_hostile_paths_stay_inside_or_are_refused(
        self, crossdock: Crossdock, tmp_path: Path, name: str
    ) -> None:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
            tar.addfile(link)
            for entry, text in (("Dockerfile", COPY), (name, "evil")):
                info = tarfile.TarInfo(entry)
                info.size = len(text)
                tar.addfile(info, io.BytesIO(text.encode()))
        before = {p for p in tmp_path.iterdir() if p.name not in ("crossdock", "out")}
        done = build_from_bytes(crossdock, out.getvalue(), "-o", str(tmp_path / "out"))
        assert b"Traceback" not in done.stderr
        if name == "link/x":  # the link is followed inside the context
            assert done.returncode == 0, done.stderr.decode()
        else:
            assert done.returncode == 1
            assert f"'{name.lstrip('/')}' leads out of the directory".encode() in done.stderr
        assert {p for p in tmp_path.iterdir() if p.name not in ("crossdock", "out")} == before

    def test_by_url_with_another_dockerfile_and_a_local_one(
        self,
        project: Project,
        served: tuple[Path, str],
        tmp_path: Path,
    ) -> None:
        www, url = served
        (www / "c.tgz").write_bytes(
            archive({"Dockerfile": COPY, "a": "a", "other": "FROM scratch\nCOPY a /o\n"}, "w:gz")
        )
        project.run(None, context=f"{url}/c.tgz").ok()
        assert names(project) == ["Dockerfile", "a", "other"]
        project.run(None, "-f", "other", context=f"{url}/c.tgz").ok()
        assert names(project) == ["o"]
        (tmp_path / "local").write_text("FROM scratch\nCOPY a /local\n")
        project.run(None, "-f", tmp_path / "local", context=f"{url}/c.tgz").ok()
        assert names(project) == ["local"]
        missing = project.run(None, "-f", "nosuch", context=f"{url}/c.tgz").failed(1)
        assert "nosuch is not in" in missing.err

    def test_a_url_of_a_dockerfile(self, project: Project, served: tuple[Path, str]) -> None:
        www, url = served
        (www / "Dockerfile").write_text("FROM scratch\nCOPY <<f /f\nx\nf\n")
        project.run(None, context=f"{url}/Dockerfile").ok()
        assert project.read("f") == "x\n"
        (www / "My.Dockerfile").write_text("FROM scratch\nCOPY a /from-url\n")
        project.run(None, "-f", f"{url}/My.Dockerfile", files={"a": "a"}).ok()
        assert names(project) == ["from-url"]

    @pytest.mark.parametrize(
        ("context", "word"),
        [
            ("http://127.0.0.1:9/x", "127.0.0.1:9"),
            ("http://127.0.0.1:9/x.git", "127.0.0.1:9"),
            ("URL/absent", "404"),
        ],
    )
    def test_hosts_that_do_not_answer(
        self,
        project: Project,
        served: tuple[Path, str],
        context: str,
        word: str,
    ) -> None:
        done = project.run(None, context=context.replace("URL", served[1])).failed(1)
        assert word in done.err
        assert done.err.count("ERROR: ") == 2  # of the step, and at the end


class TestGit:
    def test_refs_subdirectories_and_queries(
        self,
        project: Project,
        served: tuple[Path, str],
        tmp_path: Path,
    ) -> None:
        www, url = served
        files = {
            "Dockerfile": "FROM scratch\nCOPY top /\n",
            "top": "1",
            "sub/Dockerfile": COPY,
            "sub/in": "2",
        }
        commit = make_repository(tmp_path / "repo", files, www / "r.git")
        for context, expected in [
            (f"{url}/r.git", ["top"]),
            (f"{url}/r.git#main", ["top"]),
            (f"{url}/r.git#{commit}", ["top"]),
            (f"{url}/r.git#:sub", ["Dockerfile", "in"]),
            (f"{url}/r.git#main:sub", ["Dockerfile", "in"]),
            (f"{url}/r.git?branch=main&subdir=sub", ["Dockerfile", "in"]),
            (f"{url}/r.git?ref=main&checksum={commit[:12]}", ["top"]),
        ]:
            project.run(None, context=context).ok()
            assert names(project) == expected, context
        project.run(None, "-f", "sub/Dockerfile", context=f"{url}/r.git?keep-git-dir=true").ok()
        assert ".git/HEAD" in names(project)
        for context, word in [
            (f"{url}/r.git#nosuch", "nosuch"),
            (f"{url}/r.git?nosuch=1", "unexpected query"),
            (f"{url}/r.git?checksum=0000000", "expected checksum"),
            (f"{url}/r.git#main:nosuch", "nosuch"),
        ]:
            assert word in project.run(None, context=context).failed(1).err, context

    def test_submodules_come_along(
        self,
        project: Project,
        served: tuple[Path, str],
        tmp_path: Path,
    ) -> None:
        www, url = served
        make_repository(tmp_path / "inner", {"deep": "deep"}, www / "inner.git")
        outer = tmp_path / "outer"
        outer.mkdir()
        git("init", "-q", "-b", "main", cwd=outer)
        (outer / "Dockerfile").write_text(COPY)
        git("submodule", "-q", "add", "--", f"{url}/inner.git", "mod", cwd=outer)
        git("submodule", "-q", "add", "--", f"{url}/inner.git", "rel", cwd=outer)
        git("config", "-f", ".gitmodules", "submodule.rel.url", "../inner.git", cwd=outer)
        git("add", "-A", cwd=outer)
        git("commit", "-q", "-m", "x", cwd=outer)
        git("clone", "-q", "--bare", str(outer), str(www / "outer.git"), cwd=tmp_path)
        git("update-server-info", cwd=www / "outer.git")
        project.run(None, context=f"{url}/outer.git").ok()
        assert names(project) == [".gitmodules", "Dockerfile", "mod/deep", "rel/deep"]
        project.run(None, context=f"{url}/outer.git?submodules=false").ok()
        assert names(project) == [".gitmodules", "Dockerfile"]

    def test_the_epoch_may_be_that_of_a_source(
        self, project: Project, served: tuple[Path, str], tmp_path: Path
    ) -> None:
        www, url = served
        text = "FROM $base\nARG SOURCE_DATE_EPOCH\nRUN echo $SOURCE_DATE_EPOCH > /epoch\n".replace(
            "$base", project.base
        )
        make_repository(tmp_path / "repo", {"Dockerfile": text}, www / "r.git")
        committed = git("log", "-1", "--format=%ct", cwd=tmp_path / "repo")
        epoch = ("--build-arg", "SOURCE_DATE_EPOCH=context")
        project.run(None, *epoch, context=f"{url}/r.git").ok()
        assert project.read("epoch").strip() == committed
        (www / "file").write_text("x")
        os.utime(www / "file", (1_234_567_890, 1_234_567_890))
        project.run(text, "--build-arg", "SOURCE_DATE_EPOCH=web", "--build-context", f"web={url}/file").ok()
        assert project.read("epoch") == "1234567890\n"
        project.run(
            text.replace("FROM", f"FROM scratch AS stamp\nADD {url}/file /\nFROM", 1),
            "--build-arg", "SOURCE_DATE_EPOCH=stamp",
        ).ok()  # fmt: skip
        assert project.read("epoch") == "1234567890\n"
        project.run(text, *epoch).ok()
        assert project.read("epoch") == "\n"

    def test_over_ssh_with_the_agent_and_the_user_s_known_hosts(
        self, project: Project, tmp_path: Path
    ) -> None:
        make_repository(tmp_path / "repo", {"Dockerfile": COPY, "a": "a"}, tmp_path / "served.git")
        log = tmp_path / "ssh.log"
        programs = tmp_path / "bin"
        programs.mkdir()
        (programs / "ssh").write_text(
            f"""#!{sys.executable}
import json, os, subprocess, sys
with open({str(log)!r}, "a") as file:
    file.write(json.dumps([sys.argv[1:], os.environ.get("SSH_AUTH_SOCK")]) + "\\n")
command = sys.argv[-1].replace("/org/repo.git", {str(tmp_path / "served.git")!r})
sys.exit(subprocess.call(["sh", "-c", command]))
"""
        )
        (programs / "ssh").chmod(0o755)
        home = tmp_path / "home"
        (home / ".ssh").mkdir(parents=True)
        (home / ".ssh/known_hosts").write_text("example.com ssh-ed25519 AAAA\n")
        env = {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(home)}
        agent = subprocess.Popen(
            ["ssh-agent", "-D", "-a", str(tmp_path / "a.sock")], stdout=subprocess.DEVNULL
        )
        try:
            while not (tmp_path / "a.sock").exists():
                time.sleep(0.02)
            for context in ("ssh://git@example.com/org/repo.git#main", "git@example.com:/org/repo.git"):
                project.run(
                    None, context=context, env={**env, "SSH_AUTH_SOCK": str(tmp_path / "a.sock")}
                ).ok()
                assert names(project) == ["Dockerfile", "a"]
        finally:
            agent.terminate()
            agent.wait()
        calls = [json.loads(line) for line in log.read_text().splitlines()]
        assert all(sock == str(tmp_path / "a.sock") for _, sock in calls)
        assert all("git@example.com" in args for args, _ in calls)
        assert all(str(home / ".ssh/known_hosts") in " ".join(args) for args, _ in calls)
        assert (home / ".ssh/known_hosts").read_text() == "example.com ssh-ed25519 AAAA\n"


class TestNamed:
    def test_directories_replace_stages_and_images(self, project: Project, base: BaseImages) -> None:
        project.run(
            """
            FROM alpine AS base
            FROM scratch AS gone
            RUN this stage does not run
            FROM $base
            COPY --from=base / /base/
            COPY --from=gone /g /gone/
            COPY --from=named x /named/
            COPY --from=img /bin/busybox /img/
            """,
            "--build-context", f"base={project.folder}/one",
            "--build-context", f"gone={project.folder}/two",
            "--build-context", f"named={project.folder}/three",
            "--build-context", f"img=docker-image://{base.index}",
            files={"one/o": "", "one/skip": "", "one/.dockerignore": "skip\n", "two/g": "", "three/x": ""},
        ).ok()  # fmt: skip
        found = names(project)
        assert {"base/o", "gone/g", "named/x", "img/busybox"} <= set(found)
        assert "base/skip" not in found

    def test_an_image_is_replaced_by_name_and_for_one_platform(
        self, project: Project, base: BaseImages
    ) -> None:
        project.run(
            "FROM alpine:3.20\nCOPY --from=plat f /f\n",
            "--build-context", f"alpine:3.20=docker-image://{base.index}",
            "--build-context", f"plat={project.folder}/any",
            "--build-context", f"plat::linux/arm64={project.folder}/arm",
            files={"any/f": "any", "arm/f": "arm"},
            platforms=("linux/amd64", "linux/arm64"),
        ).ok()  # fmt: skip
        assert (project.out / "linux_amd64/f").read_text() == "any"
        assert (project.out / "linux_arm64/f").read_text() == "arm"

    def test_urls_and_git(self, project: Project, served: tuple[Path, str], tmp_path: Path) -> None:
        www, url = served
        (www / "file").write_text("file")
        make_repository(tmp_path / "repo", {"g/x": "git"}, www / "r.git")
        project.run(
            "FROM scratch\nCOPY --from=web /context /web\nCOPY --from=repo x /\n",
            "--build-context", f"web={url}/file", "--build-context", f"repo={url}/r.git#main:g",
        ).ok()  # fmt: skip
        assert names(project) == ["web", "x"]

    @pytest.mark.needs("qemu", "binfmt")
    def test_oci_layouts(
        self, crossdock: Crossdock, project: Project, busybox_layout: Path, tmp_path: Path
    ) -> None:
        # no registry in sight, and a store that knows nothing
        project.crossdock = crossdock
        args = ("--build-context", f"busybox=oci-layout://{busybox_layout}")
        project.run("FROM busybox\nRUN uname -m > /m\n", *args, platforms=("linux/amd64", "linux/arm64")).ok()
        assert (project.out / "linux_arm64/m").read_text() == "aarch64\n"
        index = json.loads((busybox_layout / "index.json").read_text())["manifests"][0]["digest"]
        for form in (
            f"{busybox_layout}:latest",
            f"{busybox_layout}@{index}",
            f"{busybox_layout}:latest@{index}",
        ):
            done = project.run(None, "--build-context", f"busybox=oci-layout://{form}").ok()
            assert "RUN uname" in done.err
            assert "CACHED" in done.err
        single = project.run(
            "FROM other\n",
            "--build-context",
            f"other=oci-layout://{busybox_layout}",
            platforms=("linux/riscv64",),
        ).failed(1)
        assert "no image for linux/riscv64" in single.err
        assert "Dockerfile:1" in single.err
        damaged = tmp_path / "damaged"
        shutil.copytree(busybox_layout, damaged)
        (damaged / "blobs" / index.replace(":", "/")).write_text("{}")
        broken = project.run("FROM other\n", "--build-context", f"other=oci-layout://{damaged}").failed(1)
        assert "has other content" in broken.err

    @pytest.mark.parametrize(
        ("value", "word"),
        [
            ("target:x", "bake files only"),
            ("input:x", "exist in requests of other frontends"),
            ("local:x", "exist in requests of other frontends"),
            ("absent", "not found"),
            ("oci-layout://absent", "not an OCI layout"),
            ("docker-image://127.0.0.1:9/x", "127.0.0.1:9"),
        ],
    )
    def test_what_cannot_be_used(self, project: Project, value: str, word: str) -> None:
        done = project.run("FROM n\n", "--build-context", f"n={value}").failed(1)
        assert word in done.err


class TestChanges:
    """A context that changes under the build."""

    @pytest.mark.parametrize("what", ["removed", "changed", "all removed"])
    def test_while_a_step_before_the_copy_runs(self, project: Project, what: str) -> None:
        folder = project.folder / "sub"
        project.write(
            {"sub/Dockerfile": f"FROM {project.base}\nRUN sleep 2\nCOPY data /data\n", "sub/data": "a" * 10}
        )
        process = project.crossdock.start(
            "build", "--no-cache", "--progress=plain", "-o", project.out, folder
        )
        assert process.stderr is not None
        seen = ""
        while "RUN sleep 2" not in seen:
            seen = process.stderr.readline()
            assert seen, "the build ended before its first step"
        time.sleep(0.5)
        if what == "changed":
            (folder / "data").write_text("b" * 10)
        elif what == "removed":
            (folder / "data").unlink()
        else:
            shutil.rmtree(folder)
        _, err = process.communicate(timeout=60)
        assert "Traceback" not in err
        if process.returncode == 0:  # what was read is what is copied, whole
            assert what == "changed"
            assert project.read("data") == "b" * 10
            return
        assert process.returncode == 1, err
        assert "Dockerfile:3" in err
        assert "data" in err

    @pytest.mark.parametrize("kind", ["fifo", "socket", "unreadable"])
    def test_odd_files_of_a_context(
        self, project: Project, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = project.folder / "odd"
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "socket":
            monkeypatch.chdir(project.folder)  # the whole path may be too long for a socket
            with socket.socket(socket.AF_UNIX) as made:
                made.bind("odd")
        else:
            path.write_text("x")
            path.chmod(0)
        done = project.run("FROM scratch\nCOPY odd /\n")
        assert "Traceback" not in done.err
        if done.code == 0:
            assert kind != "fifo" or stat.S_ISFIFO((project.out / "odd").lstat().st_mode)
        else:
            assert "Dockerfile:2" in done.err
            assert "odd" in done.err
