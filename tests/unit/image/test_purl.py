"""Package URLs, as BuildKit writes them."""

from __future__ import annotations

import pytest

from crossdock.image.platform import parse_platform
from crossdock.image.purl import image_purl
from crossdock.image.reference import parse_reference

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("ref", "platform", "expected"),
    [
        ("alpine", None, "pkg:docker/alpine@latest"),
        ("docker.io/library/alpine:3.20", None, "pkg:docker/alpine@3.20"),
        ("foo/bar:v2", "linux/arm/v7", "pkg:docker/foo/bar@v2?platform=linux%2Farm%2Fv7"),
        (
            "localhost:5000/a/b",
            "linux/amd64",
            "pkg:docker/localhost%3A5000/a/b@latest?platform=linux%2Famd64",
        ),
        (f"alpine@{DIGEST}", "linux/amd64", f"pkg:docker/alpine?digest={DIGEST}&platform=linux%2Famd64"),
        (f"alpine:3@{DIGEST}", None, f"pkg:docker/alpine@3?digest={DIGEST}"),
    ],
)
def test_references_become_package_urls(ref: str, platform: str | None, expected: str) -> None:
    wanted = None if platform is None else parse_platform(platform)
    assert image_purl(parse_reference(ref), wanted) == expected


def test_the_kind_is_the_type() -> None:
    assert image_purl(parse_reference("a/b:c"), kind="oci") == "pkg:oci/a/b@c"
