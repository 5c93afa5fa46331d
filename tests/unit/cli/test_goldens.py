"""What users see, word for word: every error class drawn, help of every command, tables.

``make golden`` rewrites the files from what the code does now.
"""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import click
import pytest

from crossdock import errors
from crossdock.cli.command import Globals
from crossdock.cli.render import render_error
from crossdock.cli.root import make_root
from crossdock.errors import CrossdockError, Position, SourceFile, SourceRange

GOLDEN = Path(__file__).parents[2] / "golden/cli"
pytestmark = pytest.mark.golden

SOURCE = SourceRange(
    SourceFile("Dockerfile", "FROM a\nRUN one \\\n  two\nRUN three\n"), Position(2), Position(3)
)
VALUES: dict[str, Any] = {
    "host": "registry.example",
    "platform": "linux/arm64",
    "available": ("linux/amd64",),
    "step_exit_code": 7,
    "vertex_name": "[2/3] RUN one   two",
    "detail": "a detail\nof two lines",
    "hint": "do this",
    "source": SOURCE,
}


def compare(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("GOLDEN") == "write":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text


def test_every_error_as_it_is_drawn() -> None:
    parts = []
    for name in errors.__all__:
        kind = getattr(errors, name)
        if inspect.isclass(kind) and issubclass(kind, CrossdockError):
            known = set(inspect.signature(kind.__init__).parameters)
            error = kind("what went wrong", **{k: v for k, v in VALUES.items() if k in known})
            parts.append(f"=== {name}: code {kind.code}, exit {error.exit_code}\n{render_error(error)}\n")
    compare("errors.txt", "".join(parts))


def test_help_of_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BUILDX_EXPERIMENTAL", raising=False)
    parts: list[str] = []

    def walk(command: click.Command, ctx: click.Context) -> None:
        parts.append(f"=== {ctx.command_path}\n{command.get_help(ctx)}\n\n")
        if isinstance(command, click.Group):
            for name in command.list_commands(ctx):
                child = command.get_command(ctx, name)
                if child is not None and not child.hidden:
                    walk(child, click.Context(child, info_name=name, parent=ctx))

    root = make_root()
    walk(
        root,
        click.Context(root, info_name="docker buildx", obj=Globals(program="docker buildx", plugin=True)),
    )
    compare("help.txt", "".join(parts))
