"""Plain command lines are read as click reads them; the rest is left to it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, cast

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdock.cli.build import command as build
from crossdock.cli.command import as_click
from crossdock.cli.declare import Declared, Globals, command, flag, read_plain
from crossdock.errors import CrossdockError, UsageError


@command("try [OPTIONS] PATH", args=(0, 3))
@flag("-t", "--tag", "tag", kind="stringArray")
@flag("--target")
@flag("--network", default="default")
@flag("--shm-size", kind="bytes")
@flag("--timeout", kind="duration", default="20s")
@flag("--push", kind="bool")
@flag("-q", "--quiet", kind="bool")
@flag("--rm/--no-rm", kind="bool", default="true")
@flag("--print", "print_", hidden=True)
def sample(_globals: Globals, args: tuple[str, ...], **flags: Any) -> Any:
    """Try"""
    return args, flags


def by_click(declared: Declared, words: list[str]) -> Any:
    """What click makes of a command line: arguments, values, debug and builder; ``None`` when it refuses."""
    seen: list[Any] = []

    def function(_globals: Globals, args: tuple[str, ...], **flags: Any) -> None:
        seen.append((args, flags))

    spy = Declared(
        function, declared.flags, usage=declared.usage, args=declared.args, aliases=(), builder=True, hidden=False
    )  # fmt: skip
    settings = Globals(program="x", plugin=False)
    settings.builder = cast("str | None", None)  # whatever the environment says
    try:
        as_click(spy).main(words, standalone_mode=False, obj=settings, prog_name="x try")
    except (click.ClickException, CrossdockError):
        return None
    return (*seen[0], settings.debug, settings.builder or "") if seen else None


WORDS = [
    ".", "-", "--", "a", "", "true", "-t", "-t=b", "-tc", "--tag", "--tag=d", "--tag=", "--target", "--target=e",
    "--network=host", "--shm-size=64m", "--shm-size", "--timeout=3s", "--push", "--push=true", "--push=F", "--push=no",
    "-q", "-q=1", "-qt", "--rm", "--no-rm", "--rm=false", "--print=outline", "-D", "--debug", "--builder", "--builder=f",
    "--unknown", "-h", "--help", "-x",
]  # fmt: skip


@given(st.lists(st.sampled_from(WORDS), max_size=6))
def test_a_line_that_is_read_is_read_as_click_reads_it(words: list[str]) -> None:
    switches = [word.partition("=")[0] for word in words if word.partition("=")[0] in ("--push", "-q")]
    if len(switches) != len(set(switches)):
        return  # pflag lets the last of several win; click does not
    try:
        line = read_plain(sample, words)
    except UsageError:
        assert by_click(sample, words) is None
        return
    if line is not None:
        assert (line.args, line.values, line.debug, line.builder) == by_click(sample, words)


PLAIN = {
    "nothing": ([], ()),
    "arguments": (["a", "-", "b"], ("a", "-", "b")),
    "what looks like a flag after two dashes": (["--", "--push"], ("--push",)),
    "flags between arguments": (["a", "--push", "b"], ("a", "b")),
    "a value that looks like a flag": (["--target", "--push", "."], (".",)),
}


@pytest.mark.parametrize(("words", "args"), PLAIN.values(), ids=PLAIN.keys())
def test_plain(words: list[str], args: tuple[str, ...]) -> None:
    line = read_plain(sample, words)
    assert line is not None
    assert line.args == args


@pytest.mark.parametrize(
    "words",
    [
        ["-h"],
        ["--help"],
        ["--nonsense"],
        ["--push=maybe"],
        ["-tq"],
        ["-tname"],
        ["--tag"],
        ["--no-rm"],
        ["a"] * 4,
    ],
)
def test_left_to_click(words: list[str]) -> None:
    assert read_plain(sample, words) is None


def test_values_have_their_types() -> None:
    words = [
        "--shm-size",
        "1k",
        "-t=a",
        "--tag",
        "b",
        "--push",
        "--push=false",
        "--timeout=1m",
        "-D",
        "--builder=x",
    ]
    line = read_plain(sample, words)
    assert line is not None
    assert line.values == {
        "tag": ("a", "b"), "target": None, "network": "default", "shm_size": 1024, "timeout": 60.0, "push": False,
        "quiet": False, "rm": True, "print_": None,
    }  # fmt: skip
    assert (line.debug, line.builder) == (True, "x")


@pytest.mark.parametrize("words", [["--shm-size=much"], ["--shm-size", ""], ["--timeout="]])
def test_values_that_are_none_are_refused(words: list[str]) -> None:
    with pytest.raises(UsageError):
        read_plain(sample, words)
    assert by_click(sample, words) is None


def test_a_build_with_nothing_but_its_context_has_clicks_defaults() -> None:
    line = read_plain(build, ["."])
    assert line is not None
    assert ((".",), line.values, False, "") == by_click(build, ["."])


def test_a_plain_build_loads_no_click() -> None:
    code = (
        "import sys; from crossdock.cli.main import run\n"
        "code = run(['build', '--builder', 'none-of-this-name', '.'], program='crossdock')\n"
        "print(code, 'click' in sys.modules, 'inspect' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False", "False"]
