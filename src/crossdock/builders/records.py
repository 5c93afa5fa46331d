"""Builds that BuildKit nodes remember: found over all nodes of a builder, by the references users write.

Spec: docker/buildx ``commands/history/utils.go``: full and short references, ``builder/node/ref``, ``^N``, filters.
"""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from crossdock.builders.drivers.table import make_driver
from crossdock.builders.localstate import read_state
from crossdock.errors import BuilderError, RemoteError, UsageError
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from crossdock.builders.drivers.buildkit import BuildKitDriver
    from crossdock.builders.localstate import LocalState
    from crossdock.builders.model import NodeGroup
    from crossdock.buildkit.client import Client
    from crossdock.buildkit.history import HistoryRecord

__all__ = ["FoundRecord", "find_one", "find_records", "parse_filters"]

#: records asked of each node
_LIMIT = 50
_FILTER = re.compile(r"(\w+)\s*(!=|<=|>=|=|<|>)\s*(.*)\Z")
_EQUAL, _ORDERED = ("ref", "repository", "status"), ("startedAt", "completedAt", "duration")


class FoundRecord(NamedTuple):
    """A record and where it is."""

    #: ``builder/node``
    path: str
    record: HistoryRecord
    driver: BuildKitDriver

    @property
    def ref(self) -> str:
        """``builder/node/ref``."""
        return f"{self.path}/{self.record.ref}"

    @property
    def local(self) -> LocalState:
        """What this client knows of it."""
        return read_state(self.ref)

    @property
    def name(self) -> str:
        """A name for people: where it was built from, and the target."""
        attrs, local = self.record.frontend_attrs, self.local
        if given := attrs.get("build-arg:BUILDKIT_BUILD_NAME"):
            return given
        base = attrs.get("context") or _base_name(local, attrs.get("filename", ""))
        target = attrs.get("target", "")
        if target:
            return f"{base} ({target})" if base else target
        return base or attrs.get("vcs:source", "")

    @property
    def duration_s(self) -> float:
        """How long it took, or has taken so far."""
        end = self.record.completed_ns or time.time_ns()
        return max(0.0, (end - self.record.created_ns) / 1e9)

    @contextmanager
    def client(self) -> Iterator[Client]:
        """Connect to its node."""
        with self.driver.client() as client:
            yield client


def _base_name(local: LocalState, filename: str) -> str:
    path = local.dockerfile or local.context
    if local.dockerfile.endswith("/Dockerfile"):
        path = local.dockerfile.removesuffix("/Dockerfile")
    name = path.rstrip("/").rpartition("/")[2]
    return name or ("" if filename == "Dockerfile" else filename)


def find_records(group: NodeGroup, *, ref: str = "", limit: int = _LIMIT) -> list[FoundRecord]:
    """Return the records of all nodes, newest first, at most ``limit`` of each (0: all); with ``ref`` only that build.

    Raises: BuilderError when the builder keeps none, or no node can be asked.
    """
    from crossdock.builders.drivers.buildkit import BuildKitDriver, node_path
    from crossdock.buildkit.history import history

    drivers: list[tuple[str, BuildKitDriver]] = []
    for node in group.nodes:
        driver = make_driver(group, node)
        if not isinstance(driver, BuildKitDriver):
            summary = f"builder {group.name!r} keeps no history: only BuildKit nodes do"
            raise BuilderError(summary, hint="name another with --builder")
        drivers.append((node_path(group, node), driver))

    def ask(item: tuple[str, BuildKitDriver]) -> list[FoundRecord]:
        path, driver = item
        with driver.client() as client:
            try:
                found = history(client, ref=ref, limit=limit)
            except RemoteError as exc:
                if exc.grpc_code != "UNIMPLEMENTED":
                    raise
                summary = f"{path}: the BuildKit daemon is too old to keep a history"
                raise BuilderError(summary, hint="BuildKit v0.11 or later is needed") from exc
        return [FoundRecord(path, record, driver) for record in found[: limit or None]]

    with ThreadPoolExecutor(max(1, len(drivers))) as pool:
        answers = list(pool.map(ask, drivers))
    records = [record for answer in answers for record in answer]
    return sorted(records, key=lambda f: f.record.created_ns, reverse=True)


def find_one(group: NodeGroup, text: str) -> FoundRecord:
    """Return the record that ``text`` means: a reference, its beginning, ``^N``, or the newest when empty.

    Raises: BuilderError when there is none, or more than one.
    """
    records = find_records(group)
    if not text or re.fullmatch(r"\^\d+", text):
        number = int(text[1:] or 0) if text else 0
        if number >= len(records):
            summary = f"no build record {text}" if text else "no build records found"
            raise BuilderError(summary, hint="`history ls` lists them")
        return records[number]
    path, _, ref = text.rpartition("/")
    if path and path.count("/") != 1:
        summary = f"invalid build reference {text!r}"
        raise UsageError(summary, hint="write REF, or BUILDER/NODE/REF")
    matching = [r for r in records if r.record.ref == ref and path in ("", r.path)]
    matching = matching or [r for r in records if r.record.ref.startswith(ref) and path in ("", r.path)]
    if not matching:
        # Beyond the newest, a whole reference still finds its build.
        matching = [r for r in find_records(group, ref=ref) if r.record.ref == ref and path in ("", r.path)]
    if not matching:
        summary = f"no build record found for {text!r}"
        raise BuilderError(summary, hint="`history ls` lists them")
    if len({r.record.ref for r in matching}) > 1:
        summary = f"{text!r} is the beginning of several build records"
        raise BuilderError(summary, hint="write more of the reference")
    return matching[0]


def parse_filters(texts: Iterable[str]) -> Callable[[Sequence[FoundRecord]], list[FoundRecord]]:
    """Return a function that keeps what matches every filter.

    Raises: UsageError for an unknown key, an operator it does not have, or a value that cannot be read.
    """
    tests = [_parse_filter(text) for text in texts]
    return lambda records: [r for r in records if all(test(r) for test in tests)]


def _parse_filter(text: str) -> Callable[[FoundRecord], bool]:
    match = _FILTER.match(text)
    key, operator, value = match.groups() if match else (text, "", "")
    if key in _EQUAL and operator in ("=", "!="):
        wanted = operator == "="
        if key == "status" and value not in ("running", "completed", "error", "canceled"):
            summary = f"invalid status filter value {value!r}"
            raise UsageError(summary, hint="values: running, completed, error, canceled")
        return lambda r: (_text_of(r, key) == value) is wanted
    if key in _ORDERED and operator in ("<", "<=", ">", ">="):
        limit = _limit(key, value)
        return lambda r: _compare(_number_of(r, key), operator, limit)
    summary = f"unsupported filter {text!r}"
    hint = (
        "use ref, repository or status with = or !=; startedAt, completedAt or duration with <, <=, > or >="
    )
    raise UsageError(summary, hint=hint)


def _text_of(found: FoundRecord, key: str) -> str:
    if key == "ref":
        return found.record.ref
    if key == "status":
        return found.record.status.lower()
    return found.record.frontend_attrs.get("vcs:source", "")


def _number_of(found: FoundRecord, key: str) -> float | None:
    if key == "duration":
        return found.duration_s
    stamp = found.record.created_ns if key == "startedAt" else found.record.completed_ns
    return None if stamp is None else stamp / 1e9


def _limit(key: str, value: str) -> float:
    """A duration is seconds; a time is a stamp, or a duration before now."""
    from crossdock.builders.values import parse_duration

    try:
        seconds = parse_duration(value)
    except UsageError:
        if key == "duration":
            raise
        return _stamp(value)
    return seconds if key == "duration" else time.time_ns() / 1e9 - seconds


def _stamp(value: str) -> float:
    from datetime import UTC, datetime

    try:
        parsed = datetime.fromisoformat(value)
    except ValueError as exc:
        summary = f"invalid time {value!r}"
        raise UsageError(summary, hint="write 2026-01-31T15:04:05Z, or how long ago, such as 24h") from exc
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def _compare(value: float | None, operator: str, limit: float) -> bool:
    if value is None:
        return False
    if operator in ("<", "<="):
        return value < limit or (operator == "<=" and value == limit)
    return value > limit or (operator == ">=" and value == limit)
