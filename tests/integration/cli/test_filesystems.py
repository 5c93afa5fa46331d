"""Stores on file systems of every kind: the same image comes out, or one error says where to put the store."""

from __future__ import annotations

import re
import shlex
import subprocess
from typing import TYPE_CHECKING

import pytest

from support.cli import PROGRAM

if TYPE_CHECKING:
    from pathlib import Path

    from support.cli import Crossdock
    from support.servers import BaseImages

pytestmark = pytest.mark.needs("userns", "overlay", "crun", "base")

#: deletions of files and directories, replaced directories, links, a cache mount, a pulled base with whiteouts
DOCKERFILE = """FROM {base} AS one
COPY tree /tree
RUN --mount=type=cache,target=/c echo x >> /c/x; rm /tree/gone; rm -r /tree/dir; mkdir /tree/dir; echo new > /tree/dir/new
RUN test ! -e /tree/gone && test ! -e /tree/dir/old && rm /tree/dir/new && ln /tree/kept /tree/link && chmod 700 /tree
FROM {base}
COPY --from=one /tree /tree
RUN find /tree | sort > /listing; stat -c "%n %a %h" /tree/* >> /listing; rm -r /tree/dir
"""
USER = ("unshare", "--user", "--map-root-user", "--mount", "--propagation", "private")
ROOT = ("unshare", "--mount", "--propagation", "private")


@pytest.fixture
def project(tmp_path: Path, base: BaseImages) -> Path:
    folder = tmp_path / "project"
    (folder / "tree/dir").mkdir(parents=True)
    for name in ("kept", "gone", "dir/old"):
        (folder / "tree" / name).write_text(name)
    (folder / "Dockerfile").write_text(DOCKERFILE.format(base=base.amd64))
    return folder


class Place:
    """Builds with the store in ``store`` below a folder that a script mounts something on."""

    def __init__(self, crossdock: Crossdock, project: Path) -> None:
        self._crossdock = crossdock
        self._project = project
        self.folder = crossdock.folder / "place"
        self.folder.mkdir()

    def run(self, mount: str, *commands: str, namespace: tuple[str, ...] = USER) -> str:
        """Mount, then run commands of crossdock; returns all that was said, with exit codes."""
        lines = [f'echo "+ {shlex.quote(c)}"; {PROGRAM} {c}; echo "exit $?"' for c in commands]
        # /run may be the machine's, which a namespace's root must not use
        script = (
            "set -e; mount -t tmpfs tmpfs /run; cd "
            + str(self.folder)
            + "\n"
            + mount
            + "\nset +e\n"
            + "\n".join(lines)
        )
        done = subprocess.run(
            [*namespace, "sh", "-c", script],
            env={**self._crossdock.environment, "CROSSDOCK_ROOT": f"{self.folder}/m/store", "SOURCE_DATE_EPOCH": "0"},
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert "Traceback" not in said, said
        return said

    def build(self, name: str = "out") -> str:
        """The command that builds the project."""
        return f"build --progress plain {self._project} -o type=oci,dest={self._crossdock.folder}/{name}.tar,name=x"

    def image(self, name: str = "out") -> bytes:
        """What the command wrote."""
        return (self._crossdock.folder / f"{name}.tar").read_bytes()


@pytest.fixture
def place(crossdock: Crossdock, project: Path) -> Place:
    return Place(crossdock, project)


@pytest.fixture
def usual(place: Place) -> bytes:
    """The image as it comes from a store on the machine's own file system."""
    said = place.run("mkdir m", place.build("usual"), "prune --all --force")
    assert "exit 0" in said, said
    return place.image("usual")


TMPFS = "mkdir -p m; mount -t tmpfs -o mode=700 tmpfs m"
OVERLAY = "mkdir -p l u m; mount -t tmpfs tmpfs u; mkdir u/u u/w; mount -t overlay -o userxattr,lowerdir=l,upperdir=u/u,workdir=u/w o m"
EXT4 = "mkdir -p m; truncate -s 300M disk; mkfs.ext4 -q -F {} disk; mount -o loop disk m"


@pytest.mark.parametrize(
    ("mount", "namespace"),
    [
        pytest.param(TMPFS, USER, id="tmpfs"),
        pytest.param(OVERLAY, USER, id="overlay"),
        pytest.param(OVERLAY.replace("userxattr,", ""), ROOT, id="overlay as a container has it", marks=pytest.mark.needs("root")),
        pytest.param(EXT4.format(""), ROOT, id="ext4", marks=pytest.mark.needs("loop")),
        pytest.param(EXT4.format("-b 1024 -O ^has_journal"), ROOT, id="ext4 of small blocks", marks=pytest.mark.needs("loop")),
        pytest.param(EXT4.format("") + " -o noexec,nodev,nosuid", ROOT, id="noexec", marks=pytest.mark.needs("loop")),
    ],
)  # fmt: skip
def test_the_same_image_comes_out(place: Place, usual: bytes, mount: str, namespace: tuple[str, ...]) -> None:
    said = place.run(
        mount, place.build(), place.build("again"), "store check", "prune --all --force", namespace=namespace
    )
    assert re.findall(r"^exit (.*)$", said, re.MULTILINE) == ["0"] * 4, said
    assert "no problems found" in said
    assert place.image() == usual
    assert place.image("again") == usual
    assert said.count(" CACHED") >= 5, "the second build ran nothing"


def test_a_store_on_an_overlay_is_copied_and_the_images_keep_their_deletions(
    place: Place, usual: bytes
) -> None:
    """What an overlay marks cannot be made on one: files that a step deleted must not come back."""
    said = place.run(OVERLAY, place.build(), "inspect --bootstrap")
    assert "snapshotter: native" in re.sub(r":\s+", ": ", said), said
    assert place.image() == usual
    # moved to where a kernel would mount it
    said = place.run(f"{OVERLAY}; mkdir n", place.build(), "store check")
    assert "exit 0" in said


@pytest.mark.parametrize(
    ("mount", "words"),
    [
        ("mkdir m; mount -t ramfs ramfs m", "keeps no extended attributes"),
        pytest.param(
            "mkdir l m; mount -t tmpfs tmpfs l; mkdir l/l l/u l/w; "
            "fuse-overlayfs -o lowerdir=l/l,upperdir=l/u,workdir=l/w m 2>/dev/null",
            "keeps no overlayfs marks",
            marks=pytest.mark.needs("fuse-overlayfs"),
        ),
        ("mkdir m; mount -t tmpfs -o ro tmpfs m", "read-only file system"),
        ("mkdir m; mount -t tmpfs -o nr_inodes=12 tmpfs m", "no space left on device"),
        ("mkdir m; echo mine > m/store", "not a Crossdock store"),
        ("mkdir -p m/store; echo mine > m/store/file", "not a Crossdock store"),
    ],
    ids=["no attributes", "fuse-overlayfs", "read-only", "no inodes", "a file", "somebody's folder"],
)  # fmt: skip
def test_one_error_says_where_a_store_cannot_be(place: Place, mount: str, words: str) -> None:
    if "fuse" in mount:
        needs_fuse()
    said = place.run(mount, place.build())
    errors = [line for line in said.splitlines() if line.startswith("ERROR: ")]
    assert len(errors) == 1, said
    assert words.lower() in errors[0].lower(), said
    assert "hint: " in said
    assert "exit 0" not in said


def test_a_store_that_became_read_only_is_refused(place: Place) -> None:
    said = place.run(TMPFS, place.build(), "du")
    assert said.count("exit 0") == 2
    remounted = place.run(
        f"{TMPFS}; {PROGRAM} {place.build()} 2>/dev/null; mount -o remount,bind,ro m",
        place.build(),
        "du",
        "prune -f",
    )
    assert re.findall(r"^exit (.*)$", remounted, re.MULTILINE) == ["1"] * 3, remounted
    assert remounted.count("is on a read-only file system") == 3


def needs_fuse() -> None:
    try:
        open("/dev/fuse", "rb").close()
    except OSError:
        pytest.skip("needs /dev/fuse")
