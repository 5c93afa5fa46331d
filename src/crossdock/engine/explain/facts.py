"""What a step is made of, as short facts that can be compared with those of an earlier run.

Values are cut digests, never the values themselves: variables may hold what nobody should find in the store.
"""

from __future__ import annotations

import re
import stat
from typing import TYPE_CHECKING, Any

from crossdock.engine.ops.keying import action_fields, exec_fields, platform_fields
from crossdock.engine.solver import KeyHasher
from crossdock.hashing import sha256
from crossdock.llb.ops import ExecOp, FileOp, SourceOp
from crossdock.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from crossdock.cancel import CancelToken
    from crossdock.engine.cache.select import Selector
    from crossdock.engine.cache.view import Node, View
    from crossdock.llb.graph import Node as LlbNode

__all__ = ["StepFacts", "file_facts", "node_facts", "place_of"]

_PLACE = r"^\[(?:(.*) )?(\d+)/\d+\] (.*)$"
_MAX_FILES = 50_000


class StepFacts(Record):
    """One step of one run."""

    #: platform and stage as progress shows them, ``linux/arm64 build``
    stage: str
    #: position in the stage
    number: int
    #: the instruction
    text: str
    #: label -> digest of the value
    facts: Mapping[str, str]
    #: per input what it is called, and its canonical key (``""`` for a local directory)
    inputs: tuple[tuple[str, str], ...]
    #: files of local directories that it reads: path -> type, mode and digest; ``None`` when there are too many
    files: Mapping[str, str] | None
    #: files that it reads of another step, by content; ``None`` when there are too many, or it was cached by definition
    copied: Mapping[str, str] | None = None
    #: name of that step
    copied_from: str = ""

    def to_json(self) -> list[Any]:
        """Return it as a compact list."""
        files = None if self.files is None else dict(self.files)
        copied = None if self.copied is None else dict(self.copied)
        inputs = [list(i) for i in self.inputs]
        return [
            self.stage, self.number, self.text, dict(self.facts), inputs, files, copied, self.copied_from
        ]  # fmt: skip

    @classmethod
    def from_json(cls, data: Any) -> StepFacts:
        """Read what :meth:`to_json` returned. Raises: ValueError, TypeError, KeyError for anything else."""
        stage, number, text, facts, inputs, files, copied, copied_from = data
        return cls(
            stage=str(stage),
            number=int(number),
            text=str(text),
            facts={str(k): str(v) for k, v in facts.items()},
            inputs=tuple((str(name), str(key)) for name, key in inputs),
            files=None if files is None else {str(k): str(v) for k, v in files.items()},
            copied=None if copied is None else {str(k): str(v) for k, v in copied.items()},
            copied_from=str(copied_from),
        )


def place_of(name: str) -> tuple[str, int, str]:
    """Return stage, number and instruction of a step by its name in progress."""
    match = re.match(_PLACE, name, re.DOTALL)
    return ("", 0, name) if match is None else (match[1] or "", int(match[2]), match[3])


def node_facts(node: LlbNode) -> dict[str, str]:
    """Return what a node itself says; inputs are not in it."""
    facts: dict[str, str] = {}

    def record(label: str, value: str) -> None:
        name = label
        number = 1
        while name in facts:
            number += 1
            name = f"{label} {number}"
        facts[name] = _short(value)

    match node.op:
        case ExecOp():
            hasher = KeyHasher("exec", _without_env(record))
            if node.platform is not None:
                platform_fields(hasher, node.platform)
            exec_fields(hasher, node.op)
            for item in node.op.meta.env:
                name, _, value = item.partition("=")
                facts[f"variable {name}"] = _short(value)
        case FileOp():
            hasher = KeyHasher("file", record)
            for action in node.op.actions:
                action_fields(hasher, action.action, from_input=False)
        case SourceOp(identifier=identifier, attrs=attrs):
            record("source", identifier)
            for key in sorted(attrs):
                record(key, attrs[key])
        case _:
            record("operation", repr(node.op))
    return facts


def _without_env(record: Any) -> Any:
    def take(label: str, value: str) -> None:
        if label != "env":
            record(label, value)

    return take


def file_facts(view: View, selectors: Sequence[Selector], cancel: CancelToken) -> dict[str, str] | None:
    """Return the files that selectors select, ``None`` for too many. Contents are known from the build: none is read."""
    from crossdock.engine.cache.select import expand, path_filter, walk

    found: dict[str, Node] = {}
    for selector in selectors:
        filter_ = path_filter(selector.include, selector.exclude)
        for match in expand(view, selector.path, wildcard=selector.wildcard, follow=selector.follow):
            base = match.path
            for path, node in walk(view, match.node, filter_):
                found[f"{base}/{path}" if base and path else base or path] = node
            if len(found) > _MAX_FILES:
                return None
    files = [node for node in found.values() if node.is_file]
    digests = iter(view.digests(files, cancel))
    return {path: _describe(view, node, digests) for path, node in found.items()}


def _describe(view: View, node: Node, digests: Iterator[bytes]) -> str:
    mode = node.st.st_mode
    if stat.S_ISREG(mode):
        return f"f{mode & 0o7777:04o}{next(digests)[:6].hex()}"
    if stat.S_ISLNK(mode):
        return "l" + _short(view.readlink(node))
    return f"{'d' if stat.S_ISDIR(mode) else 's'}{mode & 0o7777:04o}"


def _short(value: str) -> str:
    return sha256(value.encode("utf-8", "surrogateescape")).hexdigest()[:12]
