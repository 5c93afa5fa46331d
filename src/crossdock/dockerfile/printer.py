"""Syntax tree to text: one line per instruction, here-documents below. Parsing it again gives the same tree."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossdock.dockerfile.tree import Dockerfile

__all__ = ["print_dockerfile"]


def print_dockerfile(dockerfile: Dockerfile) -> str:
    """Write a Dockerfile; comments that are not directly above an instruction are lost."""
    out = [f"# {d.name}={d.value}" for d in dockerfile.directives]
    for instruction, heredocs in dockerfile.statements:
        out.append("#")  # ends the directives, and the comments of what is above
        out += [f"# {comment}" for comment in instruction.comments]
        text = instruction.text
        # White space after an escape keeps it from continuing the line.
        out.append(text + "\f" if text.endswith(dockerfile.escape) else text)
        out += [body + name for body, name in heredocs]
    return "\n".join(out) + "\n"
