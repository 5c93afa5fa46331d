"""Go's text rules: quoting, durations, booleans, suggestions, words, fields, paths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdock.dockerfile.paths import PathError, clean, is_absolute, normalise, workdir
from crossdock.dockerfile.text import closest, format_duration, parse_bool, parse_duration, quote
from crossdock.dockerfile.words import csv_fields, json_strings, split_flags, split_words
from crossdock.record import Record, replace

NS = {"ns": 1, "us": 1000, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


@pytest.mark.parametrize(
    ("text", "ns"),
    [("0", 0), ("5s", 5 * 10**9), ("1h2m3s", 3723 * 10**9), ("1.5h", 5400 * 10**9), (".5s", 5 * 10**8),
     ("-1m", -60 * 10**9), ("1us", 1000), ("1\u00b5s", 1000), ("100ms", 10**8)],
)  # fmt: skip
def test_durations_are_read(text: str, ns: int) -> None:
    assert parse_duration(text) == ns


@pytest.mark.parametrize("text", ["", "5", "s", "5x", "1..5s", "-", "1s5", "\u0663s"])
def test_wrong_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="time: "):
        parse_duration(text)


@pytest.mark.parametrize(
    ("ns", "text"),
    [(0, "0s"), (1, "1ns"), (1500, "1.5\u00b5s"), (10**6, "1ms"), (10**9, "1s"), (90 * 10**9, "1m30s"),
     (3600 * 10**9, "1h0m0s"), (1_500_000_000, "1.5s"), (-10**9, "-1s")],
)  # fmt: skip
def test_durations_are_written_as_go_writes_them(ns: int, text: str) -> None:
    assert format_duration(ns) == text


@given(st.integers(min_value=0, max_value=2**62))
def test_durations_survive(ns: int) -> None:
    assert parse_duration(format_duration(ns)) == ns


@pytest.mark.parametrize(
    ("text", "quoted"),
    [("a", '"a"'), ('a"b\\', '"a\\"b\\\\"'), ("\n\t\x00", '"\\n\\t\\x00"'), ("\u00e9\u200b", '"\u00e9\\u200b"'),
     ("\U0001f600\U000e0001", '"\U0001f600\\U000e0001"'), ("\udcff", '"\\xff"')],
)  # fmt: skip
def test_quoting(text: str, quoted: str) -> None:
    assert quote(text) == quoted


def test_booleans() -> None:
    assert [parse_bool(t) for t in ("1", "t", "TRUE", "0", "F", "false")] == [True] * 3 + [False] * 3
    with pytest.raises(ValueError, match="invalid boolean"):
        parse_bool("yes")


@pytest.mark.parametrize(
    ("word", "options", "match"),
    [("RUNN", ["RUN", "ENV"], "RUN"), ("FR", ["ARG", "FROM"], "FROM"), ("xyz", ["RUN"], None), ("RUN", ["RUN"], None),
     ("copi", ["COPY"], "copy"), ("Copi", ["COPY"], "COPY"), ("", ["ADD"], None)],
)  # fmt: skip
def test_suggestions(word: str, options: list[str], match: str | None) -> None:
    assert closest(word, options, ignore_case=True) == match


@pytest.mark.parametrize(
    ("text", "words"),
    [("a b", ["a", "b"]), ('a="b c" d', ['a="b c"', "d"]), ("a\\ b c", ["a\\ b", "c"]), ("'' x", ["''", "x"]),
     ("'a\\' b", ["'a\\'", "b"]), ("a\\", ["a"]), ("", []), ("a\u2003b", ["a", "b"]), ('"open x', ['"open x'])],
)  # fmt: skip
def test_words(text: str, words: list[str]) -> None:
    assert split_words(text, "\\") == words


@pytest.mark.parametrize(
    ("text", "flags", "rest"),
    [("--a=b --c x --d", ["--a=b", "--c"], "x --d"), ('--a="b c" x', ["--a=b c"], "x"), ("-- --x", [], "--x"),
     ("--a\\ b x", ["--a b"], "x"), ("--a", ["--a"], ""), ("x", [], "x"), ("--a='x", ["--a=x"], "")],
)  # fmt: skip
def test_flags(text: str, flags: list[str], rest: str) -> None:
    found, at = split_flags(text, "\\")
    assert (found, text[at:].strip()) == (flags, rest)


@pytest.mark.parametrize(
    ("text", "fields"),
    [("a,b", ["a", "b"]), ('"a,b",c', ["a,b", "c"]), ('"a""b"', ['a"b']), ("a,", ["a", ""]), ('"a",', ["a", ""]),
     (",", ["", ""])],
)  # fmt: skip
def test_fields(text: str, fields: list[str]) -> None:
    assert csv_fields(text) == fields


@pytest.mark.parametrize("text", ["", 'a"b', '"a', '"a"b'])
def test_wrong_fields(text: str) -> None:
    with pytest.raises(ValueError, match=r"parse error|EOF"):
        csv_fields(text)


@pytest.mark.parametrize(
    ("text", "strings"),
    [('["a"]', ["a"]), (" [ ] ", []), ("[NaN]", None), ('["a",]', None), ("{}", None), ('["\\ud800"]', ["\ufffd"]),
     ('["\\ud83d\\ude00"]', ["\U0001f600"]), ("[" * 100_000, None)],
)  # fmt: skip
def test_json_arrays(text: str, strings: list[str] | None) -> None:
    assert json_strings(text) == strings


@pytest.mark.parametrize(
    ("parent", "path", "os_name", "keep", "result"),
    [("/a", "b/", "linux", True, "/a/b/"), ("/a", "b/", "linux", False, "/a/b"), ("/a", "..", "linux", False, "/"),
     ("", "x", "linux", False, "/x"), ("rel", "", "linux", False, "/rel"), ("/a", "b/.", "linux", True, "/a/b/."),
     ("/", "C:\\x\\", "windows", True, "/x/"), ("\\app", "sub", "windows", False, "/app/sub")],
)  # fmt: skip
def test_paths(parent: str, path: str, os_name: str, keep: bool, result: str) -> None:
    assert normalise(parent, path, os_name, keep_slash=keep) == result


def test_windows_paths() -> None:
    assert workdir("C:\\", "app", "windows") == "\\app"
    assert is_absolute("c:\\x", "windows")
    assert not is_absolute("c:x", "windows")
    for path in ("d:\\x", "c:", "\\\\srv\\x"):
        with pytest.raises(PathError):
            normalise("/", path, "windows", keep_slash=False)
    assert clean("//a/../b") == "/b"


class _Point(Record):
    x: int
    y: int = 2


def test_records_are_values() -> None:
    point = _Point(x=1)
    assert (point, hash(point), repr(point)) == (_Point(x=1, y=2), hash(_Point(x=1)), "_Point(x=1, y=2)")
    assert replace(point, y=3) == _Point(x=1, y=3)
    assert point != _Point(x=2)
    with pytest.raises(AttributeError, match="immutable"):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(TypeError, match="needs 'x'"):
        _Point()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="does not take"):
        _Point(x=1, z=2)  # type: ignore[call-arg]
