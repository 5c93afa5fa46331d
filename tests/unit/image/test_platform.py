"""Platforms, as containerd parses, normalises and matches them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdock.errors import UsageError
from crossdock.image import Platform, local_platform, match_order, parse_platform, parse_platforms
from crossdock.image.platform import format_platforms, offers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/x86_64", "linux/amd64"),
        ("linux/x86-64", "linux/amd64"),
        ("linux/i386", "linux/386"),
        ("linux/arm64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm64/v9", "linux/arm64/v9"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/7", "linux/arm/v7"),
        ("linux/arm/v6", "linux/arm/v6"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("LINUX/ARM64", "linux/arm64"),
        ("macos/arm64", "darwin/arm64"),
        ("windows(10.0.17763)/amd64", "windows(10.0.17763)/amd64"),
        ("windows/amd64", "windows/amd64"),
        ("linux/ppc64le", "linux/ppc64le"),
        ("linux/ppc64el", "linux/ppc64le"),
        ("linux/s390x", "linux/s390x"),
        ("linux/riscv64", "linux/riscv64"),
        ("linux/loong64", "linux/loong64"),
        (" linux/amd64 ", "linux/amd64"),
    ],
)
def test_parsing(text: str, expected: str) -> None:
    assert str(parse_platform(text)) == expected


def test_parts_alone_mean_this_machine_s_other_part() -> None:
    here = local_platform()
    assert parse_platform("local") == here
    assert parse_platform("linux") == Platform("linux", here.architecture, here.variant)
    assert str(parse_platform("arm64")) == f"{here.os}/arm64"
    assert str(parse_platform("armhf")) == f"{here.os}/arm/v7"


@pytest.mark.parametrize(
    "text",
    ["", "/", "linux/", "linux/amd64/v1/x", "linux/vax", "beos/amd64", "nonsense", "linux/am d64", "a,b"],
)
def test_what_is_no_platform(text: str) -> None:
    with pytest.raises(UsageError):
        parse_platform(text)


def test_lists_keep_order_and_drop_repeats() -> None:
    found = parse_platforms(["linux/arm64,linux/amd64", "linux/arm64/v8", "", "linux/arm,"])
    assert format_platforms(found) == "linux/arm64, linux/amd64, linux/arm/v7"


@pytest.mark.parametrize(
    ("wanted", "accepted"),
    [
        ("linux/amd64", ["linux/amd64"]),
        ("linux/amd64/v3", ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64"]),
        ("linux/arm/v7", ["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]),
        ("linux/arm/v5", ["linux/arm/v5"]),
        ("linux/arm64", ["linux/arm64"]),
        ("linux/arm64/v9", ["linux/arm64/v9", "linux/arm64"]),
        ("linux/386", ["linux/386"]),
    ],
)
def test_what_satisfies_a_platform(wanted: str, accepted: list[str]) -> None:
    assert [str(p) for p in match_order(parse_platform(wanted))] == accepted


def test_json_keeps_every_field() -> None:
    data = {
        "architecture": "arm",
        "os": "linux",
        "os.version": "1",
        "os.features": ["a"],
        "variant": "v7",
    }
    assert Platform.from_json(data).to_json() == data
    assert list(Platform.from_json(data).to_json()) == list(data)


@pytest.mark.parametrize("data", [None, [], "linux", {"os": 5}])
def test_json_of_other_shapes_is_no_error(data: object) -> None:
    assert isinstance(Platform.from_json(data), Platform)


@given(st.text(alphabet="linuxarm64v8/()78 ", max_size=20))
def test_whatever_is_parsed_is_normal(text: str) -> None:
    try:
        parsed = parse_platform(text)
    except UsageError:
        return
    assert parsed.normalised() == parsed
    assert parse_platform(str(parsed)) == parsed


@pytest.mark.parametrize(
    ("offered", "wanted", "expected"),
    [
        ("linux/arm64", "linux/arm", True),
        ("linux/arm64", "linux/arm/v6", True),
        ("linux/arm", "linux/arm64", False),
        ("linux/arm/v6", "linux/arm/v7", False),
        ("linux/arm/v7", "linux/arm/v6", True),
        ("linux/amd64", "linux/386", True),
        ("linux/amd64/v3", "linux/amd64", True),
        ("linux/amd64", "linux/amd64/v3", False),
        ("linux/amd64", "linux/arm64", False),
        ("linux/amd64", "windows/amd64", False),
    ],
)
def test_what_a_node_offers_along_with_its_platform(offered: str, wanted: str, expected: bool) -> None:
    assert offers(parse_platform(offered), parse_platform(wanted)) is expected
