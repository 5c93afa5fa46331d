"""Challenges of ``WWW-Authenticate``."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdock.registry.challenge import Challenge, parse_challenges


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (['Basic realm="x"'], [("basic", {"realm": "x"})]),
        (
            ['Bearer realm="https://a/token",service="s",scope="repository:a/b:pull,push repository:c:pull"'],
            [
                (
                    "bearer",
                    {
                        "realm": "https://a/token",
                        "service": "s",
                        "scope": "repository:a/b:pull,push repository:c:pull",
                    },
                )
            ],
        ),
        (
            ['Basic realm="a", Bearer realm="b" , service=c'],
            [("basic", {"realm": "a"}), ("bearer", {"realm": "b", "service": "c"})],
        ),
        (['Bearer realm="a"', "Basic"], [("bearer", {"realm": "a"}), ("basic", {})]),
        (["Negotiate, Basic realm=x"], [("negotiate", {}), ("basic", {"realm": "x"})]),
        (["NTLM TlRMTVNTUA==, Basic realm=x"], [("ntlm", {}), ("basic", {"realm": "x"})]),
        ([r'Basic realm="say \"hi\""'], [("basic", {"realm": 'say "hi"'})]),
        (['BEARER Realm="a"'], [("bearer", {"realm": "a"})]),
        ([""], []),
        (["  , ,"], []),
    ],
    ids=[
        "basic",
        "bearer with two scopes",
        "two in one header",
        "two headers",
        "one without parameters",
        "one with a token68",
        "quoted quotes",
        "any case",
        "nothing",
        "commas",
    ],
)
def test_challenges(values: list[str], expected: list[tuple[str, dict[str, str]]]) -> None:
    assert parse_challenges(values) == [Challenge(*pair) for pair in expected]


@given(st.text(alphabet='Basicer ="\\,\t:/x', max_size=60))
def test_any_text_is_parsed(text: str) -> None:
    for challenge in parse_challenges([text]):
        assert challenge.scheme
