"""``serve``: the embedded engine as a daemon that speaks BuildKit's API; also callable as ``buildkitd``."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from crossdock.cli.command import command as make_command
from crossdock.cli.command import flag

if TYPE_CHECKING:
    from collections.abc import Callable

    from crossdock.cli.command import Globals

__all__ = ["command"]

#: flags of buildkitd that mean nothing here: name, kind
_NOTED = (
    ("rootless", "bool"),
    ("debugaddr", "string"),
    ("proxy-network", "bool"),
    ("otel-socket-path", "string"),
    ("save-cache-debug", "bool"),
    ("containerd-worker", "string"),
    ("containerd-worker-addr", "string"),
    ("containerd-worker-labels", "stringArray"),
    ("containerd-worker-net", "string"),
    ("containerd-cni-config-path", "string"),
    ("containerd-cni-binary-dir", "string"),
    ("containerd-cni-pool-size", "string"),
    ("containerd-worker-snapshotter", "string"),
    ("containerd-worker-apparmor-profile", "string"),
    ("containerd-worker-selinux", "bool"),
    ("containerd-max-parallelism", "string"),
    ("containerd-worker-rootless", "bool"),
    ("containerd-worker-gc", "bool"),
    ("containerd-worker-gc-keepstorage", "string"),
    ("oci-worker", "string"),
    ("oci-worker-snapshotter", "string"),
    ("oci-worker-proxy-snapshotter-path", "string"),
    ("oci-cni-config-path", "string"),
    ("oci-cni-binary-dir", "string"),
    ("oci-cni-pool-size", "string"),
    ("oci-worker-apparmor-profile", "string"),
    ("oci-worker-selinux", "bool"),
    ("oci-worker-rootless", "bool"),
    ("oci-worker-no-process-sandbox", "bool"),
)
_DEFAULT_CONFIG = "/etc/buildkit/buildkitd.toml"


def _noted_flags(function: Callable[..., Any]) -> Callable[..., Any]:
    for name, kind in _NOTED:
        text = "Accepted as buildkitd does; no effect here"
        function = flag(f"--{name}", kind=kind, help=text, hidden=True)(function)
    return function


@make_command("serve [OPTIONS]", builder=False)
@flag("--addr", kind="stringArray", help="Listening address (unix, tcp, fd)")
@flag("--root", help="Directory of the store")
@flag("--config", help='Path to a buildkitd.toml (default "/etc/buildkit/buildkitd.toml")')
@flag("--group", help="Group that may use the unix sockets, by name or number")
@flag("--tlscert", help="Certificate file to use")
@flag("--tlskey", help="Key file to use")
@flag("--tlscacert", help="CA certificate that client certificates must be signed by")
@flag("--allow-insecure-entitlement", kind="strings", help="Entitlement that builds may be granted")
@flag("--oci-worker-labels", kind="stringArray", help="Label of the worker (com.example.key=value)")
@flag("--oci-worker-platform", kind="strings", help="Platform to announce instead of those found")
@flag("--oci-max-parallelism", help="Steps at work at once (0 or num-cpu: by the machine)")
@flag("--oci-worker-net", help="Network of steps that ask for none: host, or bridge for one of their own")
@flag("--oci-worker-binary", help="OCI runtime, by name or path")
@flag("--cdi-spec-dir", kind="stringArray", help="Directory with CDI descriptions of devices")
@flag("--cdi-disabled", kind="bool", help="Give no devices to steps")
@flag("--step-deadline", help="Time without output and CPU use that ends an emulated step, e.g. 10m")
@flag("--oci-worker-gc", kind="bool", default="true", help="Collect garbage")
@flag("--oci-worker-gc-keepstorage", help="Megabytes that the cache may keep: RESERVED[,FREE[,MAXIMUM]]")
@flag("--log-format", help="text or json")
@flag("--log-level", help="debug, info, warn or error")
@_noted_flags
def command(globals_: Globals, **flags: Any) -> int:
    """Serve the embedded engine over BuildKit's API"""
    from crossdock.cli.serveoptions import logging_of, serve_options
    from crossdock.engine.sandbox.worker import become_worker
    from crossdock.server.listen import passed_sockets

    given = [name for name, _ in _NOTED if flags.get(name.replace("-", "_"))]
    options = serve_options(flags, debug=globals_.debug, ignored=given, config=_DEFAULT_CONFIG)
    passed = passed_sockets(os.environ, os.getpid())
    # Before any thread exists; gRPC starts some as soon as it is imported.
    become_worker()
    _stay_small()
    logging_of(options)
    from crossdock.server.daemon import serve

    code = serve(options, passed)
    sys.stdout.flush()
    return code


def _stay_small() -> None:
    """Undo what is right for a command and wrong for a daemon: memory is given back soon rather than never."""
    import gc

    from crossdock.linux import limit_malloc_arenas

    gc.set_threshold(2000, 10, 10)
    limit_malloc_arenas(1)
