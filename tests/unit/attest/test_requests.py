"""Which attestations attributes ask for."""

from __future__ import annotations

import pytest

from crossdock.builds.attest.requests import DEFAULT_GENERATOR, asks_for, read_attests
from crossdock.errors import NotSupported, UsageError


@pytest.mark.parametrize(
    "attrs",
    [
        {},
        {"build-arg:OTHER": "1"},
        {"attest:provenance": "disabled=true"},
        {"attest:provenance": "false"},
        {"build-arg:BUILDKIT_ATTEST_SBOM": "0"},
    ],
)
def test_nothing_is_asked_for(attrs: dict[str, str]) -> None:
    assert read_attests(attrs) is None


def test_defaults_are_those_of_buildkit() -> None:
    found = read_attests({"attest:provenance": "", "attest:sbom": ""})
    assert found is not None
    assert found.provenance is not None
    assert (found.provenance.mode, found.provenance.version) == ("max", "v1")
    assert found.provenance.filename == "provenance.json"
    assert found.sbom is not None
    assert found.sbom.generator.familiar == DEFAULT_GENERATOR
    assert found.sbom.params == {}
    assert found.beyond_inline


def test_every_parameter_is_read() -> None:
    text = 'mode=min,version=v0.2,"builder-id=https://x/?a=1,b=2",filename=p.json,reproducible=1,inline-only=true,complete-materials=t'
    found = read_attests({"attest:provenance": text})
    assert found is not None
    assert found.provenance == ("min", "v0.2", "https://x/?a=1,b=2", "p.json", True, True, True)
    assert not found.beyond_inline


def test_other_keys_are_the_scanners() -> None:
    found = read_attests({"attest:sbom": "generator=example.org/scan,Depth=3,flag"})
    assert found is not None
    assert found.sbom is not None
    assert str(found.sbom.generator) == "example.org/scan:latest"
    assert found.sbom.params == {"Depth": "3", "flag": ""}


def test_an_attribute_goes_before_the_build_argument() -> None:
    attrs = {"attest:provenance": "mode=min", "build-arg:BUILDKIT_ATTEST_PROVENANCE": "mode=max"}
    for order in (attrs, dict(reversed(attrs.items()))):
        found = read_attests(order)
        assert found is not None
        assert found.provenance is not None
        assert found.provenance.mode == "min"


@pytest.mark.parametrize(
    ("attrs", "message"),
    [
        ({"attest:vex": ""}, "unknown attestation type 'vex'"),
        ({"attest:provenance": "mode=medium"}, "invalid mode 'medium'"),
        ({"attest:provenance": "version=v2"}, "invalid provenance SLSA version: v2"),
        ({"attest:provenance": "reproducible=perhaps"}, "'perhaps' is not a boolean"),
        ({"attest:provenance": "moed=min"}, "unknown parameter 'moed'"),
        ({"attest:provenance": "filename=../x"}, "invalid filename"),
        ({"attest:sbom": "generator="}, "generator cannot be empty"),
        ({"attest:sbom": "generator=UPPER case"}, "invalid reference"),
    ],
)
def test_what_is_wrong_is_named(attrs: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_attests(attrs)


def test_samples_are_not_promised() -> None:
    with pytest.raises(NotSupported, match="capture-usage"):
        read_attests({"attest:provenance": "capture-usage=true"})
    assert read_attests({"attest:provenance": "capture-usage=false"}) is not None


def test_whether_anything_is_said() -> None:
    assert asks_for({"attest:sbom": "x"})
    assert asks_for({"build-arg:BUILDKIT_ATTEST_SBOM": "x"})
    assert not asks_for({"build-arg:X": "attest:sbom"})
