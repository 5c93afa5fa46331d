"""What this machine can run, found out by running it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crossdock.builders.bootrecord import BootRecord
from crossdock.builds.steps import shown
from crossdock.errors import SandboxError

if TYPE_CHECKING:
    from pathlib import Path

    from crossdock.builders.embedded.settings import StepSettings
    from crossdock.cancel import CancelToken
    from crossdock.emulation.platforms import Offer
    from crossdock.engine.facade import Engine
    from crossdock.engine.sandbox.sandbox import Sandbox
    from crossdock.engine.sandbox.selftest import Finding
    from crossdock.engine.sandbox.worker import Rung
    from crossdock.progress.events import EventSink

__all__ = ["bootstrap", "survey"]

_LABEL = "org.mobyproject.buildkit.worker."


def bootstrap(root: Path, settings: StepSettings, sink: EventSink, cancel: CancelToken) -> BootRecord:
    """Check store, runtime and sandbox, and execute a probe for every platform; shows each as a step.

    Raises: StoreError; SandboxError for what does not work, with what to do.
    """
    from crossdock.engine.facade import Engine, EngineOptions
    from crossdock.engine.sandbox.selftest import check_mounts, check_step

    with shown(sink, "[internal] opening the store") as step:
        engine = Engine.open(EngineOptions(root, network=settings.network))
        step.log(str(engine.store.root))
    with engine:
        with shown(sink, "[internal] entering the sandbox") as step:
            info = engine.info()
            for rung in info.worker.rungs if info.worker is not None else ():
                step.log(f"{rung.name}: {rung.state}" + (f" ({rung.note})" if rung.note else ""))
            step.log(f"runtime: {info.runtime}")
            sandbox = engine.sandbox()
            step.log(f"network: {_network(sandbox)}")
        for title, check in (("mounting a root file system", check_mounts), ("running a step", check_step)):
            cancel.check()
            with shown(sink, f"[internal] {title}") as step:
                step.log(_require(check(sandbox, engine.store.root)))
        cancel.check()
        with shown(sink, "[internal] probing platforms") as step:
            record = survey(engine, verify=True)
            for note in record.notes:
                step.log(note)
    return record


def _require(finding: Finding) -> str:
    if not finding.ok:
        raise SandboxError(finding.text, missing=finding.name, hint=finding.hint or None)
    return finding.text


def survey(engine: Engine, *, verify: bool) -> BootRecord:
    """List the platforms and how each is run; with ``verify`` those whose probe failed are noted and left out.

    Raises: SandboxError when there is no runtime.
    """
    from crossdock.emulation.platforms import offered_platforms

    sandbox = engine.sandbox()
    offers = offered_platforms(sandbox.emulator, verify=verify)
    info = engine.info()
    labels = {
        f"{_LABEL}executor": "oci",
        f"{_LABEL}hostname": os.uname().nodename,
        f"{_LABEL}snapshotter": sandbox.root_mounts,
        "crossdock.runtime": info.runtime,
        "crossdock.store": str(engine.store.root),
        f"{_LABEL}network": _network(sandbox),
    }
    if info.worker is not None:
        labels |= {
            _label(rung): rung.state + (f" ({rung.note})" if rung.note else "") for rung in info.worker.rungs
        }
    return BootRecord(
        platforms=tuple(o.platform for o in offers if not o.problem),
        notes=tuple(f"{o.platform}: {_how(o)}" for o in offers),
        labels=labels,
    )


def _network(sandbox: Sandbox) -> str:
    """Name the network of steps. Raises: SandboxError when it cannot be given."""
    if sandbox.network != "isolated":
        return sandbox.network
    return f"isolated ({sandbox.network_helper.name})"


def _label(rung: Rung) -> str:
    return "crossdock." + rung.name.replace("/", "").replace(" ", "-")


def _how(offer: Offer) -> str:
    if offer.problem:
        return f"not offered: {offer.problem}"
    if offer.running is None:
        return "native"
    emulator = f" {offer.running.emulator.path}" if offer.running.emulator is not None else ""
    return offer.running.how.value + emulator
