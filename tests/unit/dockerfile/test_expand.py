"""Variable expansion: every form and modifier, by table, and against a real shell."""

from __future__ import annotations

import shutil
import string
import subprocess
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdock.dockerfile.expand import ExpandError, expand, expand_words

ENV = {"V": "value", "EMPTY": "", "P": "/usr/local/lib/x.tar.gz", "S": "a b", "N": "1", "REP": "foo-bar-foo"}

CASES = [
    ("plain", "plain"),
    ("$V", "value"),
    ("${V}", "value"),
    ("x${V}y", "xvaluey"),
    ("$Vx", ""),
    ("$UNSET", ""),
    ("${UNSET}", ""),
    (r"\$V", "$V"),
    (r"\${V}", "${V}"),
    ("'$V'", "$V"),
    ('"$V"', "value"),
    (r'"\$V"', "$V"),
    (r'"a\tb"', r"a\tb"),
    (r"a\tb", "atb"),
    (r'"a\"b"', 'a"b'),
    ("$", "$"),
    ("a$.b", "a$.b"),
    ("$1x", "x"),
    ("${V:-w}", "value"),
    ("${UNSET:-w}", "w"),
    ("${EMPTY:-w}", "w"),
    ("${EMPTY-w}", ""),
    ("${UNSET-w}", "w"),
    ("${UNSET:-}", ""),
    ("${V:+w}", "w"),
    ("${EMPTY:+w}", ""),
    ("${EMPTY+w}", "w"),
    ("${UNSET+w}", ""),
    ("${V:?}", "value"),
    ("${EMPTY?}", ""),
    ("${UNSET:-${V:+$N}}", "1"),
    ("${UNSET:-a${UNSET:-b}c}", "abc"),
    ("${P#*/}", "usr/local/lib/x.tar.gz"),
    ("${P##*/}", "x.tar.gz"),
    ("${P%.*}", "/usr/local/lib/x.tar"),
    ("${P%%.*}", "/usr/local/lib/x"),
    ("${P%/*}", "/usr/local/lib"),
    ("${P#nothing}", "/usr/local/lib/x.tar.gz"),
    ("${UNSET#x}", ""),
    ("${V#?}", "alue"),
    ("${REP/foo/X}", "X-bar-foo"),
    ("${REP//foo/X}", "X-bar-X"),
    ("${REP//o/}", "f-bar-f"),
    ("${REP/*/X}", "X"),
    ("${REP//*/X}", "X"),
    ("${P//\\//_}", "_usr_local_lib_x.tar.gz"),
    ("${V/\\*/x}", "value"),
]


@pytest.mark.parametrize(("word", "expected"), CASES, ids=[c[0] for c in CASES])
def test_a_form_gives_its_value(word: str, expected: str) -> None:
    assert expand(word, ENV).text == expected


ERRORS = [
    ("${", "syntax error: missing '}'"),
    ("${V", "syntax error: missing '}'"),
    ("${}", "syntax error: bad substitution"),
    ("${V:x}", "unsupported modifier (:x) in substitution"),
    ("${V!}", "unsupported modifier (!) in substitution"),
    ("${V:#x}", "unsupported modifier (:#) in substitution"),
    ("${UNSET:?give a version}", "UNSET: give a version"),
    ("${UNSET?}", "UNSET: is not allowed to be unset"),
    ("${EMPTY:?}", "EMPTY: is not allowed to be empty"),
    ("${V/a}", "syntax error: missing '/' in ${}"),
    ("${V/a/b", "syntax error: missing '}'"),
    ("'open", "unexpected end of statement while looking for matching single-quote"),
    ('"open', "unexpected end of statement while looking for matching double-quote"),
    (r"${V#\d}", r"invalid pattern (\d) in substitution: invalid escape '\d'"),
]


@pytest.mark.parametrize(("word", "message"), ERRORS, ids=[e[0] for e in ERRORS])
def test_a_wrong_form_says_what_is_wrong(word: str, message: str) -> None:
    with pytest.raises(ExpandError) as info:
        expand(word, ENV)
    assert message in str(info.value)
    assert "failed to process" in str(info.value)


def test_the_names_used_are_told() -> None:
    result = expand("$V $X ${Y:-$N} $X", ENV)
    assert result.matched == ("V", "N")
    assert result.unmatched == ("X", "Y")


def test_a_backtick_can_be_the_escape_character() -> None:
    assert expand(r"C:\dir\`$V", ENV, escape="`").text == r"C:\dir\$V"


def test_quotes_and_unset_variables_can_stay() -> None:
    text = 'echo "$V" ${X} ${Y:-z} $X'
    assert expand(text, ENV, keep_quotes=True, keep_unset=True).text == 'echo "value" ${X} ${Y:-z} $X'


def test_quotes_mean_nothing_in_here_documents() -> None:
    assert expand('it\'s "$V"', ENV, plain_quotes=True).text == 'it\'s "value"'


def test_words_are_split_after_expansion_but_not_inside_quotes() -> None:
    assert expand_words('$S "$S" x${S}y', ENV) == ["a", "b", "a b", "xa", "by"]


def test_deep_nesting_is_an_error_and_no_crash() -> None:
    with pytest.raises(ExpandError, match="nested too deeply"):
        expand("${a:-" * 100_000 + "}" * 100_000, {})


_LITERAL = st.text(string.ascii_letters + string.digits + "/._-", max_size=6)
_NAME = st.sampled_from(["V", "EMPTY", "UNSET", "P"])


def _modified(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.builds("${{{}:-{}}}".format, _NAME, inner),
        st.builds("${{{}-{}}}".format, _NAME, inner),
        st.builds("${{{}:+{}}}".format, _NAME, inner),
        st.builds("${{{}+{}}}".format, _NAME, inner),
        st.builds("{}{}".format, _LITERAL, inner),
        st.builds("'{}'".format, _LITERAL),
    )


_PATTERN = st.text("ab./*?", min_size=1, max_size=5)
_STRIPPED = st.builds("${{{}{}{}}}".format, _NAME, st.sampled_from(["#", "##", "%", "%%"]), _PATTERN)
_WORD = st.recursive(
    st.one_of(_LITERAL, st.builds("${{{}}}".format, _NAME), _STRIPPED), _modified, max_leaves=6
)


@pytest.mark.skipif(shutil.which("dash") is None and shutil.which("sh") is None, reason="no POSIX shell")
@settings(max_examples=30, deadline=None)
@given(st.lists(_WORD, min_size=20, max_size=20))
def test_a_shell_agrees(words: list[str]) -> None:
    """Inside double quotes nothing is split or globbed, so both must give the same text."""
    quoted = [w.replace("'", "") for w in words]
    script = "".join(f'printf "%s\\n" "{w}"\n' for w in quoted)
    shell = shutil.which("dash") or "sh"
    done = subprocess.run([shell, "-c", script], env=ENV, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:-1] == [expand(f'"{w}"', ENV).text for w in quoted]


@given(st.text())
def test_any_text_gives_a_word_or_an_expand_error(text: str) -> None:
    with suppress(ExpandError):
        expand(text, ENV)
        expand_words(text, ENV)
