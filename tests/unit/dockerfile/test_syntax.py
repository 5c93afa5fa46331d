"""Which frontend a file asks for, and which of them are served by ours."""

from __future__ import annotations

import pytest

from crossdock.dockerfile import parse
from crossdock.dockerfile.syntax import foreign_frontend
from support.dockerfiles import build

OFFICIAL = [
    "docker/dockerfile:1",
    "docker/dockerfile:1.7-labs",
    "docker/dockerfile-upstream:master",
    "docker.io/docker/dockerfile",
    "docker/dockerfile:1@sha256:" + "a" * 64,
]


@pytest.mark.parametrize("syntax", OFFICIAL)
def test_every_version_of_the_official_frontend_is_served(syntax: str) -> None:
    data = f"# syntax={syntax}\nFROM alpine\n".encode()
    assert foreign_frontend(data, "Dockerfile", {}) == ""
    assert parse(data).directive("syntax") is not None


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"# syntax=example.org/other:1\nFROM alpine\n", "example.org/other:1"),
        (b"# syntax=example.org/other:1 an argument\nwhatever\n", "example.org/other:1"),
        (b"// syntax=example.org/other\nwhatever\n", "example.org/other"),
        (b'{"syntax": "example.org/other"}', "example.org/other"),
        (b"#!/usr/bin/env x\n# syntax=example.org/other\n", "example.org/other"),
        (b"# syntax=docker/dockerfile-of-somebody\nFROM alpine\n", "docker/dockerfile-of-somebody"),
        (b"# syntax=example.org/docker/dockerfile:1\nFROM alpine\n", "example.org/docker/dockerfile:1"),
        (b"# syntax=NOT A REFERENCE\nFROM alpine\n", "NOT"),
        (b"# a comment\n# syntax=example.org/other\nFROM alpine\n", ""),
        (b"FROM alpine\n", ""),
        (b"", ""),
    ],
)
def test_any_other_image_is_foreign(data: bytes, wanted: str) -> None:
    assert foreign_frontend(data, "Dockerfile", {}) == wanted


@pytest.mark.parametrize(
    ("argument", "wanted"),
    [
        ("docker/dockerfile:1", ""),
        ("dockerfile.v0", ""),
        (" example.org/x:2 more", "example.org/x:2"),
        ("", "example.org/other"),
    ],
)
def test_the_build_argument_chooses_the_frontend_first(argument: str, wanted: str) -> None:
    data = b"# syntax=example.org/other\nFROM alpine\n"
    assert foreign_frontend(data, "Dockerfile", {"BUILDKIT_SYNTAX": argument}) == wanted


def test_a_conversion_is_of_whatever_it_is_given() -> None:
    # A frontend in an image may hand its file to ours, syntax line and all.
    assert build("# syntax=example.org/other\nFROM alpine\n")
