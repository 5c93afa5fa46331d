"""Workers that solve and export, and the base they build on."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

from integration.engine.conftest import base_folder, worker  # noqa: F401  fixtures of the engine's cases

if TYPE_CHECKING:
    from collections.abc import Callable

PRELUDE = """
from crossdock.engine.exporters import ExporterSpec, PlatformImage
from crossdock.image import History, ImageConfig, parse_platform
from crossdock.registry import Credentials, RegistryClient, RegistryConfig

def registry_engine():
    def client(cancel):
        return RegistryClient(config=RegistryConfig(), credentials=Credentials(), cancel=cancel)
    return open_engine(registry=client)

def config(platform, **fields):
    history = [History(created_by=f"STEP {n}") for n in range(fields.pop("steps", 0))]
    return ImageConfig(platform=parse_platform(platform), history=history, **fields)

def image(platform, ref, **fields):
    return PlatformImage(parse_platform(platform), ref.layers, config(platform, **fields))

def export(engine, images, *specs, sink=None, **options):
    given = [ExporterSpec(kind, attrs) for kind, attrs in specs]
    result = engine.export(images, given, sink=sink or Sink(), cancel=CancelToken(), **options)
    return result

def failed(action):
    try:
        action()
    except CrossdockError as exc:
        return {"kind": type(exc).__name__, "summary": exc.summary}
    return None
"""


@pytest.fixture
def build(worker: Any) -> Callable[[str], dict[str, Any]]:  # noqa: F811
    """Run code in a worker with the engine's and the exporters' names; returns what it said."""

    def run(body: str, **values: object) -> dict[str, Any]:
        given = "".join(f"{name} = {json.dumps(str(value))}\n" for name, value in values.items())
        said: dict[str, Any] = worker.run(PRELUDE + given + textwrap.dedent(body))
        return said

    return run
