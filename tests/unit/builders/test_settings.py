"""How the steps of an embedded builder run: options win over variables, and nonsense is named."""

from __future__ import annotations

import pytest

from crossdock.builders.attributes import frontend_attributes
from crossdock.builders.embedded.settings import StepSettings, step_settings
from crossdock.builders.request import BuildRequest
from crossdock.errors import UsageError

VARIABLES = {"CROSSDOCK_NETWORK": "isolated", "CROSSDOCK_STEP_DEADLINE": "2m"}


@pytest.mark.parametrize(
    ("options", "environ", "expected"),
    [
        ({}, {}, StepSettings("host", None)),
        ({}, VARIABLES, StepSettings("isolated", 120.0)),
        ({"network": "host", "step-deadline": "0"}, VARIABLES, StepSettings("host", None)),
        ({"step-deadline": "1h30m", "root": "/x"}, {}, StepSettings("host", 5400.0)),
    ],
)
def test_settings(options: dict[str, str], environ: dict[str, str], expected: StepSettings) -> None:
    assert step_settings(options, environ) == expected


@pytest.mark.parametrize(
    ("options", "environ", "text"),
    [
        ({"network": "bridge"}, {}, "invalid value 'bridge' for driver option network"),
        ({}, {"CROSSDOCK_NETWORK": "x"}, "invalid value 'x' for CROSSDOCK_NETWORK"),
        ({"step-deadline": "soon"}, {}, "driver option step-deadline: invalid duration 'soon'"),
        ({}, {"CROSSDOCK_STEP_DEADLINE": "-1s"}, "CROSSDOCK_STEP_DEADLINE: a deadline cannot be negative"),
    ],
)
def test_nonsense_is_named(options: dict[str, str], environ: dict[str, str], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        step_settings(options, environ)
    assert caught.value.summary == text


def test_sizes_of_resources_are_bytes_for_frontends() -> None:
    given = {"memory": "32m", "memory-swap": "-1", "cpu-quota": "5000", "cpuset-cpus": "0-1"}
    attrs = frontend_attributes(BuildRequest(context="", resources=given))
    assert attrs == {"memory": "33554432", "memswap": "-1", "cpuquota": "5000", "cpusetcpus": "0-1"}
