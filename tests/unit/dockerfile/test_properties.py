"""Properties of the frontend on arbitrary and on mutated input."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdock.dockerfile import parse
from crossdock.dockerfile.printer import print_dockerfile
from crossdock.errors import CrossdockError, DockerfileError
from support.dockerfiles import build

if TYPE_CHECKING:
    from crossdock.dockerfile import Dockerfile

VALID = """\
# syntax=docker/dockerfile:1
ARG V=1
# base the base
FROM --platform=$BUILDPLATFORM alpine:${V:-3} AS base
RUN --mount=type=cache,target=/c,sharing=locked --network=none set -e; \\
    # comment
    echo "a b" && true
COPY --chown=1:2 --chmod=0644 --exclude=*.o a b* /dir/
COPY <<EOF <<-'TWO' /f/
body $V
EOF
	more
	TWO
ADD --checksum=sha256:24454f830cdb571e2c4ad15481119c43b3cafd48dd869a9b2945d1036d1dc68d https://h.example/x /x
ENV A=b C="d e" F=g\\ h
ENV OLD form here
LABEL a.b="c" d=e
EXPOSE 80 443/tcp 1-3/udp
VOLUME ["/a b", "/c"]
USER u:g
WORKDIR /w
SHELL ["/bin/bash", "-c"]
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --retries=3 CMD ["x", "y"]
ONBUILD RUN echo $A
CMD ["a", "b"]
ENTRYPOINT run it
FROM base
COPY --from=base --link --parents /x/./y /z
RUN <<SCRIPT
#!/bin/sh
echo hi
SCRIPT
"""


def tree(dockerfile: Dockerfile) -> list[object]:
    """Return what must survive printing and parsing: everything but places."""
    statements = [
        [type(i).__name__, *((n, getattr(i, n)) for n in type(i)._fields if n != "where")]
        for i, _ in dockerfile.statements
    ]
    return [dockerfile.escape, [(d.name, d.value) for d in dockerfile.directives], statements]


def check(data: bytes) -> None:
    """Parse, print and convert; a refusal has a place."""
    try:
        dockerfile = parse(data)
    except DockerfileError as exc:
        for problem in (exc, *exc.others):
            assert problem.source is not None
            assert problem.source.start.line >= 1
        return
    printed = print_dockerfile(dockerfile)
    assert tree(parse(printed.encode("utf-8", "surrogateescape"))) == tree(dockerfile)
    refusal: CrossdockError | None = None
    try:
        build(data, warnings=[])
    except CrossdockError as exc:
        refusal = exc
    assert refusal is None or refusal.source is not None or not isinstance(refusal, DockerfileError)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_never_crash(data: bytes) -> None:
    check(data)


_TOKENS = [
    "FROM", "RUN", "COPY", "ADD", "ENV", "ARG", "CMD", "ONBUILD", "HEALTHCHECK", "scratch", "alpine", "AS", "a", "$A",
    "${A:-b}", "${", "}", "<<EOF", "EOF", "<<-'X'", "X", "\\", "`", "#", " ", "\n", "\r\n", "\t", '"', "'", '["', '"]',
    "=", "--", "--from=", "--mount=type=", "--mount=type=cache,target=/x", "/", ".", "# escape=`\n", "# check=skip=all\n",
    "\x00", "\u00e9", "\ud83d\ude00", "\x85", "\v", "\f", ",", ";", "$", "%",
]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(_TOKENS), max_size=40))
def test_dockerfile_like_text_never_crashes(tokens: list[str]) -> None:
    check("".join(tokens).encode("utf-8", "surrogatepass"))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(_TOKENS), max_size=20))
def test_text_after_from_never_crashes(tokens: list[str]) -> None:
    check(b"FROM alpine\n" + "".join(tokens).encode("utf-8", "surrogatepass"))


def mutations() -> list[str]:
    """Return the valid file with each token dropped, doubled, or swapped with the next."""
    tokens = VALID.split(" ")
    out = []
    for i in range(len(tokens)):
        out.append(" ".join(tokens[:i] + tokens[i + 1 :]))
        out.append(" ".join([*tokens[: i + 1], *tokens[i:]]))
        out.append(" ".join([*tokens[:i], *tokens[i : i + 2][::-1], *tokens[i + 2 :]]))
    return out


def test_the_valid_file_is_valid() -> None:
    (result,) = build(VALID)
    assert result.output is not None
    check(VALID.encode())


@pytest.mark.parametrize("number", range(4))
def test_a_mutated_file_gives_a_place_and_no_traceback(number: int) -> None:
    for text in mutations()[number::4]:
        check(text.encode())


@pytest.mark.parametrize(
    "data",
    [
        b"FROM a\nRUN " + b"\\\n" * 50_000 + b"x",
        b"FROM a\nENV " + b"a=b " * 20_000,
        b"FROM a\nRUN [" + b"[" * 50_000,
        b"FROM a\nCOPY " + b"<<A " * 200 + b"/x\n" + b"A\n" * 200,
        b"FROM a\nENV x=" + b"${a:-" * 5_000,
        b"FROM a\n" + b"RUN x\n" * 20_000,
        b"#" * 100_000,
        b"FROM a\nENV x=" + b'"' * 50_001,
    ],
    ids=["continued", "assignments", "brackets", "heredocs", "nested", "instructions", "comment", "quotes"],
)
def test_large_input_does_not_hang(data: bytes) -> None:
    with suppress(DockerfileError):
        parse(data)
