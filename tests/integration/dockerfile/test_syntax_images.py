"""``# syntax=IMAGE`` on the embedded builder: the frontend in the image does what the builder's own would do."""

from __future__ import annotations

import json
import os
import signal
import tarfile
from typing import TYPE_CHECKING

import pytest

from support.frontendimage import MISBEHAVIOUR, frontends_end

if TYPE_CHECKING:
    from pathlib import Path

    from support.cli import Crossdock, Ran
    from support.servers import BaseImages

pytestmark = [pytest.mark.needs("base", "crun", "userns", "overlay", "registry"), pytest.mark.slow]


class Case:
    """A context and the command; output goes to ``out``."""

    def __init__(self, crossdock: Crossdock, folder: Path) -> None:
        self.crossdock = crossdock
        self.folder = folder / "context"
        self.folder.mkdir()
        self.out = folder / "out"

    def dockerfile(self, text: str) -> None:
        """Write the Dockerfile."""
        (self.folder / "Dockerfile").write_text(text)

    def build(self, *args: str | Path) -> Ran:
        """Build with the embedded builder; does not judge."""
        return self.crossdock("build", "--builder", "embedded", "--progress", "plain", *args)

    def written(self, *args: str | Path) -> Ran:
        """Build into ``out``."""
        return self.build("-o", self.out, *args, self.folder).ok()


@pytest.fixture
def case(shared_crossdock: Crossdock, tmp_path: Path) -> Case:
    return Case(shared_crossdock, tmp_path)


@pytest.fixture
def strange(case: Case, frontend: str) -> Case:
    """A case whose file only its frontend understands."""
    case.dockerfile(f"# syntax={frontend}\nTHIS IS NOT A DOCKERFILE\n")
    return case


def test_a_file_in_a_language_of_its_own_is_built(strange: Case, frontend: str) -> None:
    done = strange.written("--build-arg", "key=value", "--target", "t")
    told = json.loads((strange.out / "told").read_text())
    assert told["file"].endswith("THIS IS NOT A DOCKERFILE\n")
    assert told["opts"]["build-arg:key"] == "value"
    assert told["opts"]["target"] == "t"
    assert told["opts"]["source"] == frontend
    assert told["workers"][0]["Platforms"]
    assert "[internal] running frontend" in done.err


@pytest.mark.parametrize(("mode", "wanted"), MISBEHAVIOUR)
def test_one_that_misbehaves_fails_its_build_with_a_sentence(strange: Case, mode: str, wanted: str) -> None:
    done = strange.build("--build-arg", f"mode={mode}", strange.folder).failed()
    assert wanted in done.err
    assert done.err.count("\nERROR") + done.err.startswith("ERROR") <= 1
    if mode == "crash":
        assert "the frontend fell over" in done.err


def test_ctrl_c_ends_one_that_hangs(strange: Case) -> None:
    args = (
        "build",
        "--builder",
        "embedded",
        "--progress",
        "plain",
        "--build-arg",
        "mode=hang",
        strange.folder,
    )
    running = strange.crossdock.start(*args)
    assert running.stderr is not None
    for line in running.stderr:
        if "hanging" in line:
            break
    os.kill(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "Traceback" not in err
    assert frontends_end()


def test_one_that_does_not_end_after_its_result_is_ended(strange: Case) -> None:
    strange.written("--build-arg", "mode=linger")
    assert (strange.out / "told").exists()
    assert frontends_end()


def test_what_it_cannot_answer_is_said(strange: Case, frontend: str) -> None:
    done = strange.build("--call", "outline", strange.folder).failed()
    assert f"the frontend {frontend} does not answer --call=outline" in done.err


def test_a_build_argument_names_the_frontend(case: Case, frontend: str, base: BaseImages) -> None:
    case.dockerfile(f"FROM {base.index}\nRUN echo ours >/ours\n")
    case.written("--build-arg", f"BUILDKIT_SYNTAX={frontend}")
    assert (case.out / "told").exists()


def test_a_build_argument_has_our_own_frontend_serve_a_foreign_line(
    case: Case, frontend: str, base: BaseImages
) -> None:
    case.dockerfile(f"# syntax={frontend}\nFROM {base.index} AS base\nRUN echo ours >/ours\n")
    done = case.written("--build-arg", "BUILDKIT_SYNTAX=docker/dockerfile:1")
    assert (case.out / "ours").read_text() == "ours\n"
    assert "running frontend" not in done.err


FEATURES = """\
# syntax={forwarder}
ARG VERSION=0
FROM {base} AS common
ARG VERSION
ARG TARGETARCH
RUN --mount=type=secret,id=token \\
    echo "$VERSION $TARGETARCH $(cat /run/secrets/token)" >/told
FROM common AS wanted
COPY --from=other /file /file
COPY here /here
FROM common AS unwanted
RUN false
"""


def test_everything_a_build_has_reaches_the_frontend(
    case: Case, forwarder: str, base: BaseImages, tmp_path: Path
) -> None:
    case.dockerfile(FEATURES.format(forwarder=forwarder, base=base.index))
    (case.folder / "here").write_text("context")
    (tmp_path / "token").write_text("hidden")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("named")
    flags: tuple[str, ...] = (
        *("--platform", "linux/amd64,linux/arm64", "--target", "wanted", "--build-arg", "VERSION=7"),
        *("--secret", f"id=token,src={tmp_path / 'token'}"),
        *("--build-context", f"other={tmp_path / 'other'}"),
    )
    case.written(*flags)
    for platform in ("amd64", "arm64"):
        root = case.out / f"linux_{platform}"
        assert (root / "told").read_text() == f"7 {platform} hidden\n"
        assert (root / "file").read_text() == "named"
        assert (root / "here").read_text() == "context"
    again = case.written(*flags)
    steps = [line for line in again.err.splitlines() if "RUN" in line or "COPY" in line]
    assert steps
    assert again.err.count("CACHED") >= 6, again.err
    (case.folder / "here").write_text("changed")
    case.written(*flags)
    assert (case.out / "linux_arm64/here").read_text() == "changed"


def test_ssh_reaches_the_steps(case: Case, forwarder: str, base: BaseImages, tmp_path: Path) -> None:
    import subprocess

    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    case.dockerfile(
        f"# syntax={forwarder}\nFROM {base.index}\n"
        'RUN --mount=type=ssh test -S "$SSH_AUTH_SOCK" && echo agent >/agent\n'
    )
    case.written("--ssh", f"default={key}")
    assert (case.out / "agent").read_text() == "agent\n"


def test_mistakes_and_failures_are_shown_in_the_file(case: Case, forwarder: str, base: BaseImages) -> None:
    case.dockerfile(f"# syntax={forwarder}\nFROM {base.index}\nRUN exit 3\n")
    done = case.build(case.folder).failed()
    assert ">>> RUN exit 3" in done.err
    assert "exit code: 3" in done.err
    case.dockerfile(f"# syntax={forwarder}\nFROM {base.index}\nRUNN x\n")
    done = case.build(case.folder).failed()
    assert ">>> RUNN x" in done.err
    assert "unknown instruction: RUNN" in done.err


def test_questions_are_answered(case: Case, forwarder: str, base: BaseImages) -> None:
    case.dockerfile(f"# syntax={forwarder}\nFROM {base.index} AS first\nFROM first AS second\n")
    done = case.build("--call", "targets", case.folder).ok()
    assert "first" in done.out
    assert "second" in done.out


def test_outputs_provenance_and_the_metadata_file(
    case: Case, forwarder: str, base: BaseImages, repository: str, tmp_path: Path
) -> None:
    case.dockerfile(f"# syntax={forwarder}\nFROM {base.index}\nRUN echo x >/x\nENV A=b\n")
    case.build(
        *("--push", "-t", f"{repository}:1", "--provenance", "mode=max"),
        *("--metadata-file", tmp_path / "metadata.json", case.folder),
    ).ok()
    metadata = json.loads((tmp_path / "metadata.json").read_text())
    assert metadata["containerimage.digest"].startswith("sha256:")
    assert metadata["buildx.build.ref"].startswith("embedded/")
    assert "buildx.build.provenance" in metadata
    shown = case.crossdock(
        "imagetools", "inspect", f"{repository}:1", "--format", "{{json .Provenance}}"
    ).ok()
    assert forwarder.rpartition(":")[0].rpartition("/")[2] in shown.out
    case.build("-o", f"type=oci,dest={tmp_path / 'image.tar'}", case.folder).ok()
    with tarfile.open(tmp_path / "image.tar") as archive:
        index = json.loads(archive.extractfile("index.json").read())  # type: ignore[union-attr]
    # No provenance unless it is asked for: a manifest, not an index.
    assert index["manifests"][0]["mediaType"].endswith("manifest.v1+json")


def test_contexts_on_standard_input(case: Case, forwarder: str, base: BaseImages, tmp_path: Path) -> None:
    import subprocess

    from support.cli import PROGRAM

    case.dockerfile(f"# syntax={forwarder}\nFROM {base.index}\nCOPY here /here\n")
    (case.folder / "here").write_text("archived")
    with tarfile.open(tmp_path / "context.tar", "w") as archive:
        archive.add(case.folder, ".")
    with (tmp_path / "context.tar").open("rb") as stdin:
        command: list[str | Path] = [PROGRAM, "build", "--builder", "embedded", "-o", case.out, "-"]
        environment = case.crossdock.environment
        done = subprocess.run(
            command, stdin=stdin, env=environment, check=False, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    assert (case.out / "here").read_text() == "archived"


def test_explanations_are_refused(strange: Case) -> None:
    done = strange.build("--explain", strange.folder).failed()
    assert "--explain cannot tell of builds by the frontend image" in done.err
