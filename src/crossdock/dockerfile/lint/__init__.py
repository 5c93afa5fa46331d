"""Build checks: which rules are on, and how a finding is reported. The rules are in ``lint.rules``.

Spec: Dockerfile reference "check" directive; moby/buildkit ``frontend/dockerfile/linter``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crossdock.dockerfile.text import parse_bool, quote
from crossdock.errors import DockerfileError
from crossdock.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from crossdock.errors import SourceRange

__all__ = ["CheckOptions", "LintWarning", "Linter", "parse_check_options"]


class CheckOptions(Record):
    """The value of ``# check=``."""

    skip: frozenset[str] = frozenset()
    skip_all: bool = False
    experimental: frozenset[str] = frozenset()
    experimental_all: bool = False
    #: findings make the build fail
    error: bool = False

    def merged(self, other: CheckOptions) -> CheckOptions:
        """Return these options widened by those of a comment; ``error`` stays."""
        return CheckOptions(
            skip=self.skip | other.skip,
            skip_all=self.skip_all or other.skip_all,
            experimental=self.experimental | other.experimental,
            experimental_all=self.experimental_all or other.experimental_all,
            error=self.error,
        )


class LintWarning(Record):
    """One finding."""

    rule: str
    #: what the rule is about
    description: str
    #: page of the rule, may be empty
    url: str
    #: what was found
    message: str
    where: SourceRange | None

    @property
    def short(self) -> str:
        """The line a build shows: ``Rule: message (line 3)``."""
        line = self.where.start.line if self.where else 0
        return f"{self.rule}: {self.message}" + (f" (line {line})" if line else "")


def parse_check_options(text: str) -> CheckOptions:
    """Read ``skip=A,B;error=true;experimental=all``.

    Raises: ValueError.
    """
    values: dict[str, Any] = {}
    text = text.strip()
    for part in text.split(";", 2) if text else ():
        key, equals, value = part.partition("=")
        key, value = key.strip(), value.strip()
        if not equals or key not in ("skip", "experimental", "error"):
            msg = f"invalid check option {quote(key if equals else part)}"
            raise ValueError(msg)
        if key == "error":
            try:
                values["error"] = parse_bool(value)
            except ValueError:
                msg = f"failed to parse check option {quote(part)}: {value!r} is not a boolean"
                raise ValueError(msg) from None
        elif value == "all":
            values[f"{key}_all"] = True
        else:
            values[key] = frozenset(rule.strip() for rule in value.split(","))
    return CheckOptions(**values)


class Linter:
    """Takes findings, drops those that are switched off, and counts the rest."""

    __slots__ = ("_options", "_warn", "found")

    def __init__(self, options: CheckOptions, warn: Callable[[LintWarning], None] | None) -> None:
        self._options = options
        self._warn = warn
        if warn is None and options.error:
            self._warn = lambda _: None
        #: rules that fired, in order, with the place of the first finding
        self.found: dict[str, SourceRange | None] = {}

    @property
    def active(self) -> bool:
        """Whether anybody listens."""
        return self._warn is not None

    def report(
        self, rule: str, where: SourceRange | None, *values: str, comments: Sequence[str] = ()
    ) -> None:
        """Report a finding of ``rule``; ``comments`` above the instruction may switch it off."""
        if self._warn is None:
            return
        from crossdock.dockerfile.lint.rules import RULES

        known = RULES[rule]
        options = self._options
        if comments:
            options = options.merged(_comment_options(comments))
        if known.experimental:
            if not (options.experimental_all or rule in options.experimental):
                return
        elif options.skip_all or rule in options.skip:
            return
        self.found.setdefault(rule, where)
        self._warn(
            LintWarning(
                rule=rule,
                description=known.description,
                url=known.url,
                message=known.message(*values),
                where=where,
            )
        )

    def raise_found(self) -> None:
        """Raise DockerfileError when findings are errors and there are any."""
        if self._options.error and self.found:
            summary = f"lint violation found for rules: {', '.join(self.found)}"
            hint = "fix the findings, or change the `# check=` directive"
            where = next(iter(self.found.values()))
            raise DockerfileError(summary, hint=hint, source=where)


def _comment_options(comments: Sequence[str]) -> CheckOptions:
    for comment in comments:
        key, equals, value = comment.partition("=")
        if equals and key.strip().lower() == "check":
            try:
                return parse_check_options(value.strip().partition(" ")[0])
            except ValueError:
                return CheckOptions()
    return CheckOptions()
