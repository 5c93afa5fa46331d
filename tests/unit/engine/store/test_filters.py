from __future__ import annotations

from typing import Any

import pytest

from crossdock.engine.store.filters import parse_cli_filters, parse_duration, parse_filters
from crossdock.engine.store.usage import UsageRecord
from crossdock.errors import UsageError

NOW_NS = 1_700_000_000 * 10**9


def record(**changes: Any) -> UsageRecord:
    values: dict[str, Any] = {
        "id": "abcd2345",
        "kind": "layer",
        "mutable": False,
        "in_use": False,
        "size": 10,
        "parents": ("parent22", "parent33"),
        "created_ns": 0,
        "last_used_ns": 0,
        "usage_count": 1,
        "description": "[2/3] RUN make, install",
        "record_type": "regular",
        "shared": False,
    }
    return UsageRecord(**(values | changes))


@pytest.mark.parametrize(
    ("filters", "matches"),
    [
        ([], True),
        ([""], True),
        (["id==abcd2345"], True),
        (["id=abcd2345"], True),
        (["id==abcd"], False),
        (["id~=^abcd"], True),
        (["id!=abcd2345"], False),
        (["id!=x"], True),
        (["parents==parent22"], True),
        (["parents==parent22;parent33"], True),
        (["parents~=t3"], True),
        (["parents!=parent22"], False),
        (["parents"], True),
        (["description~=make"], True),
        (['description=="[2/3] RUN make, install"'], True),
        (["description=='[2/3] RUN make, install'"], True),
        (["type==regular"], True),
        (["type==frontend"], False),
        (["inuse"], False),
        (["inuse=false"], True),
        (["inuse!=true"], True),
        (["mutable"], False),
        (["immutable"], True),
        (["immutable==true,private"], True),
        (["shared"], False),
        (["private"], True),
        (["id~=abcd,type==frontend"], False),
        (["type==frontend", "id~=abcd"], True),
        (["type==source.local", "type==exec.cachemount"], False),
    ],
    ids=lambda value: "|".join(value) or "none" if isinstance(value, list) else "",
)
def test_api_filters(filters: list[str], matches: bool) -> None:
    assert parse_filters(filters)(record()) is matches


@pytest.mark.parametrize(
    "text", ["nothere==1", "id~=(", "==x", "inuse==maybe", "shared~=t", "id=a b==c,,", "mutable=2", "id>3"]
)
def test_wrong_filters_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_filters([text])


@pytest.mark.parametrize(
    ("filters", "expected", "keep_s"),
    [
        ([], (), 0),
        (["until=24h"], (), 86400),
        (["unused-for=1h30m"], (), 5400),
        (["id=abc"], ("id~=abc",), 0),
        (["id==abc"], ("id==abc",), 0),
        (["type=regular", "shared", "until=2d"], ("type=regular,shared",), 172800),
        (["description~=RUN"], ("description~=RUN",), 0),
        (["until=1699990000"], (), 10_000),
        (["until=2023-11-14T22:13:10Z"], (), 10),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else "",
)
def test_command_line_filters(filters: list[str], expected: tuple[str, ...], keep_s: float) -> None:
    found = parse_cli_filters(filters, NOW_NS)
    assert found.filters == expected
    assert found.keep_duration_s == pytest.approx(keep_s)


@pytest.mark.parametrize("filters", [["until=x"], ["until=1h", "unused-for=2h"], ["until="], ["nope=1"]])
def test_wrong_command_line_filters_are_refused(filters: list[str]) -> None:
    with pytest.raises(UsageError):
        parse_cli_filters(filters, NOW_NS)


@pytest.mark.parametrize(
    ("text", "seconds"), [("1h30m", 5400), ("90s", 90), ("1.5h", 5400), ("100ms", 0.1), ("7d", 604800)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "h", "1h x", "-1h"])
def test_wrong_durations(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)
