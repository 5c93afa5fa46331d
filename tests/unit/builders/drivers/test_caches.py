"""What this machine adds to caches that a daemon is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from crossdock.builders.drivers.caches import plan_caches

if TYPE_CHECKING:
    from pathlib import Path

VARIABLES = (
    *("ACTIONS_RUNTIME_TOKEN", "ACTIONS_CACHE_URL", "ACTIONS_RESULTS_URL", "ACTIONS_CACHE_SERVICE_V2"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"),
)


@pytest.fixture(autouse=True)
def nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))


def attrs_of(entry: dict[str, str]) -> dict[str, str] | None:
    found = plan_caches([], [entry]).exports
    return dict(found[0].attrs) if found else None


@pytest.mark.parametrize(
    ("environ", "given", "found"),
    [
        ({}, {}, None),
        ({"ACTIONS_RUNTIME_TOKEN": "t"}, {}, None),
        (
            {"ACTIONS_RUNTIME_TOKEN": "t", "ACTIONS_CACHE_URL": "c", "ACTIONS_RESULTS_URL": "r"},
            {},
            {"token": "t", "url": "c"},
        ),
        (
            {"ACTIONS_RUNTIME_TOKEN": "t", "ACTIONS_RESULTS_URL": "r", "ACTIONS_CACHE_SERVICE_V2": "true"},
            {},
            {"token": "t", "url": "r", "url_v2": "r"},
        ),
        (
            {"ACTIONS_RUNTIME_TOKEN": "t", "ACTIONS_RESULTS_URL": "r"},
            {"version": "2", "token": "own"},
            {"version": "2", "token": "own", "url": "r", "url_v2": "r"},
        ),
    ],
)
def test_github(
    monkeypatch: pytest.MonkeyPatch,
    environ: dict[str, str],
    given: dict[str, str],
    found: dict[str, str] | None,
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert attrs_of({"type": "gha", **given}) == found


def test_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert attrs_of({"type": "s3", "bucket": "b"}) == {"bucket": "b"}
    file = tmp_path / "credentials"
    file.write_text(
        "[default]\naws_access_key_id = d\naws_secret_access_key = %s\n[other]\naws_access_key_id = o\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    assert attrs_of({"type": "s3"}) == {"access_key_id": "d", "secret_access_key": "%s"}
    monkeypatch.setenv("AWS_PROFILE", "other")
    assert attrs_of({"type": "s3"}) == {"access_key_id": "o"}
    for name in VARIABLES[4:7]:
        monkeypatch.setenv(name, name[-3:])
    assert attrs_of({"type": "s3"}) == {
        "access_key_id": "_ID",
        "secret_access_key": "KEY",
        "session_token": "KEN",
    }
    given = {"access_key_id": "a", "secret_access_key": "b"}
    assert attrs_of({"type": "s3", **given}) == given
