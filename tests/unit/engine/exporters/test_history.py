from __future__ import annotations

import pytest

from crossdock.engine.exporters.history import clamp_times, format_time, is_after, normalise
from crossdock.engine.store import LayerId, LayerInfo
from crossdock.image import History, ImageConfig, Platform

SECOND = 1_000_000_000


def layer(number: int) -> LayerInfo:
    created = (1_700_000_000 + number) * SECOND
    return LayerInfo(LayerId(f"layer{number}"), "exec", f"RUN {number}", None, 0, True, created, 0, 0)


def at(number: int) -> str:
    return format_time((1_700_000_000 + number) * SECOND)


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_700_000_000 * SECOND, "2023-11-14T22:13:20Z"),
        (1_700_000_000 * SECOND + 120_000_000, "2023-11-14T22:13:20.12Z"),
        (1_700_000_000 * SECOND + 1, "2023-11-14T22:13:20.000000001Z"),
    ],
)
def test_times_are_written_as_go_writes_them(time_ns: int, text: str) -> None:
    assert format_time(time_ns) == text


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("2023-11-14T22:13:20Z", False),
        ("2023-11-14T22:13:20.000000001Z", True),
        ("2023-11-14T22:13:20.000Z", False),
        ("2023-11-14T22:13:19.999999999Z", False),
        ("2023-11-14T22:13:21Z", True),
        ("2023-11-15T00:13:20+02:00", False),
        ("2023-11-15T00:13:20.5+02:00", True),
        ("nonsense", True),
    ],
)
def test_times_are_compared_to_the_nanosecond(text: str, after: bool) -> None:
    assert is_after(text, 1_700_000_000) is after


def test_entries_without_time_get_that_of_their_layer_or_neighbour() -> None:
    history = [
        History(created="2020-01-01T00:00:00Z", created_by="base"),
        History(created_by="ENV a=b", empty_layer=True),
        History(created_by="RUN 1"),
        History(created_by="CMD x", empty_layer=True),
    ]
    result = normalise(history, [layer(0), layer(1)])
    assert [h.created for h in result] == ["2020-01-01T00:00:00Z", at(1), at(1), at(1)]
    assert history[2].created is None  # what was given is not changed


def test_an_image_of_metadata_alone_takes_the_base_images_time() -> None:
    history = [
        History(created="2020-01-01T00:00:00Z"),
        History(created_by="ENV a=b", empty_layer=True),
    ]
    assert [h.created for h in normalise(history, [layer(0)])] == ["2020-01-01T00:00:00Z"] * 2


def test_layers_without_an_entry_get_one_from_their_description() -> None:
    (first, second) = normalise(
        [History(created_by="COPY", created="2020-01-01T00:00:00Z")], [layer(0), layer(1)]
    )
    assert first.created_by == "COPY"
    assert (second.created_by, second.created, second.comment) == (
        "RUN 1",
        at(1),
        "buildkit.exporter.image.v0",
    )


def test_entries_without_a_layer_are_marked_empty() -> None:
    result = normalise([History(created_by="a"), History(created_by="b")], [layer(0)])
    assert [h.empty_layer for h in result] == [False, True]


def test_times_after_the_epoch_are_cut_but_the_base_image_keeps_its_own() -> None:
    base = ImageConfig(platform=Platform("linux", "amd64"), history=[History(created="2024-01-01T00:00:00Z")])
    config = ImageConfig(
        platform=base.platform,
        created="2024-05-05T00:00:00Z",
        history=[
            History(created="2024-01-01T00:00:00Z"),
            History(created="2024-02-01T00:00:00Z"),
            History(created="2000-01-01T00:00:00Z"),
            History(),
        ],
    )
    clamp_times(config, base, 1_700_000_000)
    assert [h.created for h in config.history] == [
        "2024-01-01T00:00:00Z",
        "2023-11-14T22:13:20Z",
        "2000-01-01T00:00:00Z",
        "2023-11-14T22:13:20Z",
    ]
    assert config.created == "2023-11-14T22:13:20Z"
