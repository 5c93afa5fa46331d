"""``build``: the flags, the display, and the files written afterwards."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from crossdock.cli.common import embedded_aware_builder
from crossdock.cli.declare import command as make_command
from crossdock.cli.declare import flag
from crossdock.errors import StepFailed
from crossdock.wholefile import replaceable

if TYPE_CHECKING:
    from crossdock.api import Builder
    from crossdock.builders.request import BuildRequest
    from crossdock.builders.result import BuildResult
    from crossdock.cli.declare import Globals

__all__ = ["command"]

_ADD_HOST = 'Add a custom host-to-IP mapping (format: "host:ip")'
_ALLOW = 'Allow extra privileged entitlement (e.g., "network.host", "security.insecure", "device", "buildx.local.delete")'
_POLICY = (
    'Policy configuration (format: "filename=path[,filename=path][,reset=true|false][,disabled=true|false]'
    '[,strict=true|false][,log-level=level]")'
)
_PROGRESS = (
    'Set type of progress output ("auto", "none", "plain", "quiet", "rawjson", "tty"). '
    "Use plain to show container output"
)


@make_command("build [OPTIONS] PATH | URL | -", args=(1, 1), aliases=("b",))
@flag("--add-host", kind="strings", help=_ADD_HOST)
@flag("--allow", kind="stringArray", help=_ALLOW)
@flag("--annotation", kind="stringArray", help="Add annotation to the image")
@flag("--attest", kind="stringArray", help='Attestation parameters (format: "type=sbom,generator=image")')
@flag("--build-arg", kind="stringArray", help="Set build-time variables")
@flag("--build-context", kind="stringArray", help="Additional build contexts (e.g., name=path)")
@flag(
    "--cache-from",
    kind="stringArray",
    help='External cache sources (e.g., "user/app:cache", "type=local,src=path/to/dir")',
)
@flag(
    "--cache-to",
    kind="stringArray",
    help='Cache export destinations (e.g., "user/app:cache", "type=local,dest=path/to/dir")',
)
@flag("--call", default="build", help='Set method for evaluating build ("check", "outline", "targets")')
@flag("--cgroup-parent", help='Set the parent cgroup for the "RUN" instructions during build')
@flag("--check", kind="bool", help='Shorthand for "--call=check"')
@flag("--explain", kind="bool", help="Say why steps were not cached")
@flag("-f", "--file", "file", help='Name of the Dockerfile (default: "PATH/Dockerfile")')
@flag("--iidfile", help="Write the image ID to a file")
@flag("--label", kind="stringArray", help="Set metadata for an image")
@flag("--load", kind="bool", help='Shorthand for "--output=type=docker"')
@flag("--metadata-file", help="Write build result metadata to a file")
@flag("--network", default="default", help='Set the networking mode for the "RUN" instructions during build')
@flag("--no-cache", kind="bool", help="Do not use cache when building the image")
@flag("--no-cache-filter", kind="stringArray", help="Do not cache specified stages")
@flag(
    "-o", "--output", "output", kind="stringArray", help='Output destination (format: "type=local,dest=path")'
)
@flag("--platform", kind="stringArray", help="Set target platform for build")
@flag("--policy", kind="stringArray", help=_POLICY)
@flag("--progress", help=_PROGRESS + ' (default "auto")')
@flag("--provenance", help='Shorthand for "--attest=type=provenance"')
@flag("--pull", kind="bool", help="Always attempt to pull all referenced images")
@flag("--push", kind="bool", help='Shorthand for "--output=type=registry,unpack=false"')
@flag("-q", "--quiet", kind="bool", help="Suppress the build output and print image ID on success")
@flag(
    "--resource",
    kind="stringArray",
    help='Resource limits for build containers (format: "memory=2g", "cpu-quota=50000")',
)
@flag("--sbom", help='Shorthand for "--attest=type=sbom"')
@flag(
    "--secret",
    kind="stringArray",
    help='Secret to expose to the build (format: "id=mysecret[,src=/local/secret]")',
)
@flag("--shm-size", kind="bytes", help="Shared memory size for build containers")
@flag(
    "--ssh",
    kind="stringArray",
    help='SSH agent socket or keys to expose to the build (format: "default|<id>[=<socket>|<key>[,<key>]]")',
)
@flag(
    "-t", "--tag", "tag", kind="stringArray", help='Image identifier (format: "[registry/]repository[:tag]")'
)
@flag("--target", help="Set the target build stage to build")
@flag("--ulimit", kind="ulimit", help="Ulimit options")
@flag("--print", "print_", hidden=True, help="Print result of information request (e.g., outline, targets)")
@flag("-m", "--memory", hidden=True, help="Memory limit")
@flag(
    "--memory-swap", hidden=True, help='Swap limit equal to memory plus swap: "-1" to enable unlimited swap'
)
@flag("-c", "--cpu-shares", hidden=True, help="CPU shares (relative weight)")
@flag("--cpu-period", hidden=True, help="Limit the CPU CFS (Completely Fair Scheduler) period")
@flag("--cpu-quota", hidden=True, help="Limit the CPU CFS (Completely Fair Scheduler) quota")
@flag("--cpuset-cpus", hidden=True, help='CPUs in which to allow execution ("0-3", "0,1")')
@flag("--cpuset-mems", hidden=True, help='MEMs in which to allow execution ("0-3", "0,1")')
@flag("--compress", kind="bool", hidden=True, help="Compress the build context using gzip")
@flag("--isolation", hidden=True, help="Container isolation technology")
@flag("--security-opt", kind="strings", hidden=True, help="Security options")
@flag("--squash", kind="bool", hidden=True, help="Squash newly built layers into a single new layer")
@flag("--rm/--no-rm", kind="bool", default="true", hidden=True, help="Remove intermediate containers")
@flag("--force-rm", kind="bool", hidden=True, help="Always remove intermediate containers")
def command(globals_: Globals, args: tuple[str, ...], **flags: Any) -> int:
    """Start a build"""
    from crossdock.cli.buildflags import display_mode, request_of, warn_ignored

    mode = display_mode(flags)
    warn_ignored(flags)
    request = request_of(args[0], flags)
    builder = embedded_aware_builder(globals_, request)
    request = builder.completed(request)
    _remove_stale(flags["iidfile"])
    result = _run(globals_, builder, request, mode)
    return _finish(request, result, flags, mode, debug=globals_.debug)


def _run(globals_: Globals, builder: Builder, request: BuildRequest, mode: str) -> BuildResult:
    from crossdock.cli.interrupt import interruptible
    from crossdock.progress.display import Display, make_printer

    description = f'building with "{builder.name}" instance using {builder.driver} driver'
    printer = make_printer(
        mode, sys.stderr, description=description, short=f"{builder.driver}:{builder.name}"
    )
    try:
        with interruptible(plugin=globals_.plugin) as cancel, Display(printer) as display:
            return builder.build(request, on_event=display.emit, cancel=cancel)
    except StepFailed as exc:
        if mode in ("quiet", "none") and exc.log_tail and not exc.detail:
            exc.detail = "\n".join(["last lines of its output:", *exc.log_tail])
        raise


def _remove_stale(path: str | None) -> None:
    if path and replaceable(path):
        try:
            os.unlink(path)
        except FileNotFoundError:
            return


def _finish(
    request: BuildRequest, result: BuildResult, flags: dict[str, Any], mode: str, *, debug: bool
) -> int:
    from crossdock.cli.buildflags import print_warnings, write_files

    write_files(result, flags)
    if mode not in ("quiet", "none", "rawjson"):
        print_warnings(result, debug=debug)
    if request.explain:
        from crossdock.cli.explain import print_explanation

        print_explanation(result.explanation, as_json=mode == "rawjson")
    if request.call != "build":
        from crossdock.cli.answers import print_answer

        return print_answer(result.metadata, request.call)
    if mode == "quiet" and result.image_id:
        sys.stdout.write(result.image_id + "\n")
    if mode not in ("quiet", "none", "rawjson") and not request.outputs:
        sys.stderr.write(
            "WARNING: No output specified. The result stays in the build cache only: use --push to push it, "
            "--load to load it into docker, or -o to write it.\n"
        )
    return 0
