from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import threading
from typing import TYPE_CHECKING, Any

import pytest

from crossdock.cancel import CancelToken
from crossdock.engine.exporters import ExportContext, ExporterSpec, PlatformImage, check_exporters, export
from crossdock.engine.exporters.layout import write_layout
from crossdock.errors import Cancelled, CrossdockError, DigestMismatch, ExportError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    MakeImage = Callable[..., PlatformImage]


def files_of(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive if m.isfile()}  # type: ignore[union-attr]


def run(context: ExportContext, images: Any, kind: str, **attrs: str) -> Any:
    images = images if isinstance(images, list) else [images]
    return export(images, [ExporterSpec(kind, attrs)], context=context)


def test_an_oci_archive_is_a_sorted_layout(
    context: ExportContext, images: list[PlatformImage], tmp_path: Path
) -> None:
    dest = tmp_path / "out.tar"
    result = run(context, images, "oci", dest=str(dest), name="app:1,localhost:5000/app")
    with tarfile.open(dest) as archive:
        members = archive.getmembers()
    names = [m.name for m in members]
    assert names == sorted(names)
    assert names[:2] == ["blobs", "blobs/sha256"]
    assert {m.mtime for m in members} == {0}
    assert {m.mode for m in members if m.name.startswith("blobs/sha256/")} == {0o444}
    files = files_of(dest)
    assert "manifest.json" not in files
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    for name, data in files.items():
        if name.startswith("blobs/"):
            assert hashlib.sha256(data).hexdigest() == name.rpartition("/")[2]
    index = json.loads(files["index.json"])
    assert [m["digest"] for m in index["manifests"]] == [result.merged["containerimage.digest"]] * 2
    assert [m["annotations"]["io.containerd.image.name"] for m in index["manifests"]] == [
        "docker.io/library/app:1",
        "localhost:5000/app:latest",
    ]
    assert [m["annotations"]["org.opencontainers.image.ref.name"] for m in index["manifests"]] == [
        "1",
        "latest",
    ]
    assert result.merged["image.name"] == "docker.io/library/app:1,localhost:5000/app:latest"
    created = result.merged["containerimage.descriptor"]["annotations"]["org.opencontainers.image.created"]
    assert created.endswith("Z")
    assert "." not in created


def test_an_archive_is_the_same_each_time(
    context: ExportContext, images: list[PlatformImage], tmp_path: Path
) -> None:
    data = []
    for number in range(2):
        dest = tmp_path / f"{number}.tar"
        run(context, images, "oci", dest=str(dest))
        data.append(dest.read_bytes())
    assert data[0] == data[1]


def test_a_docker_archive_has_the_manifest_that_docker_load_reads(
    context: ExportContext, image: PlatformImage, tmp_path: Path
) -> None:
    dest = tmp_path / "out.tar"
    run(context, image, "docker", dest=str(dest), name="app:1,localhost:5000/app:2")
    files = files_of(dest)
    (entry,) = json.loads(files["manifest.json"])
    assert entry["RepoTags"] == ["app:1", "localhost:5000/app:2"]
    assert json.loads(files[entry["Config"]])["architecture"] == "amd64"
    assert len(entry["Layers"]) == 2
    assert all(layer in files for layer in entry["Layers"])


def test_a_docker_archive_goes_to_a_callback(context: ExportContext, image: PlatformImage) -> None:
    out = io.BytesIO()
    export([image], [ExporterSpec("docker", {"name": "app"}, out)], context=context)
    out.seek(0)
    with tarfile.open(fileobj=out) as archive:
        assert "manifest.json" in archive.getnames()


def test_a_failing_callback_fails_the_export(context: ExportContext, image: PlatformImage) -> None:
    class Closed:
        def write(self, data: bytes) -> int:
            summary = "the Engine hung up"
            raise ExportError(summary)

    with pytest.raises(ExportError, match="hung up"):
        export([image], [ExporterSpec("docker", {}, Closed())], context=context)


def test_docker_refuses_several_platforms(
    context: ExportContext, images: list[PlatformImage], tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="does not currently support exporting manifest lists") as caught:
        run(context, images, "docker", dest=str(tmp_path / "x.tar"))
    assert "oci" in (caught.value.hint or "")
    assert os.listdir(tmp_path) == ["store"]


def test_a_base_layer_is_fetched_for_an_archive(
    context: ExportContext, image: PlatformImage, access: Any, lease: Any, tmp_path: Path
) -> None:
    from crossdock.image import Descriptor, DiffId, sha256_digest

    data = b"base layer"
    blob = Descriptor("application/vnd.oci.image.layer.v1.tar", sha256_digest(data), len(data))
    layer = context.store.layers.add_remote(
        lease, diff_id=DiffId(blob.digest), blob=blob, repositories=["host/base"]
    )
    access.remote[blob.digest] = data
    run(context, image._replace(ref=[layer], config=None), "oci", dest=str(tmp_path / "x.tar"))
    assert data in files_of(tmp_path / "x.tar").values()


# destinations


@pytest.mark.parametrize("kind", ["oci", "docker", "tar"])
def test_destinations_that_cannot_be_are_refused_early(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cases = {
        "": "dest file is required",
        str(tmp_path): "is a directory",
        str(tmp_path / "no" / "where.tar"): "there is no directory",
    }
    for dest, message in cases.items():
        attrs = {"dest": dest} if dest else {}
        with pytest.raises(ExportError, match=message):
            check_exporters([ExporterSpec(kind, attrs)], multi_platform=False)


@pytest.mark.needs("user")
def test_a_destination_that_is_not_writable_is_refused_early(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        for kind in ("oci", "docker", "tar"):
            with pytest.raises(ExportError, match="Permission denied"):
                check_exporters([ExporterSpec(kind, {"dest": str(tmp_path / "x")})], multi_platform=False)
        with pytest.raises(ExportError, match="Permission denied"):
            check_exporters([ExporterSpec("local", {"dest": str(tmp_path / "a/b")})], multi_platform=False)
        attrs = {"dest": str(tmp_path), "tar": "false"}
        with pytest.raises(ExportError, match="Permission denied"):
            check_exporters([ExporterSpec("oci", attrs)], multi_platform=False)
    finally:
        tmp_path.chmod(0o700)


def test_a_terminal_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdout", Terminal())
    with pytest.raises(ExportError, match="refusing to write to console"):
        check_exporters([ExporterSpec("docker", {"dest": "-"})], multi_platform=False)


def test_an_export_that_fails_leaves_the_old_file_and_no_other(
    context: ExportContext, image: PlatformImage, tmp_path: Path
) -> None:
    dest = tmp_path / "out.tar"
    dest.write_text("old")
    export([image], [ExporterSpec("image", {})], context=context)
    blob = context.store.layers.blobs(image.ref[0])[0].descriptor
    path = context.store.content.path(blob.digest)
    path.write_bytes(b"x" * blob.size)
    with pytest.raises(DigestMismatch, match="other content"):
        run(context, image, "oci", dest=str(dest))
    assert dest.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["out.tar", "store"]


def test_cancellation_leaves_nothing(context: ExportContext, image: PlatformImage, tmp_path: Path) -> None:
    token = CancelToken()
    own = context.with_cancel(token)
    token.cancel()
    with pytest.raises(Cancelled):
        run(own, image, "oci", dest=str(tmp_path / "x.tar"))
    assert os.listdir(tmp_path) == ["store"]


def test_a_link_as_destination_is_followed(
    context: ExportContext, image: PlatformImage, tmp_path: Path
) -> None:
    (tmp_path / "real.tar").write_text("old")
    (tmp_path / "link.tar").symlink_to("real.tar")
    run(context, image, "oci", dest=str(tmp_path / "link.tar"))
    assert (tmp_path / "link.tar").is_symlink()
    assert "index.json" in files_of(tmp_path / "real.tar")


def test_a_pipe_as_destination_is_written_to(
    context: ExportContext, image: PlatformImage, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    run(context, image, "docker", dest=str(pipe))
    reader.join()
    with tarfile.open(fileobj=io.BytesIO(got[0])) as archive:
        assert "manifest.json" in archive.getnames()


# layout directories


def layout(context: ExportContext, images: Any, dest: Path, name: str = "") -> Any:
    attrs = {"dest": str(dest), "tar": "false", **({"name": name} if name else {})}
    return run(context, images, "oci", **attrs)


def entries(dest: Path) -> list[tuple[str | None, str]]:
    index = json.loads((dest / "index.json").read_bytes())
    key = "org.opencontainers.image.ref.name"
    return [(m.get("annotations", {}).get(key), m["digest"]) for m in index["manifests"]]


def test_a_layout_gains_and_replaces_images_by_name(
    context: ExportContext, make_image: MakeImage, tmp_path: Path
) -> None:
    dest = tmp_path / "layout"
    first, second = make_image(), make_image(layers=1)
    one = layout(context, first, dest, "app:1").merged["containerimage.digest"]
    two = layout(context, second, dest, "app:2").merged["containerimage.digest"]
    assert entries(dest) == [("1", one), ("2", two)]
    layout(context, second, dest, "app:1")
    assert entries(dest) == [("2", two), ("1", two)]
    layout(context, second, dest, "other:1")
    assert [name for name, _ in entries(dest)] == ["2", "1", "1"]
    layout(context, first, dest)
    layout(context, first, dest)
    assert entries(dest)[3:] == [(None, one)]
    assert json.loads((dest / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    assert sorted(os.listdir(dest)) == ["blobs", "index.json", "oci-layout"]
    for path in (dest / "blobs/sha256").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


def test_builds_that_write_one_layout_at_once_lose_no_entry(
    context: ExportContext, image: PlatformImage, tmp_path: Path
) -> None:
    dest = tmp_path / "layout"
    failures: list[BaseException] = []

    def build(number: int) -> None:
        try:
            layout(context, image, dest, f"app:{number}")
        except CrossdockError as exc:
            failures.append(exc)

    threads = [threading.Thread(target=build, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(name or "" for name, _ in entries(dest)) == [str(n) for n in range(6)]


def test_foreign_directories_and_indexes_are_not_touched(
    context: ExportContext, image: PlatformImage, tmp_path: Path
) -> None:
    dest = tmp_path / "mine"
    dest.mkdir()
    (dest / "thesis.tex").touch()
    with pytest.raises(ExportError, match="holds other files"):
        layout(context, image, dest)
    assert os.listdir(dest) == ["thesis.tex"]
    (dest / "oci-layout").touch()
    (dest / "index.json").write_text("not json")
    with pytest.raises(ExportError, match="not an index of an OCI layout"):
        layout(context, image, dest)
    assert (dest / "index.json").read_text() == "not json"
    with pytest.raises(ExportError, match="it is a file"):
        layout(context, image, dest / "thesis.tex")


def test_a_layout_lock_that_is_held_is_waited_for_until_cancelled(
    context: ExportContext, image: PlatformImage, tmp_path: Path
) -> None:
    import fcntl

    dest = tmp_path / "layout"
    built = layout(context, image, dest).image
    token = CancelToken()
    with (dest / "index.json.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        timer = threading.Timer(0.2, token.cancel)
        timer.start()
        with pytest.raises(Cancelled):
            write_layout(context.with_cancel(token), built, [built.descriptor], str(dest))
        timer.join()
