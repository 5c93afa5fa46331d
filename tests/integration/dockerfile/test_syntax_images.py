"""``# syntax=IMAGE`` on the embedded builder: the frontend in the image does what the builder's own would do."""

from __future__ import annotations

import json
import os
import signal
import tarfile
from typing import TYPE_CHECKING

import pytest

import crossdock
from crossdock.errors import CrossdockError, SolveError
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
    output = f"type=oci,dest={strange.out}.tar"
    done = strange.build("--build-arg", f"mode={mode}", "-o", output, strange.folder).failed()
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


@pytest.mark.parametrize("fetching", [False, True], ids=["it asks dockerfile.v0", "it fetches the URL"])
def test_contexts_on_standard_input(
    case: Case, forwarder: str, frontend: str, base: BaseImages, tmp_path: Path, fetching: bool
) -> None:
    import subprocess

    from support.cli import PROGRAM

    name, mode = (frontend, "upload") if fetching else (forwarder, "forward")
    case.dockerfile(f"# syntax={name}\nFROM {base.index}\nCOPY here /here\n")
    (case.folder / "here").write_text("archived")
    with tarfile.open(tmp_path / "context.tar", "w") as archive:
        archive.add(case.folder, ".")
    with (tmp_path / "context.tar").open("rb") as stdin:
        command: list[str | Path] = [PROGRAM, "build", "--builder", "embedded", "-o", case.out]
        command += ["--build-arg", f"mode={mode}", "-"]
        environment = case.crossdock.environment
        done = subprocess.run(
            command, stdin=stdin, env=environment, check=False, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    assert (case.out / "here").read_text() == "archived"


def test_why_steps_ran_is_explained(case: Case, forwarder: str, base: BaseImages) -> None:
    case.dockerfile(
        f"# syntax={forwarder}\nFROM {base.index}\nARG VERSION\nCOPY here /here\nRUN echo $VERSION >/version\n"
    )
    (case.folder / "here").write_text("one")
    case.written("--build-arg", "VERSION=1")
    assert "Every step was cached" in case.written("--build-arg", "VERSION=1", "--explain").err
    (case.folder / "here").write_text("two")
    changed = case.written("--build-arg", "VERSION=1", "--explain").err
    assert "here" in changed.partition("COPY here /here")[2]
    argument = case.written("--build-arg", "VERSION=2", "--explain").err
    assert "VERSION" in argument.rpartition("RUN echo")[2]


WRONG = {
    "a step that fails": "FROM {base}\nRUN echo said; exit 3\n",
    "a step that is not there": 'FROM {base}\nRUN ["/nothing"]\n',
    "an unknown instruction": "FROM {base}\nRUNN x\n",
    "several mistakes": "FROM {base}\nRUNN x\nCOPPY a b\n",
    "a file that is not there": "FROM {base}\nCOPY nothing /\n",
    "an image that is not there": "FROM {host}/no/such:1\n",
    "a registry that is not there": "FROM 127.0.0.1:1/no/such:1\n",
    "a secret that is not there": "FROM {base}\nRUN --mount=type=secret,id=s,required=true true\n",
    "a permission that is not given": "# check=skip=all\nFROM {base}\nRUN --security=insecure true\n",
}


def told(error: CrossdockError) -> dict[str, object]:
    """What a caller sees of an error, without what differs from build to build."""
    found = {key: getattr(error, key, None) for key in ("summary", "hint", "exit_code", "code", "retryable")}
    found |= {key: getattr(error, key, None) for key in ("log_tail", "vertex_name", "step_exit_code")}
    found["line"] = error.source.start.line if error.source is not None else None
    return {"type": type(error), **found}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG.keys())
def test_python_gets_the_errors_of_other_embedded_builds(
    forwarder: str, base: BaseImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("CROSSDOCK_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.delenv("BUILDX_BUILDER", raising=False)
    (tmp_path / "c").mkdir()
    found = []
    for syntax in ("docker/dockerfile:1", forwarder):
        host = forwarder.partition("/")[0]
        file = f"# syntax={syntax}\n" + text.format(base=base.index, host=host)
        (tmp_path / "c/Dockerfile").write_text(file)
        with pytest.raises(CrossdockError) as caught:
            crossdock.build(tmp_path / "c", builder="embedded")
        found.append(told(caught.value))
    own, foreign = found
    # The server does not know where its client's directory is.
    own["hint"] = own["hint"] and str(own["hint"]).removesuffix(f" {tmp_path / 'c'}")
    assert foreign == own


def test_python_gets_what_a_frontend_itself_reports_as_an_error_of_the_build(
    frontend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSDOCK_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.delenv("BUILDX_BUILDER", raising=False)
    (tmp_path / "c").mkdir()
    (tmp_path / "c/Dockerfile").write_text(f"# syntax={frontend}\n")
    with pytest.raises(SolveError, match="line 7 makes no sense"):
        crossdock.build(tmp_path / "c", builder="embedded", build_args={"mode": "error"})


def test_python_gets_provenance_with_attestations(
    forwarder: str, base: BaseImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSDOCK_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    for name in ("BUILDX_BUILDER", "BUILDX_METADATA_PROVENANCE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "c").mkdir()
    found = []
    for syntax in ("docker/dockerfile:1", forwarder):
        (tmp_path / "c/Dockerfile").write_text(f"# syntax={syntax}\nFROM {base.index}\nRUN echo x >/x\n")
        output = [f"type=oci,dest={tmp_path / 'x.tar'}"]
        plain = crossdock.build(tmp_path / "c", builder="embedded", outputs=output)
        assert "buildx.build.provenance" not in plain.metadata
        attested = crossdock.build(
            tmp_path / "c", builder="embedded", outputs=output, attests=["type=provenance,mode=max"]
        )
        found.append(attested.metadata["buildx.build.provenance"].keys())
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("BUILDX_METADATA_PROVENANCE", "max")
            asked = crossdock.build(tmp_path / "c", builder="embedded", outputs=output)
        found.append(asked.metadata["buildx.build.provenance"].keys())
    own, own_max, foreign, foreign_max = found
    assert foreign == own
    assert foreign_max == own_max


def test_with_an_epoch_layers_are_those_of_other_embedded_builds(
    case: Case, forwarder: str, base: BaseImages, tmp_path: Path
) -> None:
    digests = []
    for name, syntax in (("own", "docker/dockerfile:1"), ("foreign", forwarder)):
        case.dockerfile(f"# syntax={syntax}\nFROM {base.index}\nRUN echo x >/x\n")
        case.build(
            *("--build-arg", "SOURCE_DATE_EPOCH=1000000000"),
            *("-o", f"type=oci,dest={tmp_path / name}.tar", case.folder),
        ).ok()
        with tarfile.open(tmp_path / f"{name}.tar") as archive:
            digests.append(json.loads(archive.extractfile("index.json").read())["manifests"][0]["digest"])  # type: ignore[union-attr]
    assert digests[0] == digests[1]
