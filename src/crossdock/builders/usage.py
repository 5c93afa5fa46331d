"""Disk usage and pruning, as every driver reports and takes them.

Spec: moby/buildkit ``api/services/control/control.proto``: UsageRecord, PruneRequest.
"""

from __future__ import annotations

from crossdock.record import Record

__all__ = ["PruneRequest", "UsageRecord"]


class UsageRecord(Record):
    """One cache record; times in seconds since the epoch, sizes in bytes."""

    id: str
    mutable: bool = False
    in_use: bool = False
    size_bytes: int = 0
    parents: tuple[str, ...] = ()
    created_at: float = 0.0
    last_used_at: float | None = None
    usage_count: int = 0
    description: str = ""
    #: ``regular``, ``exec.cachemount``, ``source.local``, ``source.git.checkout``, ``frontend``, ``internal``
    record_type: str = "regular"
    shared: bool = False
    #: why pruning leaves it for now; only the embedded engine says so
    kept: str = ""


class PruneRequest(Record):
    """What to remove; sizes in bytes, 0 = no such limit."""

    all: bool = False
    #: BuildKit filter expressions, any of which selects (``type==regular,shared``)
    filters: tuple[str, ...] = ()
    #: keep what was used within this time
    keep_duration_s: float = 0.0
    reserved_space: int = 0
    max_used_space: int = 0
    min_free_space: int = 0
