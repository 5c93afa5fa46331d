"""Digests, descriptors, manifests, indexes and configs."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdock.errors import DigestMismatch, LayerError
from crossdock.image import (
    Descriptor,
    DiffId,
    ImageConfig,
    Index,
    Manifest,
    Platform,
    chain_ids,
    digest_hex,
    make_index,
    make_manifest,
    parse_digest,
    parse_manifest,
    parse_platform,
    select_platform,
    sha256_digest,
)
from crossdock.image import mediatypes as mt

A, B, C = (sha256_digest(text) for text in (b"a", b"b", b"c"))
CONFIG = Descriptor(mt.OCI_CONFIG, A, 5)
LAYER = Descriptor(mt.OCI_LAYER_GZIP, B, 7, annotations={"z": "1", "a": "2"})

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5) | st.sampled_from([A, mt.OCI_INDEX]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("text", [A, "sha384:" + "0" * 96, "sha512:" + "f" * 128])
def test_digests(text: str) -> None:
    assert parse_digest(text) == text
    assert digest_hex(text) == text.split(":")[1]


@pytest.mark.parametrize(
    "text", ["", "sha256:", A[:-1], A + "0", A.upper(), "md5:" + "0" * 32, A + "\n", "../" + A, "0" * 64]
)
def test_what_is_no_digest(text: str) -> None:
    with pytest.raises(DigestMismatch):
        parse_digest(text)


def test_chain_ids_follow_the_specification() -> None:
    a, b, c = (DiffId(x) for x in (A, B, C))
    second = "sha256:" + hashlib.sha256(f"{A} {B}".encode()).hexdigest()
    third = "sha256:" + hashlib.sha256(f"{second} {C}".encode()).hexdigest()
    assert [str(x) for x in chain_ids((a, b, c))] == [A, second, third]
    assert chain_ids(()) == ()


def test_a_descriptor_keeps_every_field() -> None:
    data = {
        "mediaType": mt.OCI_MANIFEST,
        "digest": A,
        "size": 3,
        "urls": ["https://x/"],
        "annotations": {"a": "b"},
        "data": "eA==",
        "platform": {"architecture": "arm", "os": "linux", "variant": "v7"},
        "artifactType": "application/x",
    }
    read = Descriptor.from_json(data, "here")
    assert read.to_json() == data
    assert list(read.to_json()) == list(data)


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"mediaType": "x", "size": 1},
        {"mediaType": "x", "digest": A},
        {"mediaType": "x", "digest": A, "size": -1},
        {"mediaType": "x", "digest": A, "size": True},
        {"mediaType": "x", "digest": A, "size": "1"},
        {"mediaType": 5, "digest": A, "size": 1},
    ],
)
def test_what_is_no_descriptor_names_its_place(data: object) -> None:
    with pytest.raises(LayerError, match="somewhere: descriptor"):
        Descriptor.from_json(data, "somewhere")


@pytest.mark.parametrize("oci", [True, False])
def test_a_manifest_survives_the_round_trip(oci: bool) -> None:
    made = make_manifest(CONFIG, [LAYER], oci=oci, annotations={"k": "v"})
    read = parse_manifest(made.raw, "", "here")
    assert isinstance(read, Manifest)
    assert (read.config, read.layers, read.media_type) == (CONFIG, (LAYER,), made.media_type)
    assert read.descriptor == made.descriptor
    assert json.loads(made.raw).get("annotations") == ({"k": "v"} if oci else None)


@pytest.mark.parametrize("oci", [True, False])
def test_an_index_survives_the_round_trip(oci: bool) -> None:
    entry = Descriptor(mt.OCI_MANIFEST, A, 5, platform=parse_platform("linux/arm64"))
    made = make_index([entry], oci=oci, annotations={"k": "v"})
    read = parse_manifest(made.raw, "", "here")
    assert isinstance(read, Index)
    assert (read.manifests, read.media_type) == ((entry,), made.media_type)


def test_bytes_are_laid_out_as_buildkit_does() -> None:
    raw = make_manifest(CONFIG, [LAYER], oci=True).raw.decode()
    assert raw.startswith(
        '{\n  "schemaVersion": 2,\n  "mediaType": "application/vnd.oci.image.manifest.v1+json",\n'
    )
    assert raw.endswith("\n  ]\n}")
    assert raw.index('"a": "2"') < raw.index('"z": "1"')


@pytest.mark.parametrize(
    ("document", "media_type", "kind", "read_type"),
    [
        ({"manifests": []}, "", Index, mt.OCI_INDEX),
        ({"manifests": []}, mt.DOCKER_INDEX, Index, mt.DOCKER_INDEX),
        ({"manifests": []}, f"{mt.DOCKER_INDEX}; charset=utf-8", Index, mt.DOCKER_INDEX),
        ({"mediaType": mt.DOCKER_INDEX, "manifests": []}, mt.OCI_INDEX, Index, mt.DOCKER_INDEX),
        ({"config": CONFIG.to_json(), "layers": []}, "", Manifest, mt.OCI_MANIFEST),
        ({"config": CONFIG.to_json()}, mt.DOCKER_MANIFEST, Manifest, mt.DOCKER_MANIFEST),
        ({"config": CONFIG.to_json(), "layers": None}, "text/plain", Manifest, mt.OCI_MANIFEST),
    ],
)
def test_what_a_document_is(document: object, media_type: str, kind: type, read_type: str) -> None:
    read = parse_manifest(json.dumps(document).encode(), media_type, "here")
    assert type(read) is kind
    assert read.media_type == read_type


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "neither an image manifest nor an index"),
        (b'{"schemaVersion": 1, "fsLayers": []}', "schema 1"),
        (b'{"config": {}}', "config: descriptor"),
        (b'{"manifests": [1]}', r"manifests\[0\]: descriptor"),
        (b'{"manifests": 7}', "manifests: not a list"),
        (b'{"manifests": [], "annotations": []}', "annotations: not an object"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_a_malformed_document_names_its_place(raw: bytes, why: str) -> None:
    with pytest.raises(LayerError, match=f"here: .*{why}|here: {why}"):
        parse_manifest(raw, "", "here")


@given(
    json_values
    | st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ("manifests", "config", "layers", "annotations", "mediaType", "schemaVersion"), json_values
        ),
    )
)
def test_any_json_is_read_or_refused(value: Any) -> None:
    try:
        parse_manifest(json.dumps(value).encode(), mt.OCI_MANIFEST, "here")
    except (LayerError, DigestMismatch):
        return


def entry(platform: str | None, digest: str = A, **annotations: str) -> Descriptor:
    where = parse_platform(platform) if platform else None
    return Descriptor(mt.OCI_MANIFEST, parse_digest(digest), 1, annotations, where)


@pytest.mark.parametrize(
    ("entries", "wanted", "expected"),
    [
        ([entry("linux/amd64", A), entry("linux/arm64", B)], "linux/arm64", B),
        ([entry("linux/arm/v6", A), entry("linux/arm/v7", B)], "linux/arm/v7", B),
        ([entry("linux/arm/v5", A), entry("linux/arm/v6", B)], "linux/arm/v7", B),
        ([entry("linux/arm/v7", A)], "linux/arm/v6", None),
        ([entry("linux/amd64", A), entry("linux/amd64/v2", B)], "linux/amd64/v3", B),
        ([entry("linux/amd64", A), entry("linux/amd64", B)], "linux/amd64", A),
        (
            [entry("linux/amd64", A, **{"vnd.docker.reference.type": "attestation-manifest"})],
            "linux/amd64",
            None,
        ),
        ([entry(None)], "linux/amd64", None),
        ([], "linux/amd64", None),
    ],
    ids=[
        "the one",
        "the exact variant",
        "the best lower variant",
        "never a higher variant",
        "a lower level",
        "the first of two",
        "never an attestation",
        "never without a platform",
        "none",
    ],
)
def test_choosing_by_platform(entries: list[Descriptor], wanted: str, expected: str | None) -> None:
    found = select_platform(Index(b"", mt.OCI_INDEX, tuple(entries)), parse_platform(wanted))
    assert (found and found.digest) == expected


def test_an_unnormalised_entry_is_chosen() -> None:
    odd = Descriptor(mt.OCI_MANIFEST, A, 1, platform=Platform("linux", "aarch64", "v8"))
    assert select_platform(Index(b"", mt.OCI_INDEX, (odd,)), parse_platform("linux/arm64")) is odd


@pytest.mark.parametrize(
    ("media_type", "compression"),
    [
        (mt.OCI_LAYER, "uncompressed"),
        (mt.OCI_LAYER_GZIP, "gzip"),
        (mt.OCI_LAYER_ZSTD, "zstd"),
        (mt.DOCKER_LAYER, "uncompressed"),
        (mt.DOCKER_LAYER_GZIP, "gzip"),
        (mt.DOCKER_LAYER_ZSTD, "zstd"),
    ],
)
def test_layer_types(media_type: str, compression: str) -> None:
    assert mt.is_layer(media_type)
    assert mt.compression_of(media_type) == compression
    assert mt.layer_type(compression, oci=media_type.startswith("application/vnd.oci")) == media_type


@pytest.mark.parametrize("media_type", [mt.OCI_CONFIG, mt.OCI_EMPTY, mt.OCI_INDEX, "application/json", ""])
def test_what_is_no_layer(media_type: str) -> None:
    assert not mt.is_layer(media_type)


def test_foreign_layers_are_layers() -> None:
    assert mt.is_layer("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")
    assert mt.is_layer("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip")


FULL: dict[str, Any] = {
    "architecture": "arm64",
    "author": "me",
    "config": {
        "ArgsEscaped": True,
        "AttachStdin": False,
        "Cmd": ["a"],
        "Entrypoint": [],
        "Env": ["PATH=/bin", "A=b=c"],
        "ExposedPorts": {"80/tcp": {}},
        "Healthcheck": {
            "Test": ["CMD", "x"],
            "Interval": 1,
            "Timeout": 2,
            "StartPeriod": 3,
            "StartInterval": 4,
            "Retries": 5,
        },
        "Labels": {"l": "v"},
        "OnBuild": ["RUN x"],
        "Shell": ["/bin/sh"],
        "StopSignal": "SIGINT",
        "User": "u",
        "Volumes": {"/v": {}},
        "WorkingDir": "/w",
    },
    "container": "unknown to us",
    "created": "2024-01-01T00:00:00Z",
    "history": [{"created": "2024-01-01T00:00:00Z", "created_by": "x", "empty_layer": True}, {}],
    "os": "linux",
    "rootfs": {"type": "layers", "diff_ids": [A]},
    "variant": "v8",
}


def test_a_config_keeps_every_field_it_knows_and_does_not_know() -> None:
    assert ImageConfig.from_json(json.dumps(FULL).encode(), "here").to_dict() == FULL


def test_a_config_s_bytes_are_stable() -> None:
    config = ImageConfig.from_json(json.dumps(FULL).encode(), "here")
    again = ImageConfig.from_json(config.to_json(), "here")
    assert again.to_json() == config.to_json()


def test_absent_is_not_empty() -> None:
    bare = ImageConfig.from_json(b'{"os": "linux", "architecture": "amd64"}', "here")
    assert bare.cmd is None
    assert bare.to_dict()["config"] == {}
    assert ImageConfig.from_json(b'{"config": {"Cmd": []}}', "here").cmd == []
    assert ImageConfig.from_json(b'{"config": null}', "here").cmd is None


def test_the_last_of_repeated_variables_wins() -> None:
    config = ImageConfig(platform=parse_platform("linux/amd64"), env=["A=1", "B=2", "A=3", "C"])
    assert config.env_map() == {"A": "3", "B": "2", "C": ""}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"null",
        b'{"config": []}',
        b'{"config": {"Env": 5}}',
        b'{"rootfs": 5}',
        b'{"history": [1]}',
        b'{"config": {"Labels": [1]}}',
        b'{"config": {"Healthcheck": {"Retries": "x"}}}',
        b"[" * 100_000,
    ],
    ids=lambda raw: repr(raw[:40]),
)
def test_a_malformed_config_names_its_place(raw: bytes) -> None:
    with pytest.raises(LayerError, match="here: image config"):
        ImageConfig.from_json(raw, "here")


@given(
    json_values
    | st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("config", "rootfs", "history", "os", "created"), json_values)
    )
)
def test_any_json_is_a_config_or_refused(value: Any) -> None:
    try:
        config = ImageConfig.from_json(json.dumps(value).encode(), "here")
    except LayerError:
        return
    assert isinstance(config, ImageConfig)
