"""The operation ``build``: what a build needs is set up, and put away after it."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from crossdock.builders.embedded.dockerfilebuild import DockerfileBuild
from crossdock.builders.embedded.inputs import gather
from crossdock.builders.embedded.supported import check_supported
from crossdock.builders.secrets import check_secrets
from crossdock.builds.steps import EventKeeper, shown
from crossdock.engine.facade import Engine, EngineOptions
from crossdock.errors import Cancelled, SandboxError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossdock.builders.bootrecord import BootRecord
    from crossdock.builders.embedded.settings import StepSettings
    from crossdock.builders.request import BuildRequest
    from crossdock.builders.result import BuildResult
    from crossdock.cancel import CancelToken
    from crossdock.engine.sandbox.cdi import CdiOptions
    from crossdock.progress.events import EventSink
    from crossdock.registry import RegistryClient

__all__ = ["build"]


def build(
    root: Path, payload: tuple[BuildRequest, bool, int, StepSettings], sink: EventSink, cancel: CancelToken
) -> tuple[BuildResult, BootRecord | None]:
    """Build. ``payload``: the request, whether a record of what the machine can run is wanted, bytes the store may hold,
    how steps run.

    Raises: everything a build can fail with; see ``crossdock.errors``.
    """
    request, wants_record, limit_bytes, settings = payload
    started = time.monotonic()
    check_supported(request)
    check_secrets(request.secrets)
    keeper = EventKeeper(sink)
    with ExitStack() as stack:
        empty = _empty_directory(request, stack)
        with shown(keeper, f"[internal] load build definition from {_display_name(request)}") as step:
            inputs = gather(request, empty)
            step.transferred("transferring dockerfile:", len(inputs.dockerfile or b""))
        agents = _agents(request, stack)
        options = EngineOptions(
            root,
            registry=_client,
            max_used_space=limit_bytes,
            hang_deadline_s=settings.hang_deadline_s,
            network=settings.network,
            cdi=_devices(settings),
        )
        engine = stack.enter_context(Engine.open(options))
        stack.callback(_keep_house, engine, limit_bytes, started, cancel)
        result = DockerfileBuild(engine, request, inputs, keeper, cancel, step.digest, agents).run()
        record = _survey(engine) if wants_record else None
    return result, record


def _empty_directory(request: BuildRequest, stack: ExitStack) -> Path | None:
    """Make an empty directory for a build that has no context, or no directory for its Dockerfile."""
    if request.context not in ("", "-") and request.dockerfile_text is None:
        return None
    import tempfile

    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="crossdock-")))


def _display_name(request: BuildRequest) -> str:
    if request.dockerfile_text is not None or not request.dockerfile:
        return "Dockerfile"
    return Path(request.dockerfile).name


def _client(cancel: CancelToken) -> RegistryClient:
    from crossdock.registry import Credentials, RegistryClient, RegistryConfig

    return RegistryClient(config=RegistryConfig(), credentials=Credentials(), cancel=cancel)


def _devices(settings: StepSettings) -> CdiOptions | None:
    if not settings.cdi_directories:
        return None
    from crossdock.engine.sandbox.cdi import CdiOptions

    return CdiOptions(settings.cdi_directories)


def _keep_house(engine: Engine, limit_bytes: int, started: float, cancel: CancelToken) -> None:
    """Look after the store, whatever became of the build; trouble with that is no reason for the build to fail."""
    if cancel.cancelled:
        return
    from crossdock.engine.store.upkeep import keep_house
    from crossdock.errors import StoreError

    try:
        engine.forget()
        keep_house(engine.store, max_bytes=limit_bytes, spent_s=time.monotonic() - started, cancel=cancel)
    except (StoreError, Cancelled) as exc:
        from logging import getLogger

        getLogger(__name__).warning("after the build: %s", exc.summary)


def _survey(engine: Engine) -> BootRecord | None:
    """Note what the machine offers, for ``ls``; a build that ran no step may work where no step would."""
    from crossdock.builders.embedded.machine import survey

    try:
        return survey(engine, verify=False)
    except SandboxError:
        return None


def _agents(request: BuildRequest, stack: ExitStack) -> Mapping[str, Path]:
    """Return the ssh agents of the build; those started here end with ``stack``."""
    if not request.ssh and "@" not in request.context and not request.context.startswith("ssh://"):
        return {}
    from crossdock.builders.agents import agent_sockets, implied_ssh
    from crossdock.engine.sandbox.worker import current_worker

    worker = current_worker()  # its folder is gone with it, however it ends
    folder = worker.run_dir if worker is not None else None
    return agent_sockets(implied_ssh(request.context, request.ssh), stack, folder=folder)
