"""What backends may use of the engine they serve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crossdock.errors import NotSupported, UsageError
from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from crossdock.cancel import CancelToken
    from crossdock.registry.client import RegistryClient

__all__ = ["Surroundings", "required", "setting"]


class Surroundings(NamedTuple):
    """What there is around a backend."""

    client: Callable[[CancelToken], RegistryClient]
    #: folder for lock files, shared by all that use the store
    locks: Path
    environ: Mapping[str, str]


def required(module: str, extra: str, what: str) -> Any:
    """Import a module of an optional package. Raises: NotSupported naming the extra that brings it."""
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as exc:
        summary = f"{what} needs the Python package {module.partition('.')[0]}, which is not installed"
        raise NotSupported(summary, hint=f"pip install 'crossdock[{extra}]'") from exc


def setting(
    attrs: Mapping[str, str], key: str, environ: Mapping[str, str], variable: str, *, what: str
) -> str:
    """Return an attribute, else a variable. Raises: UsageError when neither is set."""
    value = attrs.get(key) or environ.get(variable, "")
    if not value:
        summary = f"{key} is not set for the {what}"
        raise UsageError(summary, hint=f"add {key}=, or set {variable}")
    return value
