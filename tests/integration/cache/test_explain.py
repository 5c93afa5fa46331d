"""``build --explain``: the cause of every step that ran."""

from __future__ import annotations

import json
import os
import zlib
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from integration.cache.cachekit import Builder
    from support.servers import BaseImages

pytestmark = pytest.mark.needs("base", "crun", "userns", "overlay")

DOCKERFILE = """ARG base={base}
FROM $base AS build
ARG version=1
COPY src /src
RUN cat /src/* > /all
FROM build
COPY b.txt /b.txt
"""


@pytest.fixture
def project(tmp_path: Path, base: BaseImages) -> Path:
    folder = tmp_path / "project"
    (folder / "src").mkdir(parents=True)
    (folder / "Dockerfile").write_text(DOCKERFILE.format(base=base.index))
    for number in range(14):
        (folder / "src" / f"f{number:02}").write_text(f"{number}")
    (folder / "b.txt").write_text("b")
    return folder


@pytest.fixture
def why(builder: Builder, project: Path, tmp_path: Path) -> Any:
    """Build and return the explanation: step, in short, to what is said of it."""

    def build(*args: str) -> dict[str, dict[str, Any]]:
        meta = tmp_path / "meta.json"
        builder("one", project, "--explain", "--metadata-file", str(meta), *args)
        found = json.loads(meta.read_text())["crossdock.explain"]
        return {step["step"].partition("] ")[2].split()[0] + step["step"][-6:]: step for step in found}

    return build


def test_the_first_build_has_nothing_to_compare_with(why: Any) -> None:
    steps = why()
    assert [step["reasons"] for step in steps.values()] == [["no earlier run of this step is known"]] * 3


def test_a_cached_build_has_nothing_to_explain(why: Any) -> None:
    why()
    assert why() == {}


def test_files_are_named_ten_of_them(why: Any, project: Path) -> None:
    why()
    for number in range(11):
        (project / "src" / f"f{number:02}").write_text("changed")
    (project / "src/f11").unlink()
    (project / "src/f12").chmod(0o600)
    (project / "src/new").write_text("new")
    steps = why()
    copy = next(step for step in steps.values() if "COPY src" in step["step"])
    assert copy["reasons"] == ["files of the build context: 11 changed, 1 added, 1 removed, 1 mode changed"]
    assert copy["filesChanged"] == 14
    assert len(copy["files"]) == 10
    assert copy["files"][0] == {"path": "src/f00", "change": "changed"}
    run = next(step for step in steps.values() if "RUN" in step["step"])
    assert run["reasons"] == ["it builds on a step that changed: [build 2/3] COPY src /src"]


STAGES = """ARG base={base}
FROM $base AS make
COPY src /src
RUN mkdir /out && cat /src/* > /out/all && cp /src/f00 /out/first && chmod 755 /out
FROM $base AS check
RUN --mount=from=make,source=/out,target=/o cat /o/first > /checked
FROM $base
COPY --from=make /out /out
COPY b.txt /b.txt
"""


class TestOtherStages:
    @pytest.fixture(autouse=True)
    def _stages(self, project: Path, base: BaseImages) -> None:
        (project / "Dockerfile").write_text(STAGES.format(base=base.index))

    def test_files_copied_from_a_stage_are_named(self, why: Any, project: Path) -> None:
        why()
        (project / "src/f07").write_text("changed")
        step = why()["COPYt /out"]
        assert step["reasons"] == [
            "files taken from [make 3/3] RUN mkdir /out && cat /src/* > /out/all && cp /src/f00 /out/first && "
            "chmod 755 /out: 1 changed"
        ]
        assert step["files"] == [{"path": "out/all", "change": "changed"}]

    def test_they_are_known_from_before_though_the_step_was_cached_meanwhile(
        self, why: Any, project: Path
    ) -> None:
        why()
        for number in range(4):  # more runs than are kept
            (project / "b.txt").write_text(f"{number}")
            assert set(why()) == {"COPY/b.txt"}
        (project / "src/f00").write_text("changed")
        (project / "src/f14").write_text("new")
        found = why()["COPYt /out"]
        assert {file["path"] for file in found["files"]} == {"out/all", "out/first"}

    def test_those_of_a_mount_are_named_too(self, why: Any, project: Path) -> None:
        why("--target", "check")
        (project / "src/f00").write_text("changed")
        found = why("--target", "check")["RUNhecked"]
        assert "out/first" in {file["path"] for file in found["files"]}

    def test_nothing_is_read_again_for_it(self, why: Any, project: Path, builder: Builder) -> None:
        """A step whose files are unknown is explained by the step that made them."""
        why()
        for path in (builder.root("one") / "stat").glob("*.steps"):
            path.unlink()
        (project / "src/f07").write_text("changed")
        assert why()["COPYt /out"]["reasons"] == ["no earlier run of this step is known"]


def test_times_alone_change_nothing(why: Any, project: Path) -> None:
    why()
    os.utime(project / "src/f00", (1, 1))
    assert why() == {}


def test_an_argument_is_named_and_its_value_is_not_kept(why: Any, builder: Builder) -> None:
    why("--build-arg", "version=precious-1")
    steps = why("--build-arg", "version=precious-2")
    run = next(step for step in steps.values() if "RUN" in step["step"])
    assert run["reasons"] == ["argument or variable version changed"]
    (path,) = (builder.root("one") / "stat").glob("*.steps")
    first = path.read_bytes()[len("crossdock steps 1\n") + 4 :]
    unpacked = zlib.decompressobj().decompress(first)
    assert b"variable version" in unpacked
    assert b"precious" not in unpacked


def test_an_instruction_is_shown_as_it_was(why: Any, project: Path) -> None:
    why()
    text = (project / "Dockerfile").read_text()
    (project / "Dockerfile").write_text(text.replace("cat /src/*", "head -c1 /src/*"))
    run = next(step for step in why().values() if "RUN" in step["step"])
    assert run["reasons"][0] == "the instruction changed; it was: RUN cat /src/* > /all"


def test_a_base_image_is_named(why: Any, base: BaseImages) -> None:
    why()
    steps = why("--build-arg", f"base={base.docker}")
    copy = next(step for step in steps.values() if "COPY src" in step["step"])
    (reason,) = copy["reasons"]
    assert reason.startswith(f"the base image changed: {base.docker}@sha256:")
    assert f"was {base.index}@sha256:" in reason


def test_a_result_that_was_pruned_is_told_from_a_change(why: Any, builder: Builder) -> None:
    why()
    builder.command("one", "prune", "--all", "--force", "--filter", "type=regular")
    steps = why()
    gone = ["nothing changed since an earlier run: its result is no longer in the store"]
    assert [step["reasons"] for step in steps.values()] == [gone] * len(steps)
    assert steps


def test_no_cache_is_a_cause_of_its_own(why: Any) -> None:
    why()
    assert all(
        step["reasons"] == ["the cache was not to be used for it (--no-cache)"]
        for step in why("--no-cache").values()
    )


def test_the_nearest_of_earlier_runs_counts(why: Any, project: Path) -> None:
    """Between two branches, a step is compared with the branch it is nearest to."""
    why()
    (project / "src/f00").write_text("branch")
    (project / "src/f01").write_text("branch")
    why()
    (project / "src/f00").write_text("0")
    (project / "src/f01").write_text("1")
    (project / "src/f02").write_text("fix")
    copy = next(step for step in why().values() if "COPY src" in step["step"])
    assert copy["files"] == [{"path": "src/f02", "change": "changed"}]


def test_earlier_builds_need_not_have_been_asked(builder: Builder, project: Path) -> None:
    builder("one", project)
    (project / "b.txt").write_text("changed")
    done = builder("one", project, "--explain")
    assert "files of the build context: 1 changed\n      changed: b.txt\n" in done.err
    done = builder("one", project, "--explain")
    assert "Every step was cached." in done.err


def test_progress_as_json_gets_one_line(builder: Builder, project: Path) -> None:
    done = builder("one", project, "--explain", "--progress=rawjson")
    (line,) = [text for text in done.err.splitlines() if "crossdock.explain" in text]
    assert len(json.loads(line)["crossdock.explain"]) == 3


def test_a_failed_build_is_not_compared_with_and_breaks_nothing(
    builder: Builder, project: Path, why: Any
) -> None:
    why()
    good = (project / "Dockerfile").read_text()
    (project / "Dockerfile").write_text(good + "RUN false\n")
    builder.try_("one", project, "--explain").failed(1)
    (project / "Dockerfile").write_text(good)
    assert why() == {}
