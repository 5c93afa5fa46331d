"""References, normalised as docker does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdock.errors import UsageError
from crossdock.image import Digest, Reference, parse_reference

HEX = "a" * 64
DIGEST = f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "canonical", "familiar"),
    [
        ("alpine", "docker.io/library/alpine", "alpine"),
        ("alpine:3", "docker.io/library/alpine:3", "alpine:3"),
        ("team/app", "docker.io/team/app", "team/app"),
        ("docker.io/alpine", "docker.io/library/alpine", "alpine"),
        ("docker.io/library/alpine", "docker.io/library/alpine", "alpine"),
        ("index.docker.io/alpine:1", "docker.io/library/alpine:1", "alpine:1"),
        ("library/alpine", "docker.io/library/alpine", "alpine"),
        ("localhost/app", "localhost/app", "localhost/app"),
        ("localhost:5000/app:1", "localhost:5000/app:1", "localhost:5000/app:1"),
        ("localhost:5000", "docker.io/library/localhost:5000", "localhost:5000"),
        ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c"),
        ("[::1]:5000/app", "[::1]:5000/app", "[::1]:5000/app"),
        ("example.com/app", "example.com/app", "example.com/app"),
        ("Example/app", "Example/app", "Example/app"),
        (f"alpine@{DIGEST}", f"docker.io/library/alpine@{DIGEST}", f"alpine@{DIGEST}"),
        (f"alpine:3@{DIGEST}", f"docker.io/library/alpine:3@{DIGEST}", f"alpine:3@{DIGEST}"),
        ("a/b__c.d-e--f", "docker.io/a/b__c.d-e--f", "a/b__c.d-e--f"),
        ("xn--n3h.com/app", "xn--n3h.com/app", "xn--n3h.com/app"),
    ],
)
def test_references(text: str, canonical: str, familiar: str) -> None:
    parsed = parse_reference(text)
    assert str(parsed) == canonical
    assert parsed.familiar == familiar
    assert parse_reference(familiar) == parsed
    assert parse_reference(canonical) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":tag",
        "Alpine",
        "a//b",
        "/app",
        "app/",
        "app:",
        "app:tag:tag",
        "app:-tag",
        "app:" + "t" * 129,
        "app@",
        "app@sha256:xyz",
        "app@md5:" + "a" * 32,
        f"app@{DIGEST}@{DIGEST}",
        "-app",
        "app-",
        "a___b",
        "a..b",
        "https://example.com/app",
        "example.com:port/app",
        "exa mple.com/app",
        "a" * 256,
        HEX,
    ],
)
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(UsageError, match="invalid reference"):
        parse_reference(text)


def test_an_upper_case_name_gets_a_hint() -> None:
    with pytest.raises(UsageError) as caught:
        parse_reference("team/App")
    assert caught.value.hint == "repository names are lower case"


def test_parts() -> None:
    parsed = parse_reference(f"h:1/a/b:t@{DIGEST}")
    assert parsed == Reference("h:1", "a/b", "t", Digest(DIGEST))
    assert parsed.repository == "h:1/a/b"
    assert parsed.object == DIGEST
    assert parse_reference("a:t").object == "t"
    assert parse_reference("a").object == "latest"
    assert parse_reference("a").with_default_tag().tag == "latest"
    assert parse_reference(f"a@{DIGEST}").with_default_tag().tag is None


@given(st.text(alphabet="aA0:/@._-[]", max_size=30))
def test_whatever_is_parsed_is_stable(text: str) -> None:
    try:
        parsed = parse_reference(text)
    except UsageError:
        return
    assert parse_reference(str(parsed)) == parsed
    assert parse_reference(parsed.familiar) == parsed
