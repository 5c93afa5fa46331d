from __future__ import annotations

import pytest

from crossdock.engine.exporters import ExporterSpec, check_exporters
from crossdock.engine.exporters.attrs import parse_files, parse_image
from crossdock.errors import CrossdockError, NotSupported, UsageError
from crossdock.image import parse_platform


def spec(kind: str, **attrs: str) -> ExporterSpec:
    return ExporterSpec(kind, {key.replace("_", "-"): value for key, value in attrs.items()})


def test_an_image_is_named_and_kept_and_not_pushed_by_default() -> None:
    options = parse_image(spec("image", name="user/app:1, localhost:5000/x , user/app:1"), None)
    assert options.names == ("docker.io/user/app:1", "localhost:5000/x")
    assert (options.push, options.store, options.oci_types) == (False, True, True)


def test_a_pushed_image_is_not_kept_unless_asked() -> None:
    assert parse_image(spec("registry", name="a"), None)[7:][:4] == (True, False, False, False)
    assert parse_image(spec("registry", name="a", store="true"), None).store
    assert not parse_image(spec("registry", name="a", push="false"), None).push


def test_archives_name_a_tag() -> None:
    assert parse_image(spec("oci", name="app"), None).names == ("docker.io/library/app:latest",)


@pytest.mark.parametrize(
    ("text", "build", "expected"), [(None, 5, 5), ("9", 5, 9), ("", 5, None), (None, None, None)]
)
def test_an_epoch_of_the_output_goes_before_that_of_the_build(
    text: str | None, build: int | None, expected: int | None
) -> None:
    attrs = {} if text is None else {"source_date_epoch": text}
    assert parse_image(spec("image", **attrs), build).epoch_s == expected
    assert parse_files(spec("local", dest="x", **attrs), build).epoch_s == expected


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (spec("image", pusch="true"), UsageError, "unknown attribute 'pusch' for the image exporter"),
        (spec("image", dest="x"), UsageError, "unknown attribute 'dest' for the image exporter"),
        (spec("oci", push="true", dest="x"), UsageError, "unknown attribute 'push' for the oci exporter"),
        (spec("local", dest="x", name="y"), UsageError, "unknown attribute 'name' for the local exporter"),
        (spec("tar", dest="x", mode="copy"), UsageError, "unknown attribute 'mode' for the tar exporter"),
        (spec("image", push="maybe"), UsageError, "non-bool value 'maybe' specified for push"),
        (spec("image", name="UPPER"), UsageError, "UPPER"),
        (spec("image", push="true"), UsageError, "a name is needed to push"),
        (spec("registry"), UsageError, "a name is needed to push"),
        (spec("image", name="a:1", push="1", push_by_digest="1"), UsageError, "can't push tagged ref"),
        (
            spec("image", rewrite_timestamp="1", unpack="1"),
            UsageError,
            '"rewrite-timestamp" conflicts with "unpack"',
        ),
        (spec("image", source_date_epoch="soon"), UsageError, "source-date-epoch: 'soon'"),
        (spec("image", compression="estargz"), NotSupported, "estargz"),
        (spec("local", dest="x", mode="move"), UsageError, "'move' for mode"),
        (spec("local", dest="x", platform_split="x"), UsageError, "platform-split"),
        (spec("local"), UsageError, "dest is required for the local exporter"),
        (spec("docker", tar="false", dest="x"), UsageError, "tar=false is for the oci exporter"),
        (spec("oci", tar="false"), UsageError, "dest directory is required"),
        (spec("floppy"), UsageError, "unsupported exporter type 'floppy'"),
        (
            ExporterSpec("image", {"annotation-index.a": "b", "oci-mediatypes": "false"}),
            UsageError,
            'cannot export annotations with "oci-mediatypes=false"',
        ),
        (
            ExporterSpec("image", {"annotation-layer.a": "b"}),
            UsageError,
            "unrecognized annotation type 'layer'",
        ),
        (ExporterSpec("image", {"annotation[what/ever].a": "b"}), UsageError, "what/ever"),
    ],
    ids=lambda value: value.replace("/", "-")[:60] if isinstance(value, str) else "",
)
def test_what_is_wrong_is_named_before_anything_is_built(
    given: ExporterSpec, kind: type[CrossdockError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        check_exporters([given], multi_platform=False)


def test_a_misspelt_attribute_gets_a_suggestion() -> None:
    with pytest.raises(UsageError) as caught:
        parse_image(spec("image", pusch="true"), None)
    assert caught.value.hint == "did you mean 'push'?"


def test_annotations_of_every_kind() -> None:
    attrs = {
        "annotation.a": "everywhere",
        "annotation-manifest[linux/arm64].a": "arm",
        "annotation-manifest-descriptor.org.x/y": "1",
        "annotation-index.i": "2",
        "annotation-index-descriptor.j": "3",
    }
    found = parse_image(ExporterSpec("image", attrs), None).annotations
    arm, amd = parse_platform("linux/arm64"), parse_platform("linux/amd64")
    assert found.get("manifest", arm) == {"a": "arm"}
    assert found.get("manifest", amd) == {"a": "everywhere"}
    assert found.get("manifest-descriptor", amd) == {"org.x/y": "1"}
    assert (found.get("index"), found.get("index-descriptor")) == ({"i": "2"}, {"j": "3"})
    with pytest.raises(UsageError, match="no platform linux/arm64 found in source"):
        found.check([amd], indexed=True)
    with pytest.raises(UsageError, match="index annotations not supported for single platform"):
        found.check([arm], indexed=False)
