"""Turn a build request into what BuildKit is asked: frontend attributes, exporters, caches, session services.

Spec: docker/buildx ``build/opt.go`` for the attributes; moby/buildkit ``frontend/dockerui``.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from crossdock.builders.attributes import entitlements, frontend_attributes
from crossdock.builders.dockerconfig import config_dir
from crossdock.builders.localpaths import context_directory, default_dockerfile, refuse_bake_contexts
from crossdock.builders.nodeid import shared_key
from crossdock.builders.parse import is_remote_context
from crossdock.builders.values import is_true
from crossdock.buildkit.session.auth import Auth
from crossdock.buildkit.session.filesync import FileSync, LocalDir
from crossdock.buildkit.solve import CacheEntry, SolveOptions
from crossdock.errors import ContextError, UsageError
from crossdock.record import Record, field

if TYPE_CHECKING:
    from collections.abc import Callable

    from crossdock.builders.request import BuildRequest
    from crossdock.buildkit.session.layout import LayoutStore
    from crossdock.buildkit.session.server import Attachable
    from crossdock.cancel import CancelToken
    from crossdock.engine.remotecache.adopt import AdoptedCache
    from crossdock.errors import CrossdockError
    from crossdock.llb import Definition
    from crossdock.llb.policyrules import Policy
    from crossdock.registry import Credentials

__all__ = ["Logins", "Plan", "make_plan"]

#: seconds after which helpers are asked again, as buildx does
_LOGINS_LIFE_S = 290.0


class Plan(Record, frozen=False):
    """What is sent, and what must be released afterwards."""

    frontend: str = "dockerfile.v0"
    attrs: dict[str, str] = field(default_factory=dict)
    #: contexts that are given as definitions, by the names that attributes use
    inputs: dict[str, Definition] = field(default_factory=dict)
    attachables: list[Attachable] = field(default_factory=list)
    source_policy: Policy | None = None
    stack: ExitStack = field(default_factory=ExitStack)
    entitlements: list[str] = field(default_factory=list)
    cache_from: tuple[CacheEntry, ...] = ()
    cache_to: tuple[CacheEntry, ...] = ()
    #: under which the daemon keeps the context between builds
    shared_key: str = ""
    #: content stores by the name the daemon asks for
    stores: dict[str, LayoutStore] = field(default_factory=dict)
    #: local caches that are exported: listed in the index of their layouts at the end
    written: tuple[AdoptedCache, ...] = ()
    #: local directories by the name the daemon asks for
    directories: dict[str, Path] = field(default_factory=dict)

    def options(self) -> SolveOptions:
        """Return the options, exports left out."""
        return SolveOptions(
            frontend=self.frontend,
            frontend_inputs=self.inputs,
            frontend_attrs=self.attrs,
            entitlements=tuple(self.entitlements),
            cache_imports=self.cache_from,
            cache_exports=self.cache_to,
            shared_key=self.shared_key,
            source_policy=self.source_policy,
        )


def make_plan(
    request: BuildRequest,
    *,
    cancel: CancelToken,
    on_error: Callable[[CrossdockError], None],
    stdin: BinaryIO | None = None,
) -> Plan:
    """Plan a build; closes nothing on success: the caller closes ``plan.stack``.

    Raises: ContextError, UsageError.
    """
    plan = Plan()
    with plan.stack:
        _contexts(request, plan, on_error, stdin)
        _attributes(request, plan, cancel)
        _caches(request, plan)
        plan.attachables.append(Auth(Logins(), cancel=cancel, on_error=on_error, seed_dir=config_dir()))
        if request.secrets:
            from crossdock.builders.secrets import read_secret
            from crossdock.buildkit.session.secrets import Secrets

            plan.attachables.append(Secrets({s.id: read_secret(s) for s in request.secrets}))
        plan.stack = plan.stack.pop_all()
    return plan


class Logins:
    """The logins of docker's and podman's configurations, read when first needed, and again while a long build lasts.

    Helpers of cloud registries give passwords that expire. Safe from any thread.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Guards the two below.
        self._lock = threading.Lock()
        self._read_s = 0.0
        self._credentials: Credentials | None = None

    def __call__(self) -> Credentials:
        """Return them. Raises: nothing; looking up does."""
        from crossdock.registry.credentials import Credentials

        with self._lock:
            if self._credentials is None or self._clock() - self._read_s > _LOGINS_LIFE_S:
                self._credentials, self._read_s = Credentials(), self._clock()
            return self._credentials


def _contexts(
    request: BuildRequest, plan: Plan, on_error: Callable[[CrossdockError], None], stdin: BinaryIO | None
) -> None:
    dirs: dict[str, LocalDir] = {}
    _main_context(request, plan, dirs, stdin)
    _dockerfile(request, plan, dirs)
    for name, value in request.named_contexts.items():
        _need(plan, "moby.buildkit.frontend.contexts+forward")
        plan.attrs[f"context:{name}"] = _named(name, value, dirs, plan)
        _git_query(plan, f"context:{name}", value)
    plan.directories = {name: local.path for name, local in dirs.items()}
    if dirs:
        plan.attachables.append(FileSync(dirs, on_error=on_error))
    _forward_agents(request, plan)


def _forward_agents(request: BuildRequest, plan: Plan) -> None:
    if not request.ssh and not is_remote_context(request.context):
        return
    from crossdock.builders.agents import agent_sockets, implied_ssh
    from crossdock.buildkit.session.ssh import SshForward

    agents = agent_sockets(implied_ssh(request.context, request.ssh), plan.stack)
    if agents:
        plan.attachables.append(SshForward({name: str(path) for name, path in agents.items()}))


def _main_context(
    request: BuildRequest, plan: Plan, dirs: dict[str, LocalDir], stdin: BinaryIO | None
) -> None:
    context = request.context
    if context == "-":
        if stdin is None:
            summary = "the context is read from standard input, but there is none"
            raise ContextError(summary)
        from crossdock.buildkit.session.upload import Upload

        upload = Upload()
        plan.attrs["context"] = upload.add(stdin)
        plan.attachables.append(upload)
    elif is_remote_context(context):
        plan.attrs["context"] = context
        _git_query(plan, "context", context)
    else:
        dirs["context"] = LocalDir(path=context_directory(context) if context else _scratch(plan))
        plan.shared_key = shared_key(context) if context else ""


def _dockerfile(request: BuildRequest, plan: Plan, dirs: dict[str, LocalDir]) -> None:
    attrs, remote = plan.attrs, "context" not in dirs
    given = Path(request.dockerfile) if request.dockerfile else None
    if request.dockerfile_text is not None:
        folder = _scratch(plan)
        (folder / "Dockerfile").write_bytes(request.dockerfile_text)
        path = folder / "Dockerfile"
        remote = True
    elif remote and (given is None or not given.is_absolute()):
        attrs["filename"] = str(given or "Dockerfile")
        if "context" in plan.inputs:
            plan.inputs["dockerfile"] = plan.inputs["context"]
        return
    else:
        path = given if given is not None else default_dockerfile(dirs["context"].path)
    if not path.is_file():
        summary = f"failed to read dockerfile: {path}: no such file"
        raise ContextError(summary, hint="name it with -f FILE")
    dirs["dockerfile"] = LocalDir(path=path.parent.absolute())
    attrs["filename"] = path.name
    if remote:
        attrs["dockerfilekey"] = "dockerfile"


def _scratch(plan: Plan) -> Path:
    import tempfile

    return Path(plan.stack.enter_context(tempfile.TemporaryDirectory(prefix="crossdock-")))


def _need(plan: Plan, cap: str) -> None:
    """Have the frontend refuse, or hand over with ``+forward``, what it does not know."""
    known = plan.attrs.get("frontend.caps", "").split(",")
    plan.attrs["frontend.caps"] = ",".join(sorted({cap, *filter(None, known)}))


def _git_query(plan: Plan, attribute: str, url: str) -> None:
    """Git URLs with a query are for frontends that read it; on demand they are solved from a definition of ours."""
    if "?" not in url.partition("#")[0]:
        return
    from crossdock.dockerfile.contexts import GitContext, context_output, parse_context
    from crossdock.llb.codec import marshal

    spec = parse_context(url)
    if not isinstance(spec, GitContext):
        return
    if not is_true(os.environ.get("BUILDX_SEND_GIT_QUERY_AS_INPUT", "")):
        _need(plan, "moby.buildkit.frontend.gitquerystring" + ("" if attribute == "context" else "+forward"))
        return
    definition = marshal(context_output(spec))
    plan.attrs[f"input:{attribute}"] = url
    if attribute == "context":
        plan.inputs["context"] = definition
        del plan.attrs["context"]
    else:
        plan.inputs[f"git_state_{attribute}"] = definition
        plan.attrs[attribute] = f"input:git_state_{attribute}"


def _named(name: str, value: str, dirs: dict[str, LocalDir], plan: Plan) -> str:
    if value.startswith("oci-layout://"):
        from crossdock.builders.layouts import find_layout
        from crossdock.buildkit.session.layout import LayoutStore

        layout = find_layout(name, value)
        plan.stores[f"oci:{layout.store}"] = LayoutStore(layout.root)
        return layout.text
    if value.startswith("docker-image://") or is_remote_context(value):
        return value
    refuse_bake_contexts(name, value)
    local = f"_{name}" if name in ("context", "dockerfile") else name
    dirs[local] = LocalDir(path=context_directory(value))
    plan.attrs[f"sharedkey:localdir:{name}"] = shared_key(value)
    return f"local:{local}"


def _attributes(request: BuildRequest, plan: Plan, cancel: CancelToken) -> None:
    plan.attrs.update(frontend_attributes(request))
    _special_arguments(request, plan)
    if request.context and "context" in plan.directories:
        from crossdock.builders.gitinfo import git_attributes

        plan.attrs.update(git_attributes(plan.directories, cancel))
    plan.source_policy = request.source_policy
    plan.entitlements = list(entitlements(request))


def _special_arguments(request: BuildRequest, plan: Plan) -> None:
    """Build arguments that say how the frontend is called; daemons of every age are told in the old way."""
    arguments = request.build_args
    if "BUILDKIT_SYNTAX" in arguments:
        line = arguments["BUILDKIT_SYNTAX"].strip()
        if not line:
            summary = "the build argument BUILDKIT_SYNTAX is empty"
            raise UsageError(summary, hint="give a frontend image, or leave it out")
        plan.frontend = "gateway.v0"
        plan.attrs |= {"source": line.partition(" ")[0], "cmdline": arguments["BUILDKIT_SYNTAX"]}
    if is_true(arguments.get("BUILDKIT_MULTI_PLATFORM", "")):
        plan.attrs["multi-platform"] = "true"


def _caches(request: BuildRequest, plan: Plan) -> None:
    exports = list(request.cache_to)
    if is_true(request.build_args.get("BUILDKIT_INLINE_CACHE", "")):
        exports.append({"type": "inline"})
    if not request.cache_from and not exports:
        return
    import json

    from crossdock.builders.drivers.caches import plan_caches

    caches = plan_caches(request.cache_from, exports)
    plan.cache_from, plan.cache_to, plan.written = caches.imports, caches.exports, caches.written
    plan.stores.update(caches.stores)
    if caches.imports:
        # The frontend solves in the build's name, and takes what it may reuse from here.
        entries = [{"Type": c.type, "Attrs": dict(c.attrs)} for c in caches.imports]
        plan.attrs["cache-imports"] = json.dumps(entries)
