"""Make the reference pages of docs/ from the code: commands, Python names, errors.

python scripts/makedocs.py            rewrite docs/reference/*.md
python scripts/makedocs.py --check    fail when they are not what the code says, or when a link leads nowhere
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import click

    from crossdock.errors import CrossdockError

TOP = Path(__file__).resolve().parent.parent
REFERENCE = TOP / "docs/reference"
_NOTE = "<!-- made by `make docs` from the code; do not edit -->\n\n"
_LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


def main() -> int:
    """Command line."""
    check = "--check" in sys.argv[1:]
    stale = []
    for name in PAGES:
        path = REFERENCE / name
        text = page(name)
        if check and (not path.exists() or path.read_text() != text):
            stale.append(f"{path.relative_to(TOP)} is not what the code says: run `make docs`")
        elif not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            print(f"docs: {path.relative_to(TOP)}")
    problems = [*stale, *dead_links()]
    for problem in problems:
        print(f"docs: {problem}", file=sys.stderr)
    return 1 if problems else 0


def page(name: str) -> str:
    """The text of a page, as the code says it now."""
    return _NOTE + PAGES[name]()


def cli_page() -> str:
    """Every command with its help, as the command prints it."""
    import click

    from crossdock.cli.command import Globals
    from crossdock.cli.root import make_root

    settings = Globals(program="crossdock", plugin=False)
    parts = [
        "# Command line\n\nAs the docker CLI's plug-in, `docker buildx` stands for `crossdock` in all of this.\n"
    ]

    def walk(command: click.Command, context: click.Context) -> None:
        title = context.command_path
        parts.append(f"\n## {title}\n\n```text\n{command.get_help(context).strip()}\n```\n")
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                if child is not None and not child.hidden and not _hidden(command, name):
                    walk(child, click.Context(child, info_name=name, parent=context, obj=settings))

    root = make_root()
    walk(root, click.Context(root, info_name="crossdock", obj=settings))
    return "".join(parts)


def _hidden(group: click.Command, name: str) -> bool:
    entry = getattr(group, "table", {}).get(name)
    return bool(entry and (entry.hidden or entry.experimental))


def python_page() -> str:
    """The public names of the package, with signatures and docstrings."""
    import crossdock

    parts = ["# Python API\n\n`import crossdock` costs nothing; each name is loaded when it is first used.\n"]
    for name in sorted(crossdock.__all__, key=lambda name: (name[0].isupper(), name)):
        value = getattr(crossdock, name)
        if inspect.isclass(value) and issubclass(value, Exception):
            continue  # errors.md
        if inspect.isfunction(value):
            parts.append(f"\n## {name}\n\n```python\n{_signature(name, value)}\n```\n\n{_doc(value)}\n")
        elif inspect.isclass(value):
            parts.append(f"\n## {name}\n\n{_doc(value)}\n{_members(value)}")
        else:
            parts.append(f"\n## {name}\n\n`{value}`\n" if isinstance(value, str) else f"\n## {name}\n")
    parts.append("\nErrors are described in [errors](errors.md).\n")
    return "".join(parts)


def _signature(name: str, function: Callable[..., object]) -> str:
    signature = inspect.signature(function)
    one_line = f"{name}{signature}"
    if len(one_line) <= 100:
        return one_line
    lines, star = [f"{name}("], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            lines.append("    *,")
            star = True
        lines.append(f"    {parameter},")
    returns = "" if signature.return_annotation is signature.empty else f" -> {signature.return_annotation}"
    return "\n".join([*lines, f"){returns}"])


def _members(value: type) -> str:
    lines = []
    annotations = {
        key: kind for key, kind in inspect.get_annotations(value).items() if not key.startswith("_")
    }
    if annotations:
        lines += ["\n| attribute | type |", "|---|---|"]
        lines += [f"| `{key}` | `{_plain(kind)}` |" for key, kind in annotations.items()]
    for key, member in vars(value).items():
        if key.startswith("_"):
            continue
        if inspect.isfunction(member):
            lines.append(f"\n```python\n{_signature(key, member)}\n```\n\n{_doc(member)}")
        elif isinstance(member, property):
            lines.append(f"\n`{key}`: {_doc(member)}")
        elif isinstance(member, classmethod):
            signature = _signature(f"{value.__name__}.{key}", getattr(value, key))
            lines.append(f"\n```python\n{signature}\n```\n\n{_doc(member.__func__)}")
    return "\n".join(lines) + "\n" if lines else ""


def _plain(kind: object) -> str:
    text = kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
    return text.replace("|", "\\|")


def _doc(value: object) -> str:
    return inspect.cleandoc(getattr(value, "__doc__", None) or "")


def errors_page() -> str:
    """Every error, with its code, exit code and what it carries."""
    from crossdock import errors

    lines = [
        "# Errors",
        "",
        "Every error is a `crossdock.CrossdockError` with `summary`, `detail`, `hint`, `source` and `retryable`. The command",
        "line prints them and exits with the exit code. [Troubleshooting](../troubleshooting.md) goes by message.",
        "",
        "| error | code | exit code | meaning |",
        "|---|---|---|---|",
    ]
    for depth, kind in _tree(errors.CrossdockError):
        meaning = " ".join(_doc(kind).split())
        indent = "&nbsp;" * 4 * depth
        lines.append(f"| {indent}`{kind.__name__}` | `{kind.code}` | {kind.exit_code} | {meaning} |")
    return "\n".join(lines) + "\n"


def _tree(kind: type[CrossdockError], depth: int = 0) -> Iterator[tuple[int, type[CrossdockError]]]:
    yield depth, kind
    for child in kind.__subclasses__():
        if child.__module__ == kind.__module__:
            yield from _tree(child, depth + 1)


def dead_links() -> list[str]:
    """Relative links of the pages that lead to no file."""
    found = []
    pages = [
        *TOP.glob("*.md"),
        *TOP.glob("docs/**/*.md"),
        *TOP.glob("bench/*.md"),
        *TOP.glob("examples/**/*.md"),
    ]
    for page in pages:
        links = _LINK.findall(_without_code(page.read_text()))
        local = [link for link in links if "://" not in link and not link.startswith("mailto:")]
        found += [
            f"{page.relative_to(TOP)}: {link} does not exist"
            for link in local
            if not (page.parent / link).exists()
        ]
    return found


def _without_code(text: str) -> str:
    text = re.sub(r"^```.*?^```", "", textwrap.dedent(text), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


def checks_page() -> str:
    """The build checks, each with a Dockerfile that it finds and one that it does not."""
    from crossdock.dockerfile.lint.rules import RULES

    parts = [
        "# Build checks\n\nFindings are shown as warnings of a build; `--check` shows them without building. "
        "`# check=skip=RULE,…;error=true` in the first lines of a Dockerfile, or `--build-arg "
        "BUILDKIT_DOCKERFILE_CHECK=…`, switches rules off (`skip=all`: every one) or makes findings fail the build; "
        "`# check=skip=RULE` directly above an instruction is for that one alone. Names and texts are BuildKit's.\n\n"
        "| Rule | Finds |\n|---|---|\n"
    ]
    parts += [f"| [{r.name}](#{r.name.lower()}) | {r.description} |\n" for r in RULES.values()]
    for rule in RULES.values():
        parts.append(f"\n## {rule.name}\n\n{rule.description}\n\n{rule.why}\n")
        if rule.experimental:
            parts.append(f"\nExperimental: on only with `# check=experimental={rule.name}`.\n")
        parts.append(f"\nFound:\n\n```dockerfile\n{rule.bad.rstrip()}\n```\n")
        parts.append(f"\nNot found:\n\n```dockerfile\n{rule.good.rstrip()}\n```\n")
    return "".join(parts)


PAGES = {"cli.md": cli_page, "python.md": python_page, "errors.md": errors_page, "checks.md": checks_page}


if __name__ == "__main__":
    sys.exit(main())
