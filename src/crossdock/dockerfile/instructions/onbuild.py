"""``ONBUILD instruction``: runs in stages that start from this one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from crossdock.dockerfile.instructions.base import Instruction
from crossdock.dockerfile.words import split_keyword

if TYPE_CHECKING:
    from crossdock.dockerfile.instructions.base import Statement

__all__ = ["OnBuild", "parse"]


class OnBuild(Instruction):
    """``ONBUILD``."""

    #: the trigger as it will be parsed in the child, here-documents included
    expression: str


def parse(s: Statement) -> OnBuild:
    """Read an ONBUILD; the trigger is judged where it runs, save that it may not be chained.

    Raises: DockerfileError.
    """
    if not s.rest:
        message = "ONBUILD requires at least one argument"
        raise s.error(message)
    s.no_flags()
    trigger = split_keyword(s.rest)[0]
    if trigger.upper() == "ONBUILD":
        message = "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"
        raise s.error(message)
    if trigger.upper() in ("MAINTAINER", "FROM"):
        message = f"{trigger.upper()} isn't allowed as an ONBUILD trigger"
        raise s.error(message, trigger)
    expression = re.sub(r"(?ai)\s*ONBUILD\s*", "", s.line.text, count=1)
    for heredoc in s.heredocs:
        expression += f"\n{heredoc.content}{heredoc.name}"
    return OnBuild(**s.common(), expression=expression)
