"""What the embedded engine is asked to do, by name; runs inside the worker namespace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from crossdock.builders.usage import PruneRequest, UsageRecord
    from crossdock.cancel import CancelToken
    from crossdock.engine.store.check import Problem
    from crossdock.engine.store.usage import UsageRecord as StoreRecord
    from crossdock.progress.events import EventSink

__all__ = ["run"]


def run(operation: str, root: str, payload: Any, sink: EventSink, cancel: CancelToken) -> Any:
    """Run an operation on the store in ``root``; Raises: CrossdockError of the kind that says what went wrong."""
    from importlib import import_module

    module, _, name = _OPERATIONS[operation].partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function(Path(root), payload, sink, cancel)


_OPERATIONS = {
    "build": "crossdock.builders.embedded.build:build",
    "bootstrap": "crossdock.builders.embedded.machine:bootstrap",
    "disk_usage": "crossdock.builders.embedded.operations:disk_usage",
    "prune": "crossdock.builders.embedded.operations:prune",
    "check_store": "crossdock.builders.embedded.operations:check_store",
    "remove_store": "crossdock.builders.embedded.operations:remove_store",
}


def disk_usage(
    root: Path, filters: Sequence[str], _sink: EventSink, _cancel: CancelToken
) -> list[UsageRecord]:
    """List what the store holds."""
    from crossdock.engine.store import Store

    with Store.open(root) as store:
        return [_record(r) for r in store.disk_usage(filters)]


def prune(root: Path, request: PruneRequest, _sink: EventSink, cancel: CancelToken) -> list[UsageRecord]:
    """Remove records; returns them."""
    from crossdock.engine.store import Store
    from crossdock.engine.store.gc import GCPolicy

    policy = GCPolicy(
        filters=request.filters,
        all=request.all,
        keep_duration_s=request.keep_duration_s,
        reserved_space=request.reserved_space,
        max_used_space=request.max_used_space,
        min_free_space=request.min_free_space,
    )
    removed: list[UsageRecord] = []
    with Store.open(root) as store:
        store.prune(policy, sink=lambda r: removed.append(_record(r)), cancel=cancel)
    return removed


def check_store(root: Path, how: tuple[bool, bool], _sink: EventSink, cancel: CancelToken) -> list[Problem]:
    """Look for damage; ``how`` is repair, contents."""
    from crossdock.engine.store import Store

    repair, contents = how
    with Store.open(root) as store:
        return store.check(repair=repair, contents=contents, cancel=cancel)


def remove_store(root: Path, _payload: None, _sink: EventSink, cancel: CancelToken) -> bool:
    """Remove the whole store; whether there was one."""
    from crossdock.engine.store.demolish import remove_store as remove

    return remove(root, cancel)


def _record(record: StoreRecord) -> UsageRecord:
    from crossdock.builders.usage import UsageRecord

    return UsageRecord(
        id=record.id,
        mutable=record.mutable,
        in_use=record.in_use,
        size_bytes=record.size,
        parents=record.parents,
        created_at=record.created_ns / 1e9,
        last_used_at=record.last_used_ns / 1e9 if record.last_used_ns else None,
        usage_count=record.usage_count,
        description=record.description,
        record_type=record.record_type,
        shared=record.shared,
        kept=record.kept,
    )
