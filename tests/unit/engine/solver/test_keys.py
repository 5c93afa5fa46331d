"""Keys are unambiguous and explainable."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from crossdock.engine.solver import KeyHasher

_FIELD = st.one_of(
    st.tuples(st.just("text"), st.text(max_size=4), st.text(max_size=4)),
    st.tuples(st.just("data"), st.text(max_size=4), st.binary(max_size=4)),
    st.tuples(st.just("number"), st.text(max_size=4), st.integers()),
    st.tuples(st.just("texts"), st.text(max_size=4), st.lists(st.text(max_size=3), max_size=3).map(tuple)),
)


def key(fields: Any, kind: Any = "k") -> Any:
    hasher = KeyHasher(kind)
    for method, label, value in fields:
        getattr(hasher, method)(label, value)
    return hasher.finish()


@given(st.lists(_FIELD, max_size=4), st.lists(_FIELD, max_size=4))
def test_different_fields_give_different_keys(one: Any, two: Any) -> None:
    assert (key(one) == key(two)) == (one == two)


def test_kinds_are_separate_key_spaces() -> None:
    assert key([], "exec") != key([], "file")


def test_the_recorder_sees_every_field() -> None:
    seen = []
    KeyHasher("k", lambda label, value: seen.append((label, value))).text("a", "x").number("n", 3).texts(
        "l", ["p", "q"]
    ).finish()
    assert seen == [("a", "x"), ("n", "3"), ("l", "['p', 'q']")]


def test_names_that_are_not_utf8_are_kept_apart() -> None:
    assert key([("text", "a", "\udcff")]) != key([("text", "a", "\udcfe")])
