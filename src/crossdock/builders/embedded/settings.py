"""How the steps of an embedded builder run: driver options, else environment variables.

| driver option | variable | values |
|---|---|---|
| ``network`` | ``CROSSDOCK_NETWORK`` | ``host`` (as BuildKit without CNI), ``isolated`` |
| ``step-deadline`` | ``CROSSDOCK_STEP_DEADLINE`` | a duration without output and CPU time that ends an emulated step; ``0`` never |
| ``cdi-spec-dirs`` | ``CROSSDOCK_CDI_SPEC_DIRS`` | folders, divided by ``:``, in which devices are described (CDI) |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.errors import UsageError
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["STEP_OPTIONS", "StepSettings", "step_settings"]

STEP_OPTIONS = frozenset(["network", "step-deadline", "cdi-spec-dirs"])
_NETWORKS = ("host", "isolated")


class StepSettings(NamedTuple):
    """The settings, checked."""

    #: what steps get that ask for no network in particular
    network: str = "host"
    #: seconds; ``None`` never
    hang_deadline_s: float | None = None
    #: empty: where devices usually are described
    cdi_directories: tuple[str, ...] = ()


def step_settings(options: Mapping[str, str], environ: Mapping[str, str]) -> StepSettings:
    """Read the settings of a node. Raises: UsageError naming the option or variable."""
    network, name = _value("network", options, environ)
    if network and network not in _NETWORKS:
        summary = f"invalid value {network!r} for {name}"
        raise UsageError(
            summary, hint=f"networks: {', '.join(_NETWORKS)}; `--network none` is an option of a build"
        )
    directories, _ = _value("cdi-spec-dirs", options, environ)
    return StepSettings(
        network or "host",
        _deadline(*_value("step-deadline", options, environ)),
        tuple(filter(None, directories.split(":"))),
    )


def _value(option: str, options: Mapping[str, str], environ: Mapping[str, str]) -> tuple[str, str]:
    """Return the value and the name it was given under."""
    if option in options:
        return options[option], f"driver option {option}"
    variable = f"CROSSDOCK_{option.upper().replace('-', '_')}"
    return environ.get(variable, ""), variable


def _deadline(text: str, name: str) -> float | None:
    if not text:
        return None
    from crossdock.builders.values import parse_duration

    try:
        seconds = parse_duration(text)
    except UsageError as exc:
        summary = f"{name}: {exc.summary}"
        raise UsageError(summary, hint=exc.hint) from exc
    if seconds < 0:
        summary = f"{name}: a deadline cannot be negative"
        raise UsageError(summary)
    return seconds or None
