"""The last runs of a project's steps, in the store beside the stat caches: with them they are listed and pruned.

A file per project (context and Dockerfile), replaced whole. Losing one costs an explanation, nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING

from crossdock.engine.explain.facts import StepFacts
from crossdock.engine.store.statcache import WRITING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["History"]

_FORMAT = 1
_RUNS = 3
_MAX_BYTES = 64 << 20


class History:
    """The runs of one project, newest first."""

    def __init__(self, folder: Path, project: str) -> None:
        name = hashlib.sha256(project.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        self._path = folder / f"{name}.steps"
        self.runs: list[list[StepFacts]] = []
        self._read()

    def _read(self) -> None:
        try:
            with self._path.open("rb") as file:
                packed = file.read()
            inflate = zlib.decompressobj()
            data = json.loads(inflate.decompress(packed, _MAX_BYTES))
            if data["format"] == _FORMAT:
                self.runs = [[StepFacts.from_json(step) for step in run] for run in data["runs"]]
        except (OSError, ValueError, TypeError, KeyError, AttributeError, zlib.error):
            self.runs = []  # absent or damaged: as if nothing had run

    def add(self, steps: Sequence[StepFacts]) -> None:
        """Put a run in front, and save. A store that cannot be written keeps what it has."""
        newest = self.runs[0] if self.runs else None
        if newest == list(steps):
            return
        self.runs = [list(steps), *self.runs][:_RUNS]
        data = {"format": _FORMAT, "runs": [[step.to_json() for step in run] for run in self.runs]}
        packed = zlib.compress(json.dumps(data, separators=(",", ":")).encode(), 1)
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}{WRITING}")
        with suppress(OSError):
            try:
                temporary.write_bytes(packed)
                temporary.replace(self._path)
            finally:
                temporary.unlink(missing_ok=True)
