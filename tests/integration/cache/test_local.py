"""The cache of one store, through the command: what is noticed, what is shared, what runs once."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from integration.cache.cachekit import steps_run

if TYPE_CHECKING:
    from pathlib import Path

    from integration.cache.cachekit import Builder
    from support.servers import BaseImages

pytestmark = pytest.mark.needs("base", "crun", "userns", "overlay")


def make(folder: Path, dockerfile: str, **files: str) -> Path:
    folder.mkdir()
    (folder / "Dockerfile").write_text(dockerfile)
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.parametrize("old", [False, True], ids=["at once", "in an old file"])
def test_other_content_of_the_same_size_and_time_is_noticed(
    builder: Builder, tmp_path: Path, old: bool
) -> None:
    folder = make(tmp_path / "c", "FROM scratch\nCOPY a /a\n", a="aaaa")
    time_ns = 10**18 if old else (folder / "a").stat().st_mtime_ns
    for number, text in enumerate(("aaaa", "bbbb", "cccc")):
        (folder / "a").write_text(text)
        os.utime(folder / "a", ns=(time_ns, time_ns))
        out = tmp_path / f"out{number}"
        builder("one", folder, "-o", str(out))
        assert (out / "a").read_text() == text


def test_what_is_not_copied_does_not_count(builder: Builder, base: BaseImages, tmp_path: Path) -> None:
    folder = make(tmp_path / "c", f"FROM {base.index}\nCOPY a /a\nRUN cat /a\n", a="a", b="b")
    builder("one", folder)
    (folder / "b").write_text("changed")
    (folder / "a").touch()
    assert steps_run(builder("one", folder).err) == set()
    (folder / "a").chmod(0o600)
    assert steps_run(builder("one", folder).err) == {"COPY a", "RUN cat /a"}


def test_definitions_with_the_same_content_meet_again(
    builder: Builder, base: BaseImages, tmp_path: Path
) -> None:
    one = make(tmp_path / "one", f"FROM {base.index}\nCOPY a /x\nRUN cat /x > /y\n", a="same")
    two = make(tmp_path / "two", f"FROM {base.index}\nCOPY sub/a /x\nRUN cat /x > /y\n", sub__a="same")
    builder("one", one)
    assert steps_run(builder("one", two).err) == set()


def test_a_stage_that_changed_elsewhere_does_not_count(
    builder: Builder, base: BaseImages, tmp_path: Path
) -> None:
    text = "FROM {base} AS b\nCOPY a /a\nRUN echo fixed > /out; cp /a /other\nFROM {base}\nCOPY --from=b /out /out\nRUN cat /out\n"
    folder = make(tmp_path / "c", text.format(base=base.index), a="a")
    builder("one", folder)
    (folder / "a").write_text("changed")
    assert "RUN cat /out" not in steps_run(builder("one", folder).err)


def test_two_builds_at_once_run_a_step_once(builder: Builder, base: BaseImages, tmp_path: Path) -> None:
    text = f"FROM {base.index}\nRUN sleep 1; head -c16 /dev/urandom | od -An -tx1 > /random\n"
    folders = [make(tmp_path / name, text) for name in ("a", "b", "c")]
    threads = [
        threading.Thread(target=builder, args=("one", folder, "-o", str(tmp_path / f"out-{folder.name}")))
        for folder in folders
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({(tmp_path / f"out-{folder.name}/random").read_text() for folder in folders}) == 1


@pytest.mark.needs("qemu", "binfmt")
def test_targets_and_platforms_share_what_they_have_in_common(
    builder: Builder, base: BaseImages, tmp_path: Path
) -> None:
    text = f"FROM --platform=$BUILDPLATFORM {base.index} AS tool\nRUN echo once > /tool\nFROM {base.index} AS app\n"
    text += "COPY --from=tool /tool /tool\nFROM app AS more\nRUN echo more\n"
    folder = make(tmp_path / "c", text)
    builder("one", folder, "--target", "app", "--platform", "linux/arm64")
    done = builder("one", folder, "--target", "more", "--platform", "linux/amd64,linux/arm64")
    assert "RUN echo once" not in steps_run(done.err)
