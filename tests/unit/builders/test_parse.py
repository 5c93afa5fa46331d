"""Flags and API arguments become typed parts of a request, or one clear error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdock.builders import parse
from crossdock.builders.request import OutputSpec, SecretSpec
from crossdock.builders.values import csv_fields, parse_bytes, parse_duration
from crossdock.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("out", OutputSpec(type="local", dest="out")),
        ("-", OutputSpec(type="tar", dest="-")),
        ("a=b/c", OutputSpec(type="local", dest="a=b/c")),
        ("type=docker", OutputSpec(type="docker")),
        (
            "type=oci,dest=a.tar,Compression=zstd",
            OutputSpec(type="oci", dest="a.tar", attrs={"compression": "zstd"}),
        ),
        ("type=registry", OutputSpec(type="image", attrs={"push": "true", "unpack": "false"})),
        ('type=image,"name=a,b"', OutputSpec(type="image", attrs={"name": "a,b"})),
        ("type=oci", OutputSpec(type="oci", dest="-")),
        ("type=cacheonly", OutputSpec(type="cacheonly")),
    ],
)
def test_outputs(text: str, expected: OutputSpec) -> None:
    assert parse.parse_output(text) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("type=foo", "unsupported output type"),
        ("dest=a,name=b", "type is required"),
        ("type=local", "dest is required"),
        ("type=local,dest=-", "standard output"),
        ("type=image,dest=x", "takes no dest"),
        ("type=oci,foo", "invalid value foo"),
        ('type=oci,"dest', "invalid value"),
    ],
)
def test_wrong_outputs(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse.parse_output(text)


def test_push_pushes_image_outputs_or_adds_one() -> None:
    (only,) = parse.with_push(())
    assert only.attrs == {"push": "true", "unpack": "false"}
    image, local = parse.with_push([OutputSpec(type="image"), OutputSpec(type="local", dest="o")])
    assert image.attrs["push"] == "true"
    assert local.type == "local"


def test_load_is_added_once() -> None:
    once = parse.with_load(())
    assert once == (OutputSpec(type="docker"),)
    assert parse.with_load(once) == once
    assert len(parse.with_load([OutputSpec(type="docker", dest="f")])) == 2


def test_tags_become_full_names_once() -> None:
    assert parse.parse_tags(["app", "app:latest", "localhost:5000/a/b:1"]) == (
        "docker.io/library/app:latest",
        "localhost:5000/a/b:1",
    )
    with pytest.raises(UsageError, match="cannot have a digest"):
        parse.parse_tags(["a@sha256:" + "0" * 64])


def test_a_bare_build_argument_takes_the_environment_or_is_dropped() -> None:
    assert parse.parse_build_args(["A=1", "B", "C"], {"B": "env"}) == {"A": "1", "B": "env"}


def test_context_names_are_normalised() -> None:
    found = parse.parse_contexts(
        ["alpine=docker-image://x", "docker.io/library/base:latest=dir", "p::linux/arm64=d"]
    )
    assert found == {"alpine": "docker-image://x", "base": "dir", "p::linux/arm64": "d"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("id=a,src=f", SecretSpec(id="a", path="f")),
        ("id=a,source=f,type=file", SecretSpec(id="a", path="f")),
        ("id=a,env=E", SecretSpec(id="a", env="E")),
        ("id=a,type=env,src=E", SecretSpec(id="a", env="E")),
        ("id=SET_HERE", SecretSpec(id="SET_HERE", env="SET_HERE")),
        ("id=not_set", SecretSpec(id="not_set", path="not_set")),
    ],
)
def test_secrets(text: str, expected: SecretSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SET_HERE", "x")
    assert parse.parse_secret(text) == expected


@pytest.mark.parametrize("text", ["src=f", "id=a,foo=b", "id=a,type=vault", "id"])
def test_wrong_secrets(text: str) -> None:
    with pytest.raises(UsageError):
        parse.parse_secret(text)


def test_cache_entries() -> None:
    assert parse.parse_cache_entries(["user/app:cache,b", "type=local,src=d"]) == (
        {"type": "registry", "ref": "user/app:cache"},
        {"type": "registry", "ref": "b"},
        {"type": "local", "src": "d"},
    )
    with pytest.raises(UsageError, match="type required"):
        parse.parse_cache_entries(["ref=x"])


def test_attestations() -> None:
    assert parse.parse_attests(["type=sbom,generator=x"], provenance="max") == {
        "sbom": {"generator": "x"},
        "provenance": {"mode": "max"},
    }
    assert parse.parse_attests([], provenance="false") == {"provenance": None}
    with pytest.raises(UsageError, match="duplicate"):
        parse.parse_attests(["type=sbom", "type=sbom"])


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("1k", 1024),
        ("1.5m", 1536 * 1024),
        ("2GiB", 2 << 30),
        ("3gb", 3 << 30),
        ("-1", -1),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("20s", 20),
        ("1h30m", 5400),
        ("1.5s", 1.5),
        ("500ms", 0.5),
        ("0", 0),
        ("-2m", -120),
        ("1h0m0.5s", 3600.5),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "s", "1x", "1h 2m", "--1s"])
def test_wrong_durations(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)


@given(
    st.lists(
        st.text(st.characters(exclude_characters="\r\n\x00", exclude_categories=["Cs"]), min_size=1),
        min_size=1,
    )
)
def test_quoted_fields_come_back(fields: list[str]) -> None:
    text = ",".join('"' + f.replace('"', '""') + '"' for f in fields)
    assert csv_fields(text) == fields


@given(st.text())
def test_any_text_is_an_output_or_a_usage_error(text: str) -> None:
    try:
        parse.parse_output(text)
    except UsageError:
        return
