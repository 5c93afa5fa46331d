"""``crossdock build`` end to end, on a real registry, runtime and emulator."""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import signal
import stat
import subprocess
import tarfile
import threading
import time
from typing import TYPE_CHECKING

import pytest

from support.cli import PROGRAM
from support.servers import skopeo, umoci

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.cli import Crossdock
    from support.servers import BaseImages

pytestmark = pytest.mark.needs("base", "crun", "userns", "overlay")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """URL of a web server for the folder ``www`` of the case."""
    (tmp_path / "www").mkdir()
    handler = functools.partial(QuietHandler, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_args: object) -> None:
        pass


RUNS = "FROM {base} AS build\nRUN uname -m > /machine\nFROM {base}\nCOPY --from=build /machine /machine\nENV A=b\n"


@pytest.fixture
def context(tmp_path: Path, base: BaseImages) -> Path:
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text(RUNS.format(base=base.index))
    return folder


@pytest.mark.needs("qemu", "binfmt", "skopeo")
class TestPush:
    def test_two_platforms_are_built_on_themselves_and_pushed_as_an_index(
        self, crossdock: Crossdock, context: Path, repository: str, tmp_path: Path
    ) -> None:
        name = f"{repository}:v1"
        done = crossdock(
            "build",
            "-t",
            name,
            context,
            "--push",
            "--platform",
            "linux/amd64,linux/arm64",
            "--progress=plain",
        ).ok()
        assert "[linux/arm64 build 2/2] RUN uname -m" in done.err
        raw = json.loads(skopeo("inspect", "--tls-verify=false", "--raw", f"docker://{name}").stdout)
        assert [m["platform"]["architecture"] for m in raw["manifests"]] == ["amd64", "arm64"]
        for architecture, machine in (("amd64", "x86_64"), ("arm64", "aarch64")):
            layout = tmp_path / architecture
            skopeo(
                "--override-arch", architecture, "copy", "--src-tls-verify=false",
                f"docker://{name}", f"oci:{layout}:x",
            )  # fmt: skip
            umoci("unpack", "--rootless", "--image", f"{layout}:x", layout / "bundle")
            assert (layout / "bundle/rootfs/machine").read_text().strip() == machine

    def test_the_second_build_is_cached_and_gives_the_same_index(
        self, crossdock: Crossdock, context: Path, repository: str
    ) -> None:
        args = ("build", "-t", f"{repository}:v1", context, "--push", "--platform", "linux/amd64,linux/arm64")
        digests, errors = [], ""
        for number in range(2):
            meta = context.parent / f"meta{number}.json"
            errors = crossdock(*args, "--metadata-file", meta, "--progress=plain").ok().err
            digests.append(json.loads(meta.read_text())["containerimage.digest"])
        assert digests[0] == digests[1]
        assert errors.count("CACHED") >= 6

    def test_source_date_epoch_makes_builds_from_empty_stores_equal(
        self, crossdock: Crossdock, context: Path, repository: str, tmp_path: Path
    ) -> None:
        found = set()
        for number in range(2):
            meta = tmp_path / f"meta{number}.json"
            crossdock(
                "build", "-t", f"{repository}:v1", context, "--push", "--platform", "linux/amd64,linux/arm64",
                "--metadata-file", meta,
                env={"SOURCE_DATE_EPOCH": "1700000000", "CROSSDOCK_ROOT": str(crossdock.folder / f"store{number}")},
            ).ok()  # fmt: skip
            found.add(json.loads(meta.read_text())["containerimage.digest"])
        assert len(found) == 1


class TestOutputs:
    def test_local_and_oci_and_docker_archives_at_once(
        self, crossdock: Crossdock, context: Path, tmp_path: Path
    ) -> None:
        iid = tmp_path / "iid"
        crossdock(
            "build", context, "-t", "app:1", "--iidfile", iid,
            "-o", f"type=oci,dest={tmp_path}/oci.tar", "-o", f"type=docker,dest={tmp_path}/docker.tar",
            "-o", f"type=oci,dest={tmp_path}/layout,tar=false",
        ).ok()  # fmt: skip
        with tarfile.open(tmp_path / "docker.tar") as archive:
            file = archive.extractfile("manifest.json")
            assert file is not None
            (entry,) = json.load(file)
        assert entry["RepoTags"] == ["app:1"]
        assert iid.read_text() == "sha256:" + entry["Config"].rpartition("/")[2]
        assert (tmp_path / "layout/index.json").exists()

    def test_what_was_made_can_be_told_on_standard_output(self, crossdock: Crossdock, context: Path) -> None:
        """``/dev/stdout`` is written to, never replaced: here a link, lest a mistake costs the machine its own."""
        link = crossdock.folder / "stdout"
        link.symlink_to("/proc/self/fd/1")
        run = crossdock("build", context, "--iidfile", link, "-o", "type=image").ok()
        assert re.fullmatch(r"sha256:[0-9a-f]{64}", run.out)
        assert link.is_symlink()

    def test_platforms_are_split_into_directories(
        self, crossdock: Crossdock, tmp_path: Path, context: Path
    ) -> None:
        (context / "Dockerfile").write_text("FROM scratch\nARG TARGETARCH\nCOPY file /$TARGETARCH\n")
        (context / "file").write_text("x")
        crossdock("build", context, "-o", tmp_path / "out", "--platform", "linux/amd64,linux/arm64").ok()
        assert sorted(
            str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()
        ) == [
            "linux_amd64/amd64",
            "linux_arm64/arm64",
        ]

    def test_a_tar_on_standard_output_is_nothing_but_the_tar(
        self, crossdock: Crossdock, context: Path, tmp_path: Path
    ) -> None:
        (context / "Dockerfile").write_text("FROM scratch\nCOPY file /\n")
        (context / "file").write_text("x")
        with (tmp_path / "out.tar").open("wb") as out:
            subprocess.run(
                [PROGRAM, "build", context, "-o", "-"],
                env=crossdock.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.DEVNULL,
                timeout=60,
                check=True,
            )
        with tarfile.open(tmp_path / "out.tar") as archive:
            assert archive.getnames() == ["file"]

    def test_quiet_prints_the_image_id_alone(
        self, crossdock: Crossdock, context: Path, tmp_path: Path
    ) -> None:
        done = crossdock("build", "-q", context, "-o", f"type=oci,dest={tmp_path}/x.tar").ok()
        assert done.err == ""
        assert done.out.startswith("sha256:")
        assert len(done.out) == 72

    def test_without_output_a_warning_says_where_the_result_is(
        self, crossdock: Crossdock, context: Path
    ) -> None:
        assert "No output specified" in crossdock("build", context).ok().err

    def test_what_is_written_belongs_to_the_caller(
        self, crossdock: Crossdock, context: Path, tmp_path: Path
    ) -> None:
        (context / "Dockerfile").write_text("FROM scratch\nCOPY --chown=12:34 file /\n")
        (context / "file").write_text("x")
        crossdock("build", context, "-o", tmp_path / "out", "-o", f"type=oci,dest={tmp_path}/x.tar").ok()
        for path in (tmp_path / "out/file", tmp_path / "x.tar"):
            assert path.stat().st_uid == os.getuid()
            assert stat.S_ISREG(path.stat().st_mode)


class TestInputs:
    def test_a_dockerfile_on_standard_input_without_a_context(
        self, crossdock: Crossdock, tmp_path: Path
    ) -> None:
        crossdock("build", "-", "-o", tmp_path / "out", stdin="FROM scratch\nWORKDIR /made\n").ok()
        assert (tmp_path / "out/made").is_dir()

    def test_a_dockerfile_on_standard_input_with_a_context(
        self, crossdock: Crossdock, tmp_path: Path, context: Path
    ) -> None:
        (context / "file").write_text("x")
        crossdock(
            "build", context, "-f", "-", "-o", tmp_path / "out", stdin="FROM scratch\nCOPY file /\n"
        ).ok()
        assert (tmp_path / "out/file").read_text() == "x"

    def test_an_archive_on_standard_input(self, crossdock: Crossdock, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        (tmp_path / "in/Other").write_text("FROM scratch\nCOPY file /\n")
        (tmp_path / "in/file").write_text("from the archive")
        with tarfile.open(tmp_path / "in.tar.gz", "w:gz") as archive:
            archive.add(tmp_path / "in", ".")
        with (tmp_path / "in.tar.gz").open("rb") as stdin:
            done = subprocess.run(
                [PROGRAM, "build", "-", "-f", "Other", "-o", tmp_path / "out"],
                env=crossdock.environment,
                stdin=stdin,
                capture_output=True,
                timeout=60,
                check=False,
            )
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out/file").read_text() == "from the archive"

    def test_contexts_and_dockerfiles_from_urls(
        self, crossdock: Crossdock, tmp_path: Path, served: str
    ) -> None:
        (tmp_path / "www/Dockerfile").write_text("FROM scratch\nCOPY file /\n")
        (tmp_path / "www/file").write_text("x")
        with tarfile.open(tmp_path / "www/context.tgz", "w:gz") as archive:
            archive.add(tmp_path / "www/Dockerfile", "Dockerfile")
            archive.add(tmp_path / "www/file", "file")
        crossdock("build", f"{served}/context.tgz", "-o", tmp_path / "one").ok()
        crossdock("build", tmp_path / "www", "-f", f"{served}/Dockerfile", "-o", tmp_path / "two").ok()
        assert (tmp_path / "one/file").read_text() == (tmp_path / "two/file").read_text() == "x"
        done = crossdock("build", f"{served}/absent.tgz").failed(1)
        assert "404" in done.err

    def test_a_dockerfile_elsewhere_and_a_named_context(
        self, crossdock: Crossdock, tmp_path: Path, context: Path
    ) -> None:
        (tmp_path / "extra").mkdir()
        (tmp_path / "extra/e").write_text("extra")
        (tmp_path / "My.Dockerfile").write_text("FROM scratch\nCOPY --from=more e /e\n")
        crossdock(
            "build", context, "-f", tmp_path / "My.Dockerfile", "--build-context", f"more={tmp_path}/extra",
            "-o", tmp_path / "out",
        ).ok()  # fmt: skip
        assert (tmp_path / "out/e").read_text() == "extra"

    def test_a_named_context_replaces_a_base_image(
        self, crossdock: Crossdock, context: Path, base: BaseImages
    ) -> None:
        (context / "Dockerfile").write_text("FROM alpine\nRUN true\n")
        crossdock("build", context, "--build-context", f"alpine=docker-image://{base.index}").ok()

    def test_arguments_labels_and_targets(
        self, crossdock: Crossdock, context: Path, base: BaseImages, tmp_path: Path
    ) -> None:
        (context / "Dockerfile").write_text(
            f"FROM {base.index} AS one\nARG WORD\nRUN echo $WORD > /word\nFROM scratch\nCOPY --from=one /word /\n"
            "FROM scratch AS never\nCOPY absent /\n"
        )
        crossdock(
            "build",
            context,
            "--build-arg",
            "WORD",
            "--target",
            "1",
            "-o",
            tmp_path / "out",
            env={"WORD": "from env"},
        ).ok()
        assert (tmp_path / "out/word").read_text() == "from env\n"

    def test_secrets_reach_the_step_and_nothing_else(
        self, crossdock: Crossdock, context: Path, base: BaseImages, tmp_path: Path
    ) -> None:
        (context / "Dockerfile").write_text(
            f'FROM {base.index} AS one\nRUN --mount=type=secret,id=s test "$(cat /run/secrets/s)" = tell-nobody\n'
        )
        (tmp_path / "secret").write_text("tell-nobody")
        done = crossdock("build", context, "--secret", f"id=s,src={tmp_path}/secret", "--progress=plain").ok()
        assert "tell-nobody" not in done.err.replace("= tell-nobody", "")

    def test_an_ignore_file_hides_and_explains(self, crossdock: Crossdock, context: Path) -> None:
        (context / "Dockerfile").write_text("FROM scratch\nCOPY file /\n")
        (context / "file").write_text("x")
        (context / ".dockerignore").write_text("file\n")
        done = crossdock("build", context).failed(1)
        assert "Dockerfile:2" in done.err
        assert "dockerignore" in done.err


class TestFailures:
    @pytest.mark.needs("qemu", "binfmt")
    def test_a_failing_step_shows_code_log_lines_and_platform(
        self, crossdock: Crossdock, context: Path, base: BaseImages
    ) -> None:
        (context / "Dockerfile").write_text(
            f"FROM {base.index}\nRUN echo before && \\\n    exit 7\nRUN true\n"
        )
        done = crossdock("build", context, "--platform", "linux/arm64", "--progress=plain").failed(1)
        assert "exit code: 7" in done.err
        assert "------\n > [2/3] RUN echo before &&     exit 7:\n" in done.err
        assert ">>> RUN echo before && \\" in done.err
        assert "linux/arm64" in done.err
        assert done.err.index("Dockerfile:2") < done.err.index("\nERROR: process")

    @pytest.mark.parametrize(
        ("dockerfile", "error"),
        [
            ("FROM scratch\nRUM x\n", "did you mean RUN?"),
            ("FROM scratch\nCOPY absent /\n", '"/absent": not found'),
            ("FROM scratch AS a\nCOPY --from=a x /y\n", "Dockerfile:2"),
            ("", "empty"),
        ],
        ids=["unknown instruction", "missing source", "stage that copies from itself", "empty file"],
    )
    def test_a_wrong_dockerfile(
        self, crossdock: Crossdock, context: Path, dockerfile: str, error: str
    ) -> None:
        (context / "Dockerfile").write_text(dockerfile)
        done = crossdock("build", context, env={"BUILDKIT_PROGRESS": "plain"}).failed(1)
        assert error in done.err

    def test_a_base_without_the_platform_lists_those_it_has(
        self, crossdock: Crossdock, context: Path
    ) -> None:
        done = crossdock("build", context, "--platform", "linux/riscv64").failed(1)
        assert "has no image for linux/riscv64" in done.err
        assert "linux/amd64, linux/arm64, linux/arm/v7" in done.err

    def test_a_missing_base_is_a_404_with_what_to_do(
        self, crossdock: Crossdock, context: Path, repository: str
    ) -> None:
        (context / "Dockerfile").write_text(f"FROM {repository}:absent\n")
        done = crossdock("build", context).failed(1)
        assert "404" in done.err
        assert "docker login" in done.err

    def test_nothing_is_left_of_a_failed_build(
        self, crossdock: Crossdock, context: Path, base: BaseImages, tmp_path: Path
    ) -> None:
        (context / "Dockerfile").write_text(f"FROM {base.index}\nRUN false\n")
        iid, meta = tmp_path / "iid", tmp_path / "meta"
        iid.write_text("old")
        crossdock(
            "build",
            context,
            "-o",
            f"type=oci,dest={tmp_path}/x.tar",
            "--iidfile",
            iid,
            "--metadata-file",
            meta,
        ).failed(1)
        assert not iid.exists()
        assert not meta.exists()
        assert not [p for p in tmp_path.iterdir() if "x.tar" in p.name]


class TestCall:
    def test_checks_are_listed_and_are_the_exit_code(self, crossdock: Crossdock, context: Path) -> None:
        (context / "Dockerfile").write_text("FROM scratch AS a\nENTRYPOINT foo\n")
        done = crossdock("build", context, "--check")
        assert done.code == 1
        assert "JSONArgsRecommended" in done.out
        assert crossdock("build", context, "--call=check,ignorestatus=true").ok().out == done.out

    def test_outline_targets_and_methods(self, crossdock: Crossdock, context: Path) -> None:
        (context / "Dockerfile").write_text("FROM scratch AS first\nARG WORD=x\nFROM scratch AS last\n")
        assert "first" in crossdock("build", context, "--call=targets").ok().out
        outline = crossdock("build", "-q", context, "--call=outline,format=json", "--target=first").ok().out
        assert json.loads(outline)["args"][0]["name"] == "WORD"
        assert "outline" in crossdock("build", context, "--call=subrequests.describe").ok().out
        assert "--call=nope is not supported" in crossdock("build", context, "--call=nope").failed(1).err

    def test_warnings_of_a_build_are_summed_up(self, crossdock: Crossdock, context: Path) -> None:
        (context / "Dockerfile").write_text("FROM scratch AS a\nENTRYPOINT foo\n")
        meta = context / "meta.json"
        done = crossdock(
            "build",
            context,
            "--metadata-file",
            meta,
            "-o",
            "type=cacheonly",
            env={"BUILDX_METADATA_WARNINGS": "1"},
        ).ok()
        assert "1 warning found:\n - JSONArgsRecommended:" in done.err
        assert "(line 2)" in done.err
        data = json.loads(meta.read_text())
        assert len(data["buildx.build.warnings"]) == 1
        assert data["buildx.build.ref"].startswith("embedded/embedded/")


class TestInterruption:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_it_ends_within_a_second_and_leaves_nothing(
        self, crossdock: Crossdock, context: Path, base: BaseImages, number: signal.Signals
    ) -> None:
        mark = f"sleep 97{number.value}"
        (context / "Dockerfile").write_text(f"FROM {base.index}\nRUN echo started && {mark}\n")
        child = crossdock.start("build", context, "--progress=plain")
        assert child.stderr is not None
        for line in child.stderr:
            if line.rstrip().endswith(" started"):
                break
        began = time.monotonic()
        os.killpg(child.pid, number)
        _, err = child.communicate(timeout=20)
        assert time.monotonic() - began < 1.5
        assert child.returncode == 130
        assert "CANCELED" in err
        assert "Traceback" not in err
        assert not [c for c in commands() if mark in c]
        assert not [m for m in mounts() if str(crossdock.root) in m]

    def test_the_next_build_after_a_kill_works(
        self, crossdock: Crossdock, context: Path, base: BaseImages
    ) -> None:
        (context / "Dockerfile").write_text(f"FROM {base.index}\nRUN echo started && sleep 977\n")
        child = crossdock.start("build", context, "--progress=plain")
        assert child.stderr is not None
        for line in child.stderr:
            if line.rstrip().endswith(" started"):
                break
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        time.sleep(0.2)
        assert not [c for c in commands() if "sleep 977" in c]
        (context / "Dockerfile").write_text(f"FROM {base.index}\nRUN echo well\n")
        crossdock("build", context).ok()
        crossdock("store", "check").ok()


def commands() -> list[str]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                found.append(file.read().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found


def mounts() -> list[str]:
    with open("/proc/self/mountinfo") as file:
        return file.readlines()
