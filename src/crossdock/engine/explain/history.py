"""The last runs of a project's steps, in the store beside the stat caches: with them they are listed and pruned.

A file per project (context and Dockerfile), replaced whole: a line that names the format, then per run, newest first, its length
(four bytes) and zlib of JSON. Adding a run packs that run alone. Losing a file costs an explanation, nothing else.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING

from crossdock.engine.explain.facts import StepFacts
from crossdock.hashing import sha256
from crossdock.wholefile import write_whole

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["History"]

_MAGIC = b"crossdock steps 2\n"
_LENGTH = struct.Struct(">I")
_RUNS = 3
_MAX_BYTES = 64 << 20


class History:
    """The runs of one project."""

    def __init__(self, folder: Path, project: str) -> None:
        name = sha256(project.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        self._path = folder / f"{name}.steps"
        self._packed = self._read()

    def _read(self) -> list[bytes]:
        packed: list[bytes] = []
        with suppress(OSError, struct.error):
            data = self._path.read_bytes()
            at = len(_MAGIC)
            while data.startswith(_MAGIC) and at < len(data):
                (length,) = _LENGTH.unpack_from(data, at)
                at += _LENGTH.size
                packed.append(data[at : at + length])
                at += length
        return packed

    def runs(self) -> list[list[StepFacts]]:
        """Return the runs, newest first; damaged ones are left out."""
        found: list[list[StepFacts]] = []
        for packed in self._packed:
            try:
                steps = json.loads(zlib.decompressobj().decompress(packed, _MAX_BYTES))
                found.append([StepFacts.from_json(step) for step in steps])
            except (ValueError, TypeError, KeyError, AttributeError, zlib.error):
                continue
        return found

    def add(self, steps: Sequence[StepFacts]) -> None:
        """Put a run in front, and save. A store that cannot be written keeps what it has."""
        text = json.dumps([step.to_json() for step in steps], separators=(",", ":"))
        newest = zlib.compress(text.encode(), 1)
        if self._packed and self._packed[0] == newest:
            return
        self._packed = [newest, *self._packed][:_RUNS]
        data = _MAGIC + b"".join(_LENGTH.pack(len(part)) + part for part in self._packed)
        with suppress(OSError):
            write_whole(os.fspath(self._path), data)
