"""The difference between two runs of a step, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.record import Record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from crossdock.engine.explain.facts import StepFacts

__all__ = ["StepWhy", "explain_step"]

_SHOWN_FILES = 10
_WORDS = {
    "args": "the command changed",
    "cwd": "the working directory changed",
    "user": "the user changed",
    "network": "the network mode changed",
    "security": "the security mode changed",
    "architecture": "the platform changed",
    "dest": "the destination changed",
    "copy": "the source path changed",
    "mode": "the mode changed",
    "mount": "a mount changed",
    "data": "the content changed",
}


class StepWhy(Record):
    """Why one step was not cached."""

    #: as progress shows it
    name: str
    #: sentences, the plainest cause first
    reasons: tuple[str, ...]
    #: files that differ, at most ten: ``(path, "changed" | "added" | "removed" | "mode changed")``
    files: tuple[tuple[str, str], ...] = ()
    #: how many differ in all
    files_count: int = 0

    def to_json(self) -> dict[str, object]:
        """Return it for metadata files and progress in JSON."""
        out: dict[str, object] = {"step": self.name, "reasons": list(self.reasons)}
        if self.files_count:
            out["files"] = [{"path": path, "change": change} for path, change in self.files]
            out["filesChanged"] = self.files_count
        return out


def explain_step(name: str, now: StepFacts, runs: Sequence[Sequence[StepFacts]], *, ignored: bool) -> StepWhy:
    """Explain a step that ran by the nearest earlier run: the one with the fewest differences, of equals the newest."""
    if ignored:
        return StepWhy(name=name, reasons=("the cache was not to be used for it (--no-cache)",))
    found: StepWhy | None = None
    for run in runs:
        before = _counterpart(now, run)
        if before is None:
            continue
        why = _difference(name, before, now)
        if found is None or (len(why.reasons), why.files_count) < (len(found.reasons), found.files_count):
            found = why
    if found is None:
        return StepWhy(name=name, reasons=("no earlier run of this step is known",))
    if not found.reasons:
        reason = "nothing changed since an earlier run: its result is no longer in the store"
        return StepWhy(name=name, reasons=(reason,))
    return found


def _counterpart(now: StepFacts, run: Sequence[StepFacts]) -> StepFacts | None:
    """Return the same step of an earlier run: the same instruction in the same stage, else the one in its place."""
    same = [step for step in run if step.stage == now.stage]
    by_text = [step for step in same if step.text == now.text]
    if by_text:
        return min(by_text, key=lambda step: abs(step.number - now.number))
    return next((step for step in same if step.number == now.number), None)


def _difference(name: str, before: StepFacts, now: StepFacts) -> StepWhy:
    reasons: list[str] = []
    if before.text != now.text:
        reasons.append(f"the instruction changed; it was: {before.text}")
    reasons += _facts(before.facts, now.facts, worded=before.text == now.text)
    copied = _files(before.copied, now.copied) if before.text == now.text else []
    reasons += _inputs(before, now, besides=now.copied_from if copied else "")
    if copied:
        reasons.append(f"files taken from {now.copied_from}: {_counts(copied)}")
    files = _files(before.files, now.files)
    if files:
        reasons.append(f"files of the build context: {_counts(files)}")
    elif (before.files is None) != (now.files is None):
        reasons.append("files of the build context changed")
    files += copied
    return StepWhy(
        name=name, reasons=tuple(reasons), files=tuple(files[:_SHOWN_FILES]), files_count=len(files)
    )


def _counts(files: Sequence[tuple[str, str]]) -> str:
    kinds = [change for _, change in files]
    words = ("changed", "added", "removed", "mode changed")
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in words if kind in kinds)


def _facts(before: Mapping[str, str], now: Mapping[str, str], *, worded: bool) -> list[str]:
    """Name what differs; with another instruction only variables are worth a word."""
    reasons: dict[str, None] = {}
    for label in (*now, *(label for label in before if label not in now)):
        if before.get(label) == now.get(label):
            continue
        if label.startswith("variable "):
            how = (
                "changed"
                if label in before and label in now
                else "was added"
                if label in now
                else "was removed"
            )
            reasons[f"{label.replace('variable', 'argument or variable')} {how}"] = None
        elif worded:
            plain = label.rstrip("0123456789 ")
            reasons[_WORDS.get(plain, f"its {plain} changed")] = None
    return list(reasons)


def _inputs(before: StepFacts, now: StepFacts, *, besides: str) -> list[str]:
    """Name the inputs that changed, but not that of which changed files are named."""
    reasons: dict[str, None] = {}
    for index, (name, key) in enumerate(now.inputs):
        old_name, old_key = before.inputs[index] if index < len(before.inputs) else ("", "")
        if key == old_key or not key or (besides and name == besides):
            continue
        if name.startswith("image ") and old_name.startswith("image "):
            reasons[f"the base image changed: {name[6:]}, was {old_name[6:]}"] = None
        else:
            reasons[f"it builds on a step that changed: {name}"] = None
    return list(reasons)


def _files(before: Mapping[str, str] | None, now: Mapping[str, str] | None) -> list[tuple[str, str]]:
    if before is None or now is None:
        return []
    found: list[tuple[str, str]] = []
    for path in sorted({*before, *now}):
        old, new = before.get(path), now.get(path)
        if old == new:
            continue
        if old is None:
            found.append((path, "added"))
        elif new is None:
            found.append((path, "removed"))
        elif old[0] == new[0] == "f" and old[5:] == new[5:]:
            found.append((path, "mode changed"))
        else:
            found.append((path, "changed" if old[0] != "d" or new[0] != "d" else "mode changed"))
    return found
