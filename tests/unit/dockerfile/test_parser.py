"""From bytes to the syntax tree: directives, continuation, here-documents, places, problems."""

from __future__ import annotations

from typing import Any

import pytest

from crossdock.dockerfile import parse
from crossdock.dockerfile.directives import detect_syntax
from crossdock.dockerfile.instructions import KEYWORDS
from crossdock.errors import DockerfileError


def only(text: str | bytes) -> Any:
    """Return the one instruction after FROM."""
    data = text if isinstance(text, bytes) else text.encode()
    (instruction,) = parse(b"FROM scratch\n" + data).stages[0].instructions
    return instruction


def problems(text: str | bytes) -> list[DockerfileError]:
    """Return all problems of a file."""
    with pytest.raises(DockerfileError) as info:
        parse(text if isinstance(text, bytes) else text.encode())
    return [info.value, *info.value.others]


# --- format ----------------------------------------------------------------------------------------------------------

CONTINUED = [
    ("RUN a \\\nb", "a b"),
    ("RUN a \\\n  b", "a   b"),
    ("RUN a \\  \t\nb", "a b"),
    ("RUN a \\\n# comment\nb", "a b"),
    ("RUN a \\\n   # comment\n  b", "a   b"),
    ("RUN a \\\n\nb", "a b"),
    ("RUN a \\", "a"),
    ("RUN a \\\\", "a \\\\"),
    ("RUN a \\\\\nRUN2", None),
    ("RUN a \\\r\nb\r\n", "a b"),
    ("\tRUN a", "a"),
    ("RUN\ta", "a"),
    ("RUN    a   b  ", "a   b"),
    ("run a", "a"),
    ("RUN a # not a comment", "a # not a comment"),
    ("RUN \\\n a", "a"),
]


@pytest.mark.parametrize(("text", "expected"), CONTINUED)
def test_lines_are_joined(text: str, expected: str | None) -> None:
    if expected is None:
        assert "unknown instruction: RUN2" in str(problems("FROM scratch\n" + text)[0])
        return
    assert only(text).args == (expected,)


def test_the_escape_directive_changes_continuation() -> None:
    tree = parse(b"# escape=`\nFROM scratch\nRUN dir c:\\ `\n && x\n")
    assert tree.escape == "`"
    assert tree.stages[0].instructions[0].text == "RUN dir c:\\  && x"


def test_a_byte_order_mark_is_no_part_of_the_file() -> None:
    assert parse(b"\xef\xbb\xbf# escape=`\nFROM scratch\n").escape == "`"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("# syntax=a\n# escape=`\n# check=skip=all\nFROM x", ["syntax", "escape", "check"]),
        ("#syntax = a\nFROM x", ["syntax"]),
        ("# SYNTAX=a\nFROM x", ["syntax"]),
        ("# hello\n# syntax=a\nFROM x", []),
        ("\n# syntax=a\nFROM x", []),
        ("# unknown=a\n# syntax=a\nFROM x", []),
        ("FROM x\n# syntax=a", []),
        ("# syntax=\nFROM x", []),
    ],
)
def test_directives_are_only_in_the_first_lines(text: str, names: list[str]) -> None:
    assert [d.name for d in parse(text.encode()).directives] == names


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"# syntax=docker/dockerfile:1 x=y\nFROM a", "docker/dockerfile:1 x=y"),
        (b"// syntax=foo\nanything", "foo"),
        (b'{"syntax": "foo/bar"}', "foo/bar"),
        (b"#!/usr/bin/env x\n# syntax=foo\n", "foo"),
        (b"\xef\xbb\xbf# syntax=foo\n", "foo"),
        (b"FROM a", None),
        (b'{"syntax": 3}', None),
        (b"{" * 100_000, None),
    ],
)
def test_the_frontend_is_found_in_every_form(data: bytes, value: str | None) -> None:
    found = detect_syntax(data)
    assert (found.value if found else None) == value


def test_comments_above_from_and_arg_describe_them() -> None:
    tree = parse(
        b"# V the version\nARG V=1\n# base where it starts\nFROM a AS base\n# other text\nFROM b AS c\n"
    )
    assert tree.global_args[0].items[0].description == "the version"
    assert [s.head.description for s in tree.stages] == ["where it starts", ""]


# --- here-documents --------------------------------------------------------------------------------------------------


def test_a_here_document_is_the_script_of_run() -> None:
    run = only("RUN <<EOF\necho a\n# kept\n\necho b \\\nEOF\n")
    assert [(f.name, f.data) for f in run.files] == [("EOF", "echo a\n# kept\n\necho b \\\n")]
    assert run.where.start.line == 2
    assert run.where.end.line == 7


def test_several_here_documents_on_a_line() -> None:
    copy = only("COPY <<A <<-'B' <<\"C\" x /d/\na\nA\n\tb $X\n\tB\nc\nC\n")
    assert [(f.name, f.data, f.expand) for f in copy.files] == [
        ("A", "a\n", True),
        ("B", "b $X\n", False),
        ("C", "c\n", False),
    ]
    assert copy.sources == ("x",)
    assert copy.destination == "/d/"


@pytest.mark.parametrize(
    ("text", "files"),
    [
        ("RUN cat <<EOF > /x\nhi\nEOF\n", ["EOF"]),
        ("RUN <<EOF cat\nhi\nEOF\n", ["EOF"]),
        ("RUN 3<<EOF cat\nhi\nEOF\n", ["EOF"]),
        ("RUN cat << EOF\nhi\nEOF\n", ["EOF"]),
        ("RUN echo '<<EOF'\n", []),
        ('RUN echo "<<EOF"\n', []),
        ("RUN echo $((1<<2))\n", []),
        ('RUN ["a", "<<EOF"]\n', []),
        ("RUN cat <<<EOF\n", []),
        ("CMD <<EOF\n", []),
        ("ONBUILD RUN <<EOF\nhi\nEOF\n", None),
    ],
)
def test_what_is_a_here_document(text: str, files: list[str] | None) -> None:
    instruction = only(text)
    if files is None:
        assert instruction.expression == "RUN <<EOF\nhi\nEOF"
        return
    assert [f.name for f in getattr(instruction, "files", ())] == files


def test_carriage_returns_stay_in_a_body_but_end_it_all_the_same() -> None:
    assert only("COPY <<EOF /x\r\na\r\nEOF\r\n").files[0].data == "a\r\n"


def test_an_unterminated_here_document_says_how_to_end_it() -> None:
    (problem,) = problems("FROM a\nRUN <<EOF\necho\n")
    assert str(problem) == "dockerfile parse error on line 2: unterminated heredoc"
    assert problem.hint == "end it with a line that is just EOF"


# --- instructions ----------------------------------------------------------------------------------------------------

FORMS: list[tuple[str, dict[str, Any]]] = [
    ("ADD a b /c/", {"sources": ("a", "b"), "destination": "/c/", "unpack": None, "keep_git_dir": None}),
    ("ADD --unpack=false --keep-git-dir a /c", {"unpack": False, "keep_git_dir": True}),
    ("ADD --checksum=sha256:x --link https://h/f /c", {"checksum": "sha256:x", "link": True}),
    ('ADD ["a b", "/c d/"]', {"sources": ("a b",), "destination": "/c d/"}),
    ("COPY --from=x --chown=1:2 --chmod=u+x a /c", {"from_": "x", "chown": "1:2", "chmod": "u+x"}),
    ("COPY --exclude=*.a --exclude=b --parents a/./b /c", {"exclude": ("*.a", "b"), "parents": True}),
    ("COPY --link=TRUE a /c", {"link": True}),
    ('COPY --chown="a b" a /c', {"chown": "a b"}),
    ("COPY -- --a /c", {"sources": ("--a",)}),
    ("RUN a b", {"args": ("a b",), "json": False, "network": "default", "security": "sandbox"}),
    ('RUN ["a", "b"]', {"args": ("a", "b"), "json": True}),
    ("RUN ['a']", {"args": ("['a']",), "json": False}),
    ('RUN ["a"', {"args": ('["a"',), "json": False}),
    ("RUN []", {"args": (), "json": True}),
    ("RUN --network=host --security=insecure x", {"network": "host", "security": "insecure"}),
    ("RUN --mount=type=bind,from=x,target=/y --mount=target=/z x", {"mount_sources": ("x", "")}),
    ("CMD a b", {"args": ("a b",), "json": False}),
    ('CMD ["a"]', {"args": ("a",), "json": True}),
    ("CMD", {"args": (), "json": False}),
    ('ENTRYPOINT [ "a" , "\\u00e9" ]', {"args": ("a", "é"), "json": True}),
    ('SHELL ["/bin/bash", "-c"]', {"args": ("/bin/bash", "-c")}),
    ("EXPOSE 80 443/tcp 1-3/udp", {"ports": ("1-3/udp", "443/tcp", "80")}),
    ("VOLUME /a /b", {"paths": ("/a", "/b")}),
    ('VOLUME ["/a b"]', {"paths": ("/a b",)}),
    ("USER a:b", {"user": "a:b"}),
    ("WORKDIR /a b", {"path": "/a b"}),
    ("STOPSIGNAL SIGTERM", {"signal": "SIGTERM"}),
    ("MAINTAINER me <me@x>", {"author": "me <me@x>"}),
    ("HEALTHCHECK NONE", {"test": ("NONE",)}),
    ("HEALTHCHECK CMD curl x", {"test": ("CMD-SHELL", "curl x"), "interval_ns": 0}),
    ('HEALTHCHECK --interval=1m30s --timeout=1.5s --retries=3 cmd ["a"]',
     {"test": ("CMD", "a"), "interval_ns": 90_000_000_000, "timeout_ns": 1_500_000_000, "retries": 3}),
    ("HEALTHCHECK --start-period=0 --start-interval=1ms CMD a",
     {"start_period_ns": 0, "start_interval_ns": 1_000_000}),
    ("ONBUILD COPY a /b", {"expression": "COPY a /b"}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "fields"), FORMS, ids=[f[0] for f in FORMS])
def test_a_form_is_read(text: str, fields: dict[str, Any]) -> None:
    instruction = only(text)
    assert {name: getattr(instruction, name) for name in fields} == fields


PAIRS = [
    ("ENV a=b", [("a", "b")]),
    ("ENV a=b c=d", [("a", "b"), ("c", "d")]),
    ("ENV a b c", [("a", "b c")]),
    ('ENV a="b c" d=e\\ f', [("a", '"b c"'), ("d", "e\\ f")]),
    ("ENV a=b=c", [("a", "b=c")]),
    ("ENV a=", [("a", "")]),
    ("LABEL a.b/c=d 'x y'=z", [("a.b/c", "d"), ("'x y'", "z")]),
    ("LABEL a b", [("a", "b")]),
]


@pytest.mark.parametrize(("text", "pairs"), PAIRS, ids=[p[0] for p in PAIRS])
def test_assignments_are_read(text: str, pairs: list[tuple[str, str]]) -> None:
    assert [(p.key, p.value) for p in only(text).pairs] == pairs


def test_args_are_read() -> None:
    items = only('ARG a b=c d="e f" g=').items
    assert [(i.name, i.value) for i in items] == [("a", None), ("b", "c"), ("d", '"e f"'), ("g", "")]


def test_every_keyword_of_the_reference_is_known() -> None:
    assert sorted(KEYWORDS) == [
        "ADD",
        "ARG",
        "CMD",
        "COPY",
        "ENTRYPOINT",
        "ENV",
        "EXPOSE",
        "FROM",
        "HEALTHCHECK",
        "LABEL",
        "MAINTAINER",
        "ONBUILD",
        "RUN",
        "SHELL",
        "STOPSIGNAL",
        "USER",
        "VOLUME",
        "WORKDIR",
    ]


# --- problems --------------------------------------------------------------------------------------------------------

WRONG = [
    ("RUNN x", "unknown instruction: RUNN (did you mean RUN?)", (2, 0)),
    ("runn x", "unknown instruction: runn (did you mean run?)", (2, 0)),
    ("copi a b", "unknown instruction: copi (did you mean copy?)", (2, 0)),
    ("FOOBAR", "unknown instruction: FOOBAR", (2, 0)),
    ("COPY --form=x a b", "unknown flag: --form (did you mean from?)", (2, 5)),
    ("COPY --parents=maybe a b", "expecting boolean value for flag --parents, not: maybe", (2, 5)),
    ("COPY --link= a b", "missing a value on flag: --link", (2, 5)),
    ("COPY --from a b", "missing a value on flag: --from", (2, 5)),
    ("COPY --from=a --from=b a b", "duplicate flag specified: --from", (2, 14)),
    ("COPY a", "COPY requires at least two arguments, but only one was provided. Destination could not be "
               "determined", (2, 0)),
    ("ADD", "ADD requires at least two arguments", (2, 0)),
    ("COPY a <<EOF\nEOF", "COPY cannot accept a heredoc as a destination", (2, 7)),
    ('COPY ["a", 1]', "when using JSON array syntax, arrays must be comprised of strings only", (2, 5)),
    ('CMD [["a"]]', "when using JSON array syntax, arrays must be comprised of strings only", (2, 4)),
    ("ENV", "ENV requires at least one argument", (2, 0)),
    ("ENV a", "ENV must have two arguments", (2, 0)),
    ("ENV a=b c", "Syntax error - can't find = in \"c\". Must be of the form: name=value", (2, 8)),
    ("ENV =b", "ENV names can not be blank", (2, 4)),
    ("ARG", "ARG requires at least one argument", (2, 0)),
    ("ARG =x", "ARG names can not be blank", (2, 4)),
    ("LABEL --x a=b", "unknown flag: --x", (2, 6)),
    ("FROM a b", "FROM requires either one or three arguments", (2, 0)),
    ("FROM a AS 1x", 'invalid name for build stage: "1x", name can\'t start with a number or contain symbols',
     (2, 10)),
    ("FROM --plattform=x a", "unknown flag: --plattform (did you mean platform?)", (2, 5)),
    ("SHELL bash", "SHELL requires the arguments to be in JSON form", (2, 6)),
    ("SHELL []", "SHELL requires at least one argument", (2, 0)),
    ("USER", "USER requires exactly one argument", (2, 0)),
    ("VOLUME", "VOLUME requires at least one argument", (2, 0)),
    ('VOLUME ["/a", " "]', "VOLUME specified can not be an empty string", (2, 0)),
    ("EXPOSE", "EXPOSE requires at least one argument", (2, 0)),
    ("WORKDIR", "WORKDIR requires exactly one argument", (2, 0)),
    ("HEALTHCHECK", "HEALTHCHECK requires at least one argument", (2, 0)),
    ("HEALTHCHECK NONE x", "HEALTHCHECK NONE takes no arguments", (2, 17)),
    ("HEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD", (2, 0)),
    ("HEALTHCHECK FOO x", 'Unknown type "FOO" in HEALTHCHECK (try CMD)', (2, 12)),
    ("HEALTHCHECK --interval=3 CMD x", 'time: missing unit in duration "3"', (2, 12)),
    ("HEALTHCHECK --interval=1us CMD x", 'Interval "interval" cannot be less than 1ms', (2, 12)),
    ("HEALTHCHECK --retries=-1 CMD x", "--retries cannot be negative (-1)", (2, 12)),
    ("HEALTHCHECK --retries=x CMD x", '--retries must be a whole number, not "x"', (2, 12)),
    ("ONBUILD", "ONBUILD requires at least one argument", (2, 0)),
    ("ONBUILD ONBUILD RUN x", "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed", (2, 0)),
    ("ONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger", (2, 8)),
    ("RUN --network=hots x", 'invalid network mode "hots" (did you mean host?)', (2, 4)),
    ("RUN --security=x x", 'security "x" is not valid', (2, 4)),
    ("RUN --mount=from=$X,target=/a x", "'from' doesn't support variable expansion, define alias stage instead",
     (2, 12)),
    ("RUN --mount x", "missing a value on flag: --mount", (2, 4)),
    ("RUN --device=a,b=c x", "unexpected key 'b' in 'b=c'", (2, 15)),
    ("RUN a \\\n && \\\n b\nRUNN x", "unknown instruction: RUNN (did you mean RUN?)", (5, 0)),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message", "at"), WRONG, ids=[w[0] for w in WRONG])
def test_a_mistake_is_named_with_its_place(text: str, message: str, at: tuple[int, int]) -> None:
    (problem,) = problems("FROM scratch\n" + text)
    assert message in str(problem)
    assert str(problem).startswith(f"dockerfile parse error on line {at[0]}: ")
    assert problem.source is not None
    assert (problem.source.start.line, problem.source.start.column) == at


def test_all_mistakes_are_found_in_one_pass_in_file_order() -> None:
    found = problems("FROM a\nRUNN x\nCOPY --form=x a b\nENV\nRUN ok\nUSER\n")
    assert [p.source.start.line for p in found if p.source] == [2, 3, 4, 6]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the Dockerfile cannot be empty"),
        (b"\n\n", "file with no instructions"),
        (b"# only a comment\n", "file with no instructions"),
        (b"ARG a=b\n", "dockerfile contains no stages to build"),
        (b"RUN x\nFROM a\n", "no build stage in current context"),
        (b"# escape=`\n# escape=`\nFROM a\n", "only one escape parser directive can be used"),
        (b"# escape=x\nFROM a\n", "invalid escape token 'x' does not match ` or \\"),
        (b"FROM a\nRUN \xff\n", "byte 0xff is not valid UTF-8"),
    ],
)
def test_a_file_that_is_no_dockerfile(data: bytes, message: str) -> None:
    assert message in str(problems(data)[0])


def test_a_lost_from_does_not_make_the_rest_wrong() -> None:
    assert len(problems("FROMM a\nRUN x\n")) == 1


def test_latin_1_in_a_comment_is_no_problem() -> None:
    assert parse(b"# caf\xe9\nFROM a\n").stages[0].head.base == "a"


def test_ranges_are_exact_in_continued_lines() -> None:
    (problem,) = problems("FROM a\nCOPY \\\n  --form=x \\\n  a b\n")
    assert problem.source is not None
    assert (problem.source.start, problem.source.end) == ((3, 2), (3, 7))
