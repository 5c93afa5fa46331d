"""Outcomes become text and exit codes; nothing a user does shows a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from crossdock.cli.command import Globals
from crossdock.cli.dockerargs import split_docker_args
from crossdock.cli.main import run, run_plugin
from crossdock.cli.render import render_error, source_excerpt
from crossdock.errors import (
    Cancelled,
    CrossdockError,
    DockerfileError,
    InternalError,
    Position,
    SourceFile,
    SourceRange,
    StoreFull,
    UsageError,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BUILDX_CONFIG", "BUILDX_BUILDER", "DOCKER_CONTEXT", "BUILDX_EXPERIMENTAL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    monkeypatch.setenv("CROSSDOCK_ROOT", str(tmp_path / "root"))


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["nope"], 'unknown command: "nope"'),
        (["buidl", "."], "did you mean 'build'?"),
        (["ls", "--bogus"], "unknown flag: --bogus"),
        (["ls", "-z"], "unknown shorthand flag: 'z'"),
        (["ls", "extra"], "'crossdock ls' accepts no arguments"),
        (["build"], "'crossdock build' requires 1 argument"),
        (["build", "a", "b"], "'crossdock build' requires 1 argument"),
        (["build", ".", "--tag"], "flag needs an argument: --tag"),
        (["build", ".", "--push"], "tag is needed when pushing"),
        (["build", ".", "--push=x"], 'invalid argument "x"'),
        (["build", ".", "--progress=x"], "invalid progress mode x"),
        (["build", "-q", "--progress=plain", "."], "cannot be used together"),
        (["build", ".", "--platform", "linux/foo"], "unknown platform 'linux/foo'"),
        (["build", ".", "-t", "Upper"], "invalid reference"),
        (["build", ".", "--network", "x"], "network mode 'x' not supported"),
        (["build", ".", "--no-cache", "--no-cache-filter=a"], "cannot specify both"),
        (["build", "-", "-f", "-"], "can't use stdin for both"),
        (["build", ".", "--resource", "gpu=1"], "invalid resource 'gpu=1'"),
        (["build", ".", "-o", "type=local,dest=x", "--iidfile", "i"], "incompatible with image ID file"),
        (["create", "--leave"], "leave requires instance name"),
        (["create", "--timeout", "soon"], "invalid duration 'soon'"),
        (["rm", "--all-inactive", "x"], "cannot specify builder name"),
        (["rm", "nope"], "no builder 'nope' found"),
        (["rm", "embedded"], "the built-in builder cannot be removed"),
        (["use", "nope"], "failed to find instance 'nope'"),
        (["inspect", "nope"], "no builder 'nope' found"),
        (["du", "--format", "x", "--verbose"], "cannot be used together"),
        (["bake"], "`bake` is not available"),
        (["f"], "`bake` is not available"),
        (["dial-stdio"], "has no BuildKit to connect to"),
        (["history", "ls"], "keeps no history"),
        (["debug", "build", "."], 'unknown command: "debug"'),
        (["--builder", "nope", "stop"], "no builder 'nope' found"),
        (["build", ".", "--policy", "x"], "--policy is not supported"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_wrong_use_is_one_clear_error_and_exit_1(
    args: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(args, program="crossdock") == 1
    err = capsys.readouterr().err
    assert error in err
    assert "ERROR: " in err
    assert "Traceback" not in err


def test_flags_may_follow_the_argument_and_aliases_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["b", ".", "--push", "--platform=linux/arm64"], program="crossdock") == 1
    assert "tag is needed" in capsys.readouterr().err


def test_debug_shows_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-D", "inspect", "nope"], program="crossdock") == 1
    assert "Traceback" in capsys.readouterr().err
    assert run(["inspect", "nope", "--debug"], program="crossdock") == 1
    assert "Traceback" in capsys.readouterr().err


def test_help_of_the_root_lists_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([], program="crossdock") == 0
    first = capsys.readouterr().out
    assert run(["--help"], program="crossdock") == 0
    assert run(["help"], program="crossdock") == 0
    assert capsys.readouterr().out == first * 2
    assert "Usage:  crossdock [OPTIONS] COMMAND" in first
    assert "  build       Start a build" in first
    assert "_worker" not in first
    assert "BUILDX_EXPERIMENTAL=1" in first


def test_experimental_commands_are_revealed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUILDX_EXPERIMENTAL", "1")
    assert run([], program="crossdock") == 0
    out = capsys.readouterr().out
    assert "debug" in out
    assert "BUILDX_EXPERIMENTAL" not in out


class TestDispatch:
    @pytest.mark.parametrize(
        ("raised", "code", "text"),
        [
            (KeyboardInterrupt(), 130, "ERROR: cancelled"),
            (Cancelled(), 130, "ERROR: cancelled"),
            (InternalError("oops"), 100, "ERROR: oops"),
            (StoreFull("full"), 102, "ERROR: full"),
            (CrossdockError("bad", detail="more", hint="do"), 1, "ERROR: bad\nmore\nhint: do\n"),
            (RuntimeError("x"), 100, "unexpected RuntimeError: x"),
        ],
    )
    def test_exit_codes(
        self,
        raised: BaseException,
        code: int,
        text: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def fail(*_args: object) -> None:
            raise raised

        monkeypatch.setattr("crossdock.cli.main._dispatch", fail)
        assert run(["x"], program="crossdock") == code
        err = capsys.readouterr().err
        assert text in err
        assert "Traceback" not in err


class TestDockerArguments:
    def split(self, *args: str) -> tuple[list[str], Globals]:
        globals_ = Globals(program="docker buildx", plugin=True)
        return split_docker_args(list(args), globals_), globals_

    def test_what_comes_before_buildx_is_docker_s(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("DOCKER_CONTEXT", "DOCKER_HOST", "DOCKER_CONFIG"):
            monkeypatch.setenv(name, "")
        rest, globals_ = self.split(
            "--context", "farm", "-H=tcp://x", "--config", "/c", "-D", "buildx", "build", "-D", "."
        )
        assert rest == ["build", "-D", "."]
        assert globals_.debug
        assert os.environ["DOCKER_CONTEXT"] == "farm"
        assert os.environ["DOCKER_HOST"] == "tcp://x"
        assert os.environ["DOCKER_CONFIG"] == "/c"

    def test_a_direct_call_is_explained(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run_plugin(["build", "."]) == 1
        assert "run it as `docker buildx`" in capsys.readouterr().err

    def test_the_plugin_names_itself_docker_buildx(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run_plugin(["buildx", "ls", "--help"]) == 0
        assert capsys.readouterr().out.startswith("Usage:  docker buildx ls [OPTIONS]\n")


TEXT = "FROM a\n\nRUN one\nRUN two \\\n  three\nRUN four\n"


def at(first: int, last: int) -> SourceRange:
    return SourceRange(SourceFile("Dockerfile", TEXT), Position(first), Position(last))


def test_source_excerpt() -> None:
    assert source_excerpt(at(4, 5)) == (
        "Dockerfile:4\n"
        "--------------------\n"
        "   2 |\n"
        "   3 |     RUN one\n"
        "   4 | >>> RUN two \\\n"
        "   5 | >>>   three\n"
        "   6 |     RUN four\n"
        "--------------------\n"
    )


@pytest.mark.parametrize(("first", "last"), [(1, 1), (6, 6), (6, 99), (0, 0), (99, 99), (5, 2)])
def test_any_range_has_an_excerpt_or_none(first: int, last: int) -> None:
    text = source_excerpt(at(first, last))
    assert text == "" or text.startswith("Dockerfile:")


def test_error_texts_in_order() -> None:
    error = DockerfileError("unknown instruction: RUM", hint="did you mean RUN?", source=at(3, 3))
    text = render_error(error)
    assert (
        text.index("Dockerfile:3")
        < text.index("ERROR: unknown instruction")
        < text.index("hint: did you mean")
    )


def test_usage_errors_exit_1() -> None:
    assert UsageError("x").exit_code == 1


def test_ctrl_c_before_the_command_began_is_no_traceback() -> None:
    code = """
import sys, types
import crossdock.__main__ as top
def run(*args, **flags):
    raise KeyboardInterrupt
sys.modules["crossdock.cli.main"] = types.ModuleType("crossdock.cli.main")
sys.modules["crossdock.cli.main"].run = run
sys.exit(top.main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "ERROR: cancelled\n")
