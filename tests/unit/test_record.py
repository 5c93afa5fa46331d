"""Records behave as frozen, slotted dataclasses, and the named tuples as those of ``typing``."""

from __future__ import annotations

import copy
import pickle
import typing
from dataclasses import dataclass
from dataclasses import field as dc_field
from typing import Any, ClassVar

import pytest

from crossdock.record import NamedTuple, Record, field, replace


class Point(Record, kw_only=False):
    """Fields by position."""

    x: int
    y: int = 0
    names: dict[str, int] = field(default_factory=dict, hash=False)
    secret: str = ""
    origin: ClassVar[str] = "here"

    @property
    def total(self) -> int:
        return self.x + self.y


@dataclass(frozen=True, slots=True)
class Model:
    x: int
    y: int = 0
    names: dict[str, int] = dc_field(default_factory=dict, hash=False)
    secret: str = ""


class Raw(Record):
    size: int
    raw: bytes = field(repr=False)


class Deeper(Raw):
    depth: int = 3


class Loose(Record, frozen=False):
    words: list[str] = field(default_factory=list)
    name: str = ""


class Nothing(Record):
    pass


class Pair(NamedTuple):
    left: int
    right: str = "r"

    def both(self) -> str:
        return f"{self.left}{self.right}"


class TypingPair(typing.NamedTuple):
    left: int
    right: str = "r"


CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((1,), {}),
    ((1, 2), {}),
    ((1,), {"y": 2, "secret": "s"}),
    ((), {"x": 1}),
    ((), {}),
    ((1, 2, {}, "", 5), {}),
    ((1,), {"x": 1}),
    ((1,), {"z": 1}),
    ((), {"z": 1, "x": 1, "y": 2, "names": {}}),
]


@pytest.mark.parametrize(("args", "values"), CALLS)
def test_a_record_takes_what_a_dataclass_takes(args: tuple[Any, ...], values: dict[str, Any]) -> None:
    try:
        expected: Any = Model(*args, **values)
    except TypeError:
        with pytest.raises(TypeError, match="Point"):
            Point(*args, **values)
        return
    made = Point(*args, **values)
    for name in ("x", "y", "names", "secret"):
        assert getattr(made, name) == getattr(expected, name)


@pytest.mark.parametrize(("args", "values"), [((1,), {}), ((1, "b"), {}), ((), {"right": "b", "left": 1})])
def test_a_named_tuple_takes_what_the_model_takes(args: tuple[Any, ...], values: dict[str, Any]) -> None:
    made, model = Pair(*args, **values), TypingPair(*args, **values)
    assert tuple(made) == tuple(model)
    assert made._asdict() == model._asdict()
    assert made._fields == model._fields
    assert repr(made) == repr(model).replace("TypingPair", "Pair")
    assert tuple(made._replace(left=9)) == tuple(model._replace(left=9))


@pytest.mark.parametrize(
    ("args", "values"),
    [((), {}), ((1, 2, 3), {}), ((1,), {"left": 2}), ((1,), {"up": 2}), ((1, 2), {"up": 2})],
)
def test_a_named_tuple_refuses_what_the_model_refuses(args: tuple[Any, ...], values: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        TypingPair(*args, **values)
    with pytest.raises(TypeError, match="Pair"):
        Pair(*args, **values)


def test_named_tuples_are_tuples_with_methods() -> None:
    left, right = pair = Pair(1)
    assert (left, right, pair[1], pair.both()) == (1, "r", "r", "1r")
    assert not hasattr(pair, "__dict__")
    with pytest.raises(AttributeError):
        pair.left = 2  # type: ignore[misc]
    match pair:
        case Pair(a, b):
            assert (a, b) == (1, "r")


@pytest.mark.parametrize(
    "value", [Point(1, 2, {"a": 1}), Raw(size=1, raw=b"x"), Loose(name="n"), Nothing(), Pair(1)]
)
def test_values_survive_pickling_and_copying(value: Any) -> None:
    for other in (pickle.loads(pickle.dumps(value)), copy.copy(value), copy.deepcopy(value)):
        assert other == value
        assert type(other) is type(value)


def test_records_cannot_be_changed_unless_they_say_so() -> None:
    point = Point(1)
    with pytest.raises(AttributeError, match="immutable"):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError, match="immutable"):
        del point.x
    with pytest.raises(AttributeError):
        point.other = 2
    loose = Loose()
    loose.name = "new"
    assert loose == Loose(name="new")
    with pytest.raises(TypeError, match="unhashable"):
        hash(loose)


def test_defaults_are_made_anew() -> None:
    assert Loose().words is not Loose().words
    assert Point(1).names is not Point(1).names


def test_equality_and_hash_go_by_type_and_fields() -> None:
    assert Point(1, names={"a": 1}) != Point(1)
    assert hash(Point(1, names={"a": 1})) == hash(Point(1))
    assert hash(Point(1)) != hash(Point(2))
    assert Point(1) != Model(1)
    assert Raw(size=1, raw=b"") != Deeper(size=1, raw=b"", depth=3)
    assert Nothing() == Nothing()
    assert len({Point(1), Point(1), Point(2)}) == 2


def test_what_is_shown() -> None:
    assert repr(Raw(size=1, raw=b"long")) == "Raw(size=1)"
    assert repr(Deeper(size=1, raw=b"long")) == "Deeper(size=1, depth=3)"
    assert repr(Point(1)) == "Point(x=1, y=0, names={}, secret='')"


def test_replace_copies() -> None:
    assert replace(Point(1, 2), y=5) == Point(1, 5)
    assert replace(Deeper(size=1, raw=b"x"), depth=7).raw == b"x"
    with pytest.raises(TypeError, match="does not take zz"):
        replace(Point(1), zz=1)


def test_patterns_match_by_position_and_by_name() -> None:
    match Point(1, 2):
        case Point(a, b):
            assert (a, b) == (1, 2)
    match Raw(size=4, raw=b""):
        case Raw(size=size):
            assert size == 4
