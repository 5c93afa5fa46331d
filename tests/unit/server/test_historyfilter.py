"""Which records a filter of ``ListenBuildHistory`` lets through."""

from __future__ import annotations

import time

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.status_pb2 import Status

from crossdock.buildkit.proto import control_pb2
from crossdock.errors import UsageError
from crossdock.server.historyfilter import record_filter, status_of_record


def record(
    *, took_s: int | None = 10, age_s: int = 100, error: str = "", source: str = ""
) -> control_pb2.BuildHistoryRecord:
    now = int(time.time_ns() // 10**9)
    made = control_pb2.BuildHistoryRecord(Ref="abc", CreatedAt=Timestamp(seconds=now - age_s))
    if took_s is not None:
        made.CompletedAt.FromSeconds(now - age_s + took_s)
    if error:
        made.error.CopyFrom(control_pb2.BuildHistoryRecord(error=Status(message=error)).error)
    if source:
        made.FrontendAttrs["context"] = source
    return made


@pytest.mark.parametrize(
    ("made", "status"),
    [
        (record(), "completed"),
        (record(took_s=None), "running"),
        (record(error="exit code: 1"), "error"),
        (record(error="context canceled"), "canceled"),
    ],
)
def test_the_status(made: control_pb2.BuildHistoryRecord, status: str) -> None:
    assert status_of_record(made) == status
    assert record_filter([f"status=={status}"])(made)


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        ([], True),
        (["ref==abc"], True),
        (["ref~=b"], True),
        (["ref!=abc"], False),
        (["startedAt>1m"], False),
        (["startedAt>5m"], True),
        (["startedAt<=2000-01-01T00:00:00Z"], False),
        (["startedAt>2000-01-01T00:00:00+02:00"], True),
        (["completedAt<1m"], True),
        (["duration>=10s"], True),
        (["duration<10s"], False),
        (["duration>1s,status==error"], False),
        (["status==error", "status==completed"], True),
        (["repository~=example"], False),
    ],
)
def test_filters(filters: list[str], wanted: bool) -> None:
    assert record_filter(filters)(record()) is wanted


def test_the_repository_is_that_of_the_context() -> None:
    made = record(source="https://git.example/a/b.git#main")
    assert record_filter(["repository==https://git.example/a/b.git"])(made)


@pytest.mark.parametrize("text", ["startedAt>never", "duration>many", 'ref=="', "=x", "a=b"])
def test_malformed_filters(text: str) -> None:
    with pytest.raises(UsageError):
        record_filter([text])
