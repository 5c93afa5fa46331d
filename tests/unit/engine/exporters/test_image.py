from __future__ import annotations

import gzip
import io
import json
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from crossdock.engine.exporters import ExportContext, ExporterSpec, PlatformImage, export
from crossdock.engine.store import Store
from crossdock.errors import DigestMismatch, ExportError, LayerError, UsageError
from crossdock.image import Descriptor, DiffId, History, ImageConfig, Platform, sha256_digest
from crossdock.layers import decompressor
from crossdock.progress import Vertex, VertexLog
from crossdock.record import replace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from crossdock.engine.store import LayerId, Lease

    MakeImage = Callable[..., PlatformImage]
    MakeLayer = Callable[..., LayerId]


def run(context: ExportContext, images: Any, *, multi: Any = None, **attrs: str) -> Any:
    images = images if isinstance(images, list) else [images]
    given = {key.replace("_", "-"): value for key, value in attrs.items()}
    return export(images, [ExporterSpec("image", given)], context=context, multi_platform=multi)


def stored(context: ExportContext, digest: Any) -> Any:
    return json.loads(context.store.content.read(digest))


def test_a_single_image_is_a_manifest(context: ExportContext, image: PlatformImage, events: Any) -> None:
    result = run(context, image, name="user/app:1")
    manifest = stored(context, result.merged["containerimage.digest"])
    assert list(manifest) == ["schemaVersion", "mediaType", "config", "layers"]
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert [layer["mediaType"] for layer in manifest["layers"]] == [
        "application/vnd.oci.image.layer.v1.tar+gzip"
    ] * 2
    assert all(set(layer) == {"mediaType", "digest", "size"} for layer in manifest["layers"])
    config = stored(context, manifest["config"]["digest"])
    assert [h["created_by"] for h in config["history"]] == ["RUN 0", "RUN 1"]
    for layer, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
        plain = decompressor(context.store.content.open(layer["digest"]))
        assert sha256_digest(plain.read()) == diff_id
    assert config["created"] == config["history"][-1]["created"]
    descriptor = result.merged["containerimage.descriptor"]
    assert descriptor["platform"] == {"architecture": "amd64", "os": "linux"}
    assert result.merged["containerimage.config.digest"] == manifest["config"]["digest"]
    assert result.merged["image.name"] == "docker.io/user/app:1"
    named = context.store.images.get("docker.io/user/app:1")
    assert named is not None
    assert named.descriptor.digest == descriptor["digest"]
    assert events.statuses == [
        "exporting layers",
        f"exporting manifest {descriptor['digest']}",
        f"exporting config {manifest['config']['digest']}",
        "naming to docker.io/user/app:1",
    ]
    vertices = [e for e in events.events if isinstance(e, Vertex)]
    assert [v.name for v in vertices] == ["exporting to image"] * 2
    assert vertices[-1].completed_ns is not None


def test_several_images_have_an_index(
    context: ExportContext, images: list[PlatformImage], events: Any
) -> None:
    result = run(context, images)
    index = stored(context, result.merged["containerimage.digest"])
    assert index["mediaType"] == "application/vnd.oci.image.index.v1+json"
    assert [m["platform"]["architecture"] for m in index["manifests"]] == ["amd64", "arm64"]
    assert "containerimage.config.digest" not in result.merged
    assert "image.name" not in result.merged
    assert f"exporting manifest list {result.merged['containerimage.digest']}" in events.statuses
    assert result.image.index.raw == context.store.content.read(result.image.descriptor.digest)


def test_one_image_has_an_index_when_asked(context: ExportContext, image: PlatformImage) -> None:
    result = run(context, image, multi=True)
    assert len(stored(context, result.merged["containerimage.digest"])["manifests"]) == 1


def test_several_images_without_multi_platform_are_refused(
    context: ExportContext, images: list[PlatformImage]
) -> None:
    with pytest.raises(UsageError, match="without multi-platform"):
        run(context, images, multi=False)


def test_docker_media_types(context: ExportContext, images: list[PlatformImage]) -> None:
    result = run(context, images, oci_mediatypes="false", compression="zstd")
    index = stored(context, result.merged["containerimage.digest"])
    assert index["mediaType"] == "application/vnd.docker.distribution.manifest.list.v2+json"
    manifest = stored(context, index["manifests"][0]["digest"])
    assert manifest["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"
    assert manifest["config"]["mediaType"] == "application/vnd.docker.container.image.v1+json"
    assert manifest["layers"][0]["mediaType"] == "application/vnd.docker.image.rootfs.diff.tar.zstd"


def test_annotations_end_up_where_they_belong(context: ExportContext, images: list[PlatformImage]) -> None:
    attrs = {
        "annotation.m": "1",
        "annotation-manifest[linux/arm64].m": "arm",
        "annotation-manifest-descriptor.d": "2",
        "annotation-index.i": "3",
        "annotation-index-descriptor.x": "4",
    }
    result: Any = export(images, [ExporterSpec("image", attrs)], context=context)
    index = stored(context, result.merged["containerimage.digest"])
    assert index["annotations"] == {"i": "3"}
    assert [m["annotations"] for m in index["manifests"]] == [{"d": "2"}, {"d": "2"}]
    found = [stored(context, m["digest"])["annotations"] for m in index["manifests"]]
    assert found == [{"m": "1"}, {"m": "arm"}]
    assert result.merged["containerimage.descriptor"]["annotations"] == {"x": "4"}


def test_layers_are_written_once_and_never_again(
    context: ExportContext, make_layer: MakeLayer, access: Any, events: Any
) -> None:
    shared = make_layer({"f": b"x"})
    config = ImageConfig(platform=Platform("linux", "amd64"))
    other = ImageConfig(platform=Platform("linux", "arm64"))
    images = [
        PlatformImage(config.platform, [shared], config),
        PlatformImage(other.platform, [shared], other),
    ]
    specs = [ExporterSpec("image", {"name": "a"}), ExporterSpec("image", {"name": "b"})]
    first = export(images, specs, context=context)
    assert access.asked == [shared]
    again = export(images, specs, context=context)
    assert access.asked == [shared]
    assert first.responses[0]["containerimage.digest"] == again.responses[1]["containerimage.digest"]


@pytest.mark.parametrize(
    "attrs",
    [{"compression": "zstd"}, {"compression": "uncompressed"}, {"compression-level": "9"}],
    ids=str,
)
def test_a_layer_made_here_gets_the_compression_asked_for_whatever_went_before(
    context: ExportContext, make_layer: MakeLayer, attrs: dict[str, str]
) -> None:
    layer = make_layer({"f": b"".join(b"%d," % n for n in range(20_000))})
    image = PlatformImage(Platform("linux", "amd64"), [layer])
    wanted = export([image], [ExporterSpec("image", attrs)], context=context).merged
    default = export([image], [ExporterSpec("image", {})], context=context).merged
    assert wanted["containerimage.digest"] != default["containerimage.digest"]
    assert export([image], [ExporterSpec("image", attrs)], context=context).merged == wanted
    assert export([image], [ExporterSpec("image", {})], context=context).merged == default
    assert wanted["containerimage.config.digest"] == default["containerimage.config.digest"]


@pytest.fixture
def base(context: ExportContext, lease: Lease, access: Any) -> tuple[LayerId, Descriptor, DiffId]:
    """A layer that is only in a registry."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("base"))
    plain = buffer.getvalue()
    data = gzip.compress(plain)
    blob = Descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip", sha256_digest(data), len(data))
    diff_id = DiffId(sha256_digest(plain))
    access.remote[blob.digest] = data
    layer = context.store.layers.add_remote(lease, diff_id=diff_id, blob=blob, repositories=["host/base"])
    return layer, blob, diff_id


def test_a_base_layer_keeps_its_blob_and_is_not_fetched(
    context: ExportContext, base: Any, make_layer: MakeLayer, access: Any
) -> None:
    layer, blob, diff_id = base
    image = PlatformImage(Platform("linux", "amd64"), [layer, make_layer({"f": b"x"})])
    result = run(context, image, compression="zstd")
    manifest = stored(context, result.merged["containerimage.digest"])
    assert manifest["layers"][0] == {
        "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
        "digest": blob.digest,
        "size": blob.size,
    }
    assert manifest["layers"][1]["mediaType"].endswith("+zstd")
    config = stored(context, manifest["config"]["digest"])
    assert config["rootfs"]["diff_ids"][0] == diff_id
    assert access.fetched == []


def test_force_compression_converts_a_base_layer_once_without_changing_its_diff_id(
    context: ExportContext, base: Any, access: Any
) -> None:
    layer, blob, diff_id = base
    image = PlatformImage(Platform("linux", "amd64"), [layer])
    for _ in range(2):
        result = run(context, image, compression="zstd", force_compression="true")
        manifest = stored(context, result.merged["containerimage.digest"])
        assert manifest["layers"][0]["mediaType"].endswith("+zstd")
        assert stored(context, manifest["config"]["digest"])["rootfs"]["diff_ids"] == [diff_id]
    assert access.fetched == [blob.digest]
    plain = run(context, image, compression="zstd")
    assert stored(context, plain.merged["containerimage.digest"])["layers"][0]["digest"] == blob.digest


def test_a_base_layer_whose_diff_id_lies_is_found_out_when_converted(
    context: ExportContext, lease: Lease, base: Any, access: Any
) -> None:
    _, blob, _ = base
    wrong = DiffId("sha256:" + "0" * 64)
    layer = context.store.layers.add_remote(lease, diff_id=wrong, blob=blob, repositories=["host/base"])
    with pytest.raises(DigestMismatch, match=blob.digest):
        run(
            context,
            PlatformImage(Platform("linux", "amd64"), [layer]),
            compression="zstd",
            force_compression="1",
        )


def test_rewriting_timestamps_clamps_files_of_layers_made_here_alone(
    context: ExportContext, base: Any, make_layer: MakeLayer, access: Any
) -> None:
    base_layer, blob, diff_id = base
    ours = make_layer({"f": b"x"})
    base_config = ImageConfig(platform=Platform("linux", "amd64"), diff_ids=[diff_id])
    image = PlatformImage(base_config.platform, [base_layer, ours], None, base_config)
    attrs = {"rewrite_timestamp": "true", "source_date_epoch": "1000000000"}
    result = run(context, image, **attrs)
    manifest = stored(context, result.merged["containerimage.digest"])
    assert manifest["layers"][0]["digest"] == blob.digest
    data = decompressor(context.store.content.open(manifest["layers"][1]["digest"])).read()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert [m.mtime for m in archive.getmembers()] == [1_000_000_000]
    asked = list(access.asked)
    assert run(context, image, **attrs).merged == result.merged
    assert access.asked == asked
    plain = run(context, image)
    assert stored(context, plain.merged["containerimage.digest"])["layers"][1] != manifest["layers"][1]


def test_rewriting_without_an_epoch_is_a_warning(
    context: ExportContext, image: PlatformImage, events: Any
) -> None:
    run(context, image, rewrite_timestamp="true")
    logs = b"".join(e.data for e in events.events if isinstance(e, VertexLog))
    assert b"no source-date-epoch was found" in logs


def test_an_epoch_makes_two_builds_of_the_same_files_equal(tmp_path: Path, events: Any) -> None:
    digests = set()
    for number in range(2):
        with Store.open(tmp_path / f"s{number}") as store, store.lease() as lease:
            from crossdock.cancel import CancelToken

            with store.layers.new(lease, kind="exec", description="RUN x") as new:
                (new.fs / "f").write_text("same")
                layer = new.commit()

            class Access:
                def directory(self, *_: object) -> Any:
                    return store.layers.directory(layer)  # noqa: B023

            context = ExportContext(
                store=store,
                lease=lease,
                access=Access(),  # type: ignore[arg-type]
                client=lambda: pytest.fail("no registry"),
                sink=events,
                cancel=CancelToken(),
                epoch_s=1_000_000_000,
            )
            config = ImageConfig(platform=Platform("linux", "amd64"), history=[History(created_by="RUN x")])
            result = run(context, PlatformImage(config.platform, [layer], config), rewrite_timestamp="true")
            digests.add(result.merged["containerimage.digest"])
    assert len(digests) == 1


def test_unknown_config_fields_survive(context: ExportContext, image: PlatformImage) -> None:
    assert image.config is not None
    image = image._replace(config=replace(image.config, extra={"org.example.unknown": "data"}))
    result = run(context, image)
    assert stored(context, result.merged["containerimage.config.digest"])["org.example.unknown"] == "data"


def test_an_image_of_nothing(context: ExportContext) -> None:
    result = run(context, PlatformImage(Platform("linux", "amd64"), []))
    manifest = stored(context, result.merged["containerimage.digest"])
    assert manifest["layers"] == []
    config = stored(context, manifest["config"]["digest"])
    assert config["config"] == {
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "WorkingDir": "/",
    }


def test_canonical_and_dangling_names(context: ExportContext, image: PlatformImage) -> None:
    result = run(context, image, name="app", name_canonical="1", dangling_name_prefix="dangling")
    digest = result.merged["containerimage.digest"]
    names = {stored.name for stored in context.store.images.all()}
    assert names == {
        "docker.io/library/app:latest",
        f"docker.io/library/app:latest@{digest}",
        f"docker.io/library/dangling@{digest}",
    }
    assert result.merged["image.name"] == f"docker.io/library/app,dangling@{digest}"


def test_a_failing_layer_is_an_error_that_ends_the_vertex(
    context: ExportContext, make_layer: MakeLayer, events: Any
) -> None:
    layer = make_layer({".wh.bad": b""})
    with pytest.raises(LayerError, match=r"\.wh\.bad"):
        run(context, PlatformImage(Platform("linux", "amd64"), [layer]))
    last = [e for e in events.events if isinstance(e, Vertex)][-1]
    assert ".wh.bad" in last.error
    assert last.completed_ns is not None


def test_nothing_is_pushed_when_another_output_fails(
    context: ExportContext, image: PlatformImage, tmp_path: Path
) -> None:
    # The context's client fails the test when it is asked for.
    specs = [
        ExporterSpec("registry", {"name": "localhost:1/x"}),
        ExporterSpec("docker", {"dest": str(tmp_path)}),
    ]
    with pytest.raises(ExportError, match="is a directory"):
        export([image], specs, context=context)


def test_only_the_cache_is_asked_for(context: ExportContext, image: PlatformImage, events: Any) -> None:
    result = export([image], [ExporterSpec("cacheonly", {})], context=context)
    assert (list(result.responses), result.image, events.events) == ([{}], None, [])
