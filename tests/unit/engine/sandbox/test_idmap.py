"""Id maps as plans."""

from __future__ import annotations

import pytest

from crossdock.engine.sandbox.idmap import (
    IdRange,
    contains,
    format_map,
    identity_map,
    parse_id_map,
    parse_subids,
    ranges_map,
)


@pytest.mark.parametrize(
    ("current", "expected"),
    [
        pytest.param("0 0 4294967295\n", "0 0 4294967294\n", id="all ids, less one: crun takes a full map for the host's"),
        pytest.param("         0       1000          1\n", "0 0 1\n", id="a single-id map"),
        pytest.param("0 1000 1\n1 100000 65536\n", "0 0 1\n1 1 65536\n", id="a rootless container"),
        pytest.param("", "", id="no user namespaces"),
    ],
)  # fmt: skip
def test_identity_keeps_every_id_under_its_number(current: str, expected: str) -> None:
    assert format_map(identity_map(parse_id_map(current))) == expected


SUBUID = """
# comment
root:50000:10
ann:100000:65536
1001:300000:1000
ann:200000:5
bad
ann:x:y
ann:1:0
"""


@pytest.mark.parametrize(
    ("name", "uid", "granted"),
    [
        pytest.param(
            "ann", 7, ((100000, 65536), (200000, 5)), id="by name, all lines, malformed ones passed over"
        ),
        pytest.param("bob", 1001, ((300000, 1000),), id="by number"),
        pytest.param("eve", 9, (), id="nothing granted"),
    ],
)
def test_subordinate_ranges(name: str, uid: int, granted: tuple[tuple[int, int], ...]) -> None:
    assert parse_subids(SUBUID, name=name, uid=uid) == granted


def test_ranges_follow_each_other_after_the_user() -> None:
    maps = ranges_map(1000, ((100000, 10), (500000, 5)))
    assert maps == (IdRange(0, 1000, 1), IdRange(1, 100000, 10), IdRange(11, 500000, 5))
    assert [contains(maps, n) for n in (0, 15, 16)] == [True, True, False]
