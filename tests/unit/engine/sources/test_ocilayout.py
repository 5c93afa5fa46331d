"""Images of OCI layouts: found by digest and platform, layers copied only when they are unknown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from crossdock.cancel import CancelToken
from crossdock.engine.sources.ocilayout import DirectoryLayout, LayoutSolverOp, resolve_layout
from crossdock.errors import (
    ContextError,
    DigestMismatch,
    LayerError,
    PlatformNotFound,
    SolveError,
    UsageError,
)
from crossdock.image import (
    Descriptor,
    make_index,
    make_manifest,
    parse_platform,
    parse_reference,
    sha256_digest,
)
from crossdock.image.mediatypes import OCI_CONFIG
from support.imagekit import Layer, config, layer

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any, BinaryIO

    from crossdock.engine.sources.image import ResolvedImage
    from unit.engine.sources.conftest import Runner

LAYERS = [layer({"a": b"1"}), layer({"b": b"2"})]


class Layout:
    """A layout on disk that remembers what was opened."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "blobs/sha256").mkdir(parents=True)
        self.opened: list[str] = []
        for one in LAYERS:
            self.put(one.blob)

    def put(self, data: bytes) -> str:
        digest = sha256_digest(data)
        (self.root / "blobs" / digest.replace(":", "/")).write_bytes(data)
        return digest

    def image(self, platform: str, layers: list[Layer]) -> Descriptor:
        raw = config(platform, [one.diff_id for one in layers])
        self.put(raw)
        manifest = make_manifest(
            Descriptor(OCI_CONFIG, sha256_digest(raw), len(raw)), [one.descriptor for one in layers], oci=True
        )
        self.put(manifest.raw)
        return Descriptor(
            manifest.media_type,
            sha256_digest(manifest.raw),
            len(manifest.raw),
            platform=parse_platform(platform),
        )

    def index(self, *images: Descriptor) -> str:
        return self.put(make_index(list(images), oci=True).raw)

    def open(self, digest: Any) -> BinaryIO:
        self.opened.append(digest)
        return DirectoryLayout(self.root).open(digest)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


@pytest.fixture
def index(layout: Layout) -> str:
    return layout.index(layout.image("linux/amd64", LAYERS), layout.image("linux/arm64", LAYERS[:1]))


def resolve(runner: Runner, layout: Layout, digest: str, platform: str = "linux/amd64") -> ResolvedImage:
    return resolve_layout(
        parse_reference(f"name@{digest}"),
        layout.open,
        platform=parse_platform(platform),
        store=runner.store,
        lease=runner.lease,
        cancel=CancelToken(),
    )


def source(runner: Runner, layout: Layout, digest: str, **attrs: str) -> LayoutSolverOp:
    named = {f"oci.{k}": v for k, v in {"store": "s", **attrs}.items()}
    made: LayoutSolverOp = runner.op(
        LayoutSolverOp, f"oci-layout://name@{digest}", named, layouts={"s": layout.open}
    )
    return made


class TestResolve:
    def test_the_image_of_the_platform(self, runner: Runner, layout: Layout, index: str) -> None:
        found = {p: resolve(runner, layout, index, p) for p in ("linux/amd64", "linux/arm64")}
        assert [len(f.diff_ids) for f in found.values()] == [2, 1]
        assert {f.digest for f in found.values()} == {index}
        assert all(f.repository == "" for f in found.values())

    def test_a_platform_that_is_not_there(self, runner: Runner, layout: Layout, index: str) -> None:
        with pytest.raises(PlatformNotFound, match="linux/riscv64") as caught:
            resolve(runner, layout, index, "linux/riscv64")
        assert caught.value.available == ("linux/amd64", "linux/arm64")

    def test_blobs_that_are_missing_damaged_or_something_else(
        self, runner: Runner, layout: Layout, index: str
    ) -> None:
        with pytest.raises(ContextError, match="has no blob"):
            resolve(runner, layout, "sha256:" + "0" * 64)
        with pytest.raises(LayerError):
            resolve(runner, layout, layout.put(b"not json"))
        (layout.root / "blobs" / index.replace(":", "/")).write_bytes(b"{}")
        with pytest.raises(DigestMismatch, match="has other content"):
            resolve(runner, layout, index)
        (layout.root / "blobs" / index.replace(":", "/")).write_bytes(bytes(9 << 20))
        with pytest.raises(ContextError, match="larger than 8 MiB"):
            resolve(runner, layout, index)

    def test_a_digest_is_needed(self, runner: Runner, layout: Layout) -> None:
        with pytest.raises(UsageError, match="without a digest"):
            resolve_layout(
                parse_reference("name:tag"), layout.open, platform=parse_platform("linux/amd64"),
                store=runner.store, lease=runner.lease, cancel=CancelToken(),
            )  # fmt: skip


class TestOp:
    def layers(self, runner: Runner, op: LayoutSolverOp) -> list[str]:
        (ref,) = op.execute([], runner.context())
        return list(ref.layers)  # type: ignore[attr-defined]

    def test_layers_are_copied_once(self, runner: Runner, layout: Layout) -> None:
        digest = layout.image("linux/amd64", LAYERS).digest
        first = self.layers(runner, source(runner, layout, digest))
        blobs = {one.descriptor.digest for one in LAYERS}
        assert blobs <= set(layout.opened)
        assert all(runner.store.content.has(blob) for blob in blobs)
        layout.opened.clear()
        assert self.layers(runner, source(runner, layout, digest)) == first
        assert not blobs & set(layout.opened)

    def test_a_limit_of_layers(self, runner: Runner, layout: Layout) -> None:
        digest = layout.image("linux/amd64", LAYERS).digest
        assert len(self.layers(runner, source(runner, layout, digest, layerlimit="1"))) == 1
        keys = {runner.key(source(runner, layout, digest, **attrs)) for attrs in ({}, {"layerlimit": "1"})}
        assert len(keys) == 2

    def test_a_damaged_layer_is_an_error_and_is_not_kept(self, runner: Runner, layout: Layout) -> None:
        digest = layout.image("linux/amd64", LAYERS).digest
        blob = LAYERS[0].descriptor.digest
        (layout.root / "blobs" / blob.replace(":", "/")).write_bytes(b"x" * len(LAYERS[0].blob))
        with pytest.raises(DigestMismatch):
            self.layers(runner, source(runner, layout, digest))
        assert not runner.store.content.has(blob)

    def test_what_is_malformed_or_not_given(self, runner: Runner, layout: Layout, index: str) -> None:
        with pytest.raises(SolveError, match="no OCI layout was given under the name other"):
            self.layers(runner, source(runner, layout, index, store="other"))
        for identifier, attrs in (
            ("oci-layout://name:tag", {}),
            (f"oci-layout://name@{index}", {"oci.layerlimit": "x"}),
            (f"oci-layout://name@{index}", {"oci.nosuch": "1"}),
            ("docker-image://x", {}),
        ):
            with pytest.raises(SolveError, match="invalid OCI layout source"):
                runner.op(LayoutSolverOp, identifier, attrs)
