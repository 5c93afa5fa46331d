"""From a reference and a platform to a manifest, a config and layers."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING

import pytest

from crossdock.cancel import CancelToken
from crossdock.engine.sources.image import ImageSource, ResolvedImage
from crossdock.errors import (
    DigestMismatch,
    LayerError,
    NotFoundError,
    PlatformNotFound,
    RegistryError,
    StoreError,
    UsageError,
)
from crossdock.image import Descriptor, make_manifest, parse_platform, parse_reference, sha256_digest
from crossdock.image.mediatypes import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from support.imagekit import Layer, Shelf, layer
from support.scripted import Reply

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.engine.store import Lease, Store
    from crossdock.registry import RegistryClient

COMMON = layer({"etc/os-release": b"common"})
PLATFORMS = ["linux/amd64", "linux/arm64", "linux/arm/v6", "linux/arm/v7"]


@pytest.fixture
def full(shelf: Shelf) -> Shelf:
    """A shelf with an index of four platforms, tagged 1."""
    for platform in PLATFORMS:
        shelf.image(platform, [COMMON, layer({"bin/sh": platform.encode()})])
    shelf.index("1")
    return shelf


class Finder:
    """Builds after another on one store."""

    def __init__(self, store: Store, client: RegistryClient, lease: Lease) -> None:
        self.store = store
        self.client = client
        self.lease = lease
        self.warnings: list[str] = []

    def build(self) -> ImageSource:
        return ImageSource(self.store, self.client, warn=self.warnings.append)

    def __call__(
        self,
        ref: str,
        platform: str = "linux/amd64",
        mode: str = "default",
        source: ImageSource | None = None,
    ) -> ResolvedImage:
        return (source or self.build()).resolve(
            parse_reference(ref),
            platform=parse_platform(platform),
            mode=mode,
            lease=self.lease,
            cancel=CancelToken(),
        )


@pytest.fixture
def find(store: Store, client: RegistryClient, lease: Lease) -> Finder:
    return Finder(store, client, lease)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_image_of_a_platform(full: Shelf, find: Finder, platform: str) -> None:
    found = find(f"{full.repository}:1", platform)
    manifest = full.images[platform]
    assert found.manifest.raw == manifest.raw
    assert found.digest == full.index("1").descriptor.digest
    assert json.loads(found.config)["config"]["Env"] == [f"PLATFORM={platform}"]
    assert found.diff_ids[0] == COMMON.diff_id
    assert found.ref == f"{full.repository}:1"
    assert found.repository == full.repository


@pytest.mark.parametrize(
    ("wanted", "got"),
    [("linux/arm64/v8", "linux/arm64"), ("linux/amd64/v3", "linux/amd64"), ("linux/arm/v8", "linux/arm/v7")],
)
def test_what_stands_in_for_a_platform(full: Shelf, find: Finder, wanted: str, got: str) -> None:
    assert find(f"{full.repository}:1", wanted).manifest.raw == full.images[got].raw


def test_a_missing_platform_tells_what_there_is(full: Shelf, find: Finder) -> None:
    attestation = Descriptor(
        OCI_MANIFEST,
        sha256_digest(b"x"),
        1,
        annotations={"vnd.docker.reference.type": "attestation-manifest"},
        platform=parse_platform("unknown/unknown"),
    )
    full.index("1", [attestation])
    with pytest.raises(PlatformNotFound) as caught:
        find(f"{full.repository}:1", "linux/s390x")
    assert caught.value.summary == f"{full.repository}:1 has no image for linux/s390x"
    assert caught.value.hint == "it has: linux/amd64, linux/arm64, linux/arm/v6, linux/arm/v7"
    assert caught.value.available == tuple(PLATFORMS)


def test_an_image_of_one_platform_is_taken_as_it_is(shelf: Shelf, find: Finder) -> None:
    manifest = shelf.image("linux/arm64", [COMMON])
    shelf.manifest(manifest.raw, manifest.media_type, "single")
    found = find(f"{shelf.repository}:single", "linux/amd64")
    assert found.digest == manifest.descriptor.digest


def test_an_index_inside_an_index(full: Shelf, find: Finder) -> None:
    inner = full.index("")
    full.images.clear()
    nested = Descriptor(
        OCI_INDEX, inner.descriptor.digest, len(inner.raw), platform=parse_platform("linux/arm64")
    )
    full.index("outer", [nested])
    found = find(f"{full.repository}:outer", "linux/arm64")
    assert json.loads(found.config)["config"]["Env"] == ["PLATFORM=linux/arm64"]


def test_an_entry_without_a_platform_is_judged_by_its_config(shelf: Shelf, find: Finder) -> None:
    entries = []
    for platform in ("linux/s390x", "linux/ppc64le"):
        manifest = shelf.image(platform, [COMMON])
        entries.append(Descriptor(manifest.media_type, manifest.descriptor.digest, len(manifest.raw)))
    shelf.images.clear()
    shelf.index("bare", entries)
    found = find(f"{shelf.repository}:bare", "linux/ppc64le")
    assert found.manifest.descriptor.digest == entries[1].digest
    with pytest.raises(PlatformNotFound):
        find(f"{shelf.repository}:bare", "linux/amd64")


def test_a_pinned_image_needs_no_network_the_second_time(full: Shelf, find: Finder) -> None:
    ref = f"{full.repository}:1@{find(f'{full.repository}:1').digest}"
    find(ref)
    asked = len(full.server.got)
    find(ref)
    assert len(full.server.got) == asked
    with pytest.raises(PlatformNotFound):
        find(ref, "linux/s390x")
    assert len(full.server.got) == asked


def test_a_tag_costs_one_request_the_second_time(full: Shelf, find: Finder) -> None:
    find(f"{full.repository}:1")
    asked = len(full.server.got)
    find(f"{full.repository}:1")
    assert full.server.lines()[asked:] == ["HEAD /v2/app/manifests/1"]


def test_a_build_asks_once_however_many_platforms_ask(full: Shelf, find: Finder) -> None:
    source = find.build()
    threads = [
        threading.Thread(target=find, args=(f"{full.repository}:1", platform, "default", source))
        for platform in PLATFORMS * 2
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = full.server.lines()
    assert lines.count("HEAD /v2/app/manifests/1") == 1
    assert len(lines) == len(set(lines))
    assert len(lines) == 2 + 2 * len(PLATFORMS)  # tag, index, and a manifest and a config each


def test_a_tag_that_moves_during_a_build_does_not_move_it(full: Shelf, find: Finder) -> None:
    source = find.build()
    before = find(f"{full.repository}:1", source=source)
    full.image("linux/amd64", [layer({"new": b""})])
    full.index("1")
    assert find(f"{full.repository}:1", "linux/arm64", source=source).digest == before.digest
    assert find(f"{full.repository}:1", "linux/arm64").digest != before.digest


def test_a_damaged_document_in_the_store_is_fetched_again(full: Shelf, find: Finder, store: Store) -> None:
    ref = f"{full.repository}:1@{find(f'{full.repository}:1').digest}"
    store.content.path(find(ref).manifest.config.digest).write_bytes(b"rubbish")
    assert json.loads(find(ref).config)["os"] == "linux"


@pytest.mark.parametrize(
    ("layers", "config", "why"),
    [
        ([COMMON], b'{"rootfs":{"diff_ids":[]}}', "1 layers, but its config lists 0 diff ids"),
        ([], b'{"rootfs":{"diff_ids":["sha256:' + b"0" * 64 + b'"]}}', "0 layers, but its config lists 1"),
        ([COMMON], b'{"rootfs":{"diff_ids":["x"]}}', "invalid digest"),
        ([COMMON], b"[1, 2]", "not a JSON object"),
        ([COMMON], b"{}", "not a container image"),
        ([Layer(b"", b"x", "application/x-not-a-layer")], b'{"a": "artifact"}', "not a container image"),
    ],
)
def test_what_is_no_proper_image_is_refused(
    shelf: Shelf, find: Finder, layers: Sequence[Layer], config: bytes, why: str
) -> None:
    manifest = shelf.image("linux/amd64", layers, raw_config=config)
    shelf.manifest(manifest.raw, manifest.media_type, "bad")
    with pytest.raises((LayerError, DigestMismatch), match=why):
        find(f"{shelf.repository}:bad")


def test_a_schema_1_manifest_is_refused(shelf: Shelf, find: Finder) -> None:
    shelf.manifest(
        b'{"schemaVersion":1,"fsLayers":[]}', "application/vnd.docker.distribution.manifest.v1+json", "o"
    )
    with pytest.raises(LayerError, match="schema 1"):
        find(f"{shelf.repository}:o")


def test_a_manifest_that_the_index_names_and_nobody_has(full: Shelf, find: Finder) -> None:
    gone = Descriptor(OCI_MANIFEST, sha256_digest(b"gone"), 4, platform=parse_platform("linux/riscv64"))
    full.index("1", [gone])
    with pytest.raises(NotFoundError):
        find(f"{full.repository}:1", "linux/riscv64")


def test_a_config_that_is_not_its_digest(full: Shelf, find: Finder) -> None:
    digest = full.images["linux/amd64"].config.digest
    size = full.images["linux/amd64"].config.size
    full.server.on("GET", f"/v2/app/blobs/{digest}", Reply(200, b"x" * size))
    with pytest.raises(DigestMismatch):
        find(f"{full.repository}:1")
    assert not find.store.content.has(digest)


class TestStoredImages:
    """Images that were built here and have a name in the store."""

    @pytest.fixture
    def stored(self, shelf: Shelf, find: Finder, store: Store, lease: Lease) -> ResolvedImage:
        raw = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
        manifest = make_manifest(Descriptor(OCI_CONFIG, sha256_digest(raw), len(raw)), [], oci=True)
        store.content.put_bytes(raw, lease)
        store.content.put_bytes(manifest.raw, lease)
        store.images.put(f"{shelf.repository}:mine", manifest.descriptor, lease)
        return find(f"{shelf.repository}:mine", mode="local")

    def test_local_asks_nobody(self, stored: ResolvedImage, shelf: Shelf) -> None:
        assert stored.repository == ""
        assert shelf.server.got == []

    def test_default_prefers_the_registry(self, stored: ResolvedImage, full: Shelf, find: Finder) -> None:
        full.index("mine")
        assert find(f"{full.repository}:mine").digest != stored.digest
        assert find.warnings == []

    def test_default_falls_back_with_a_warning(
        self, stored: ResolvedImage, shelf: Shelf, find: Finder
    ) -> None:
        assert find(f"{shelf.repository}:mine").digest == stored.digest
        (warning,) = find.warnings
        assert "using the image of that name in the store" in warning
        assert "not found" in warning

    def test_pull_does_not_fall_back(self, stored: ResolvedImage, shelf: Shelf, find: Finder) -> None:
        with pytest.raises(NotFoundError):
            find(f"{shelf.repository}:mine", mode="pull")

    def test_local_asks_the_registry_for_what_is_not_stored(self, full: Shelf, find: Finder) -> None:
        assert find(f"{full.repository}:1", mode="local").repository == full.repository

    def test_a_name_whose_parts_are_gone(
        self, stored: ResolvedImage, shelf: Shelf, find: Finder, store: Store
    ) -> None:
        store.content.forget(stored.manifest.config.digest)
        with pytest.raises(StoreError, match="but not its part"):
            find(f"{shelf.repository}:mine", mode="local")


def test_an_unknown_mode_is_refused(full: Shelf, find: Finder) -> None:
    with pytest.raises(UsageError, match="invalid image resolve mode"):
        find(f"{full.repository}:1", mode="sometimes")


def test_a_registry_s_error_comes_through(shelf: Shelf, find: Finder) -> None:
    shelf.server.on("HEAD", "/v2/app/manifests/1", Reply(500))
    with pytest.raises(RegistryError) as caught:
        find(f"{shelf.repository}:1")
    assert caught.value.status == 500


def test_layers_are_noted_once_and_shared(full: Shelf, find: Finder, store: Store, lease: Lease) -> None:
    source = find.build()
    amd64 = source.add_layers(find(f"{full.repository}:1", source=source), lease=lease)
    arm64 = source.add_layers(find(f"{full.repository}:1", "linux/arm64", source=source), lease=lease)
    assert amd64[0] == arm64[0]
    assert amd64[1] != arm64[1]
    assert source.add_layers(find(f"{full.repository}:1", source=source), lease=lease) == amd64
    info = store.layers.get(amd64[0])
    assert not info.has_directory
    assert info.diff_id == COMMON.diff_id
    (known,) = info.blobs
    assert (known.descriptor.digest, known.repositories) == (COMMON.descriptor.digest, (full.repository,))
    assert not any(COMMON.descriptor.digest in line for line in full.server.lines())


def test_a_second_repository_of_a_layer_is_noted(
    full: Shelf, find: Finder, store: Store, lease: Lease
) -> None:
    other = Shelf(full.server, "other")
    manifest = other.image("linux/amd64", [COMMON])
    other.manifest(manifest.raw, manifest.media_type, "1")
    source = find.build()
    (first, _) = source.add_layers(find(f"{full.repository}:1", source=source), lease=lease)
    (second,) = source.add_layers(find(f"{other.repository}:1", source=source), lease=lease)
    assert first == second
    assert store.layers.repositories(COMMON.descriptor.digest) == tuple(
        sorted([full.repository, other.repository])
    )
