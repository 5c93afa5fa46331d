"""Builds with several stores, and what ran in them."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from support.cli import Crossdock, Ran

CONTEXT = """FROM {base} AS build
COPY a.txt /a.txt
RUN echo slow > /slow
RUN echo built > /built
FROM {base} AS check
RUN --mount=from=build,target=/b cat /b/slow /b/built > /checked
FROM {base}
COPY --from=build /built /built
COPY b.txt /b.txt
"""


def contexts(folder: Path, base: str, names: str) -> list[Path]:
    """Contexts of :data:`CONTEXT` that have nothing but the base in common, one for each letter of ``names``."""
    made = []
    for name in names:
        context = folder / f"context-{name}"
        context.mkdir()
        (context / "Dockerfile").write_text(CONTEXT.format(base=base))
        (context / "a.txt").write_text(name)
        (context / "b.txt").write_text(name)
        made.append(context)
    return made


def all_at_once(work: Callable[..., object], jobs: Iterable[Sequence[object]]) -> None:
    """Call ``work`` with each of ``jobs``, in a thread each. Raises: the first failure."""
    errors: list[BaseException] = []

    def run(arguments: Sequence[object]) -> None:
        try:
            work(*arguments)
        except BaseException as exc:  # noqa: BLE001 -- raised in the test's thread
            errors.append(exc)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


_STEP = re.compile(r"^#(\d+) \[.*?\d+/\d+\] (.+)$")
_CACHED = re.compile(r"^#(\d+) CACHED$")
_DONE = re.compile(r"^#(\d+) DONE ")


def steps_run(plain: str) -> set[str]:
    """Names of the steps that ran, in short: their first two words or so; base images and contexts left out."""
    names: dict[str, str] = {}
    ran: set[str] = set()
    for line in plain.splitlines():
        if match := _STEP.match(line):
            names[match[1]] = match[2]
        elif match := _DONE.match(line):
            ran.add(match[1])
        elif match := _CACHED.match(line):
            ran.discard(match[1])
    return {
        _short(names[number]) for number in ran if number in names and not names[number].startswith("FROM")
    }


def _short(name: str) -> str:
    words = name.split()
    if words[0] == "RUN":
        return "RUN slow" if "slow >" in name else f"RUN {words[1]} {words[2]}"
    return f"{words[0]} {words[1]}"


@dataclass
class Builder:
    """``builder("one", context, …)`` builds with the store ``one``; it must succeed."""

    crossdock: Crossdock
    folder: Path

    def root(self, store: str) -> Path:
        """The folder of a store."""
        return self.folder / f"store-{store}"

    def command(self, store: str, *args: str | Path) -> Ran:
        """Run any command with a store."""
        return self.crossdock(*args, env={"CROSSDOCK_ROOT": str(self.root(store))}).ok()

    def try_(
        self,
        store: str,
        context: Path,
        *args: str | Path,
        dest: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Ran:
        """Build; it may fail."""
        output = ("-o", f"type=oci,dest={dest},name=x") if dest is not None else ()
        return self.crossdock(
            "build", "--progress=plain", context, *output, *args,
            env={**(env or {}), "CROSSDOCK_ROOT": str(self.root(store))},
        )  # fmt: skip

    def __call__(
        self,
        store: str,
        context: Path,
        *args: str | Path,
        dest: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Ran:
        return self.try_(store, context, *args, dest=dest, env=env).ok()


def swap_diff_ids(layout: Path) -> None:
    """Let every layer of a local cache claim the diff id of the next, digests made right."""
    folder = layout / "blobs/sha256"
    index = json.loads((layout / "index.json").read_text())
    entry = index["manifests"][0]
    manifest: dict[str, Any] = json.loads((folder / entry["digest"][7:]).read_text())
    key = "containerd.io/uncompressed"
    ids = [layer["annotations"][key] for layer in manifest["layers"]]
    for layer, other in zip(manifest["layers"], [*ids[1:], ids[0]], strict=True):
        layer["annotations"][key] = other
    raw = json.dumps(manifest).encode()
    name = hashlib.sha256(raw).hexdigest()
    (folder / name).write_bytes(raw)
    entry.update(digest=f"sha256:{name}", size=len(raw))
    (layout / "index.json").write_text(json.dumps(index))
