"""What devices make of a step: mounts, and the rest of the runtime's spec.

Spec: OCI runtime-spec 1.0 ``config.md`` (hooks), tags.cncf.io/container-device-interface ``SPEC.md`` (containerEdits).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from crossdock.engine.sandbox.spec import OciMount
from crossdock.errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crossdock.engine.sandbox.cdi import ContainerEdits

__all__ = ["device_mounts", "edit_spec"]


def device_mounts(devices: Sequence[ContainerEdits]) -> Iterator[OciMount]:
    """Yield what devices mount. Raises: SandboxError naming what the machine does not have."""
    for mount in dict.fromkeys(mount for edits in devices for mount in edits.mounts):
        if mount.type in ("bind", "") and not os.path.exists(mount.source):
            summary = f"the device needs {mount.source}, which this machine does not have"
            raise SandboxError(summary, missing=mount.source, hint="look at the device's CDI description")
        yield OciMount(mount.dest, mount.type, mount.source or mount.type, mount.options)


def edit_spec(spec: dict[str, Any], devices: Sequence[ContainerEdits]) -> None:
    """Add variables, groups and hooks of devices to the spec of a step."""
    process = spec["process"]
    groups = process["user"].setdefault("additionalGids", [])
    for edits in devices:
        changed = {variable.partition("=")[0] for variable in edits.env}
        process["env"] = [v for v in process["env"] if v.partition("=")[0] not in changed] + list(edits.env)
        groups += [group for group in edits.groups if group not in groups]
        for hook in edits.hooks:
            entry: dict[str, Any] = {"path": hook.path}
            if hook.args:
                entry["args"] = list(hook.args)
            if hook.env:
                entry["env"] = list(hook.env)
            if hook.timeout_s:
                entry["timeout"] = hook.timeout_s
            spec.setdefault("hooks", {}).setdefault(hook.point, []).append(entry)
    if not groups:
        del process["user"]["additionalGids"]
