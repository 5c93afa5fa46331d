"""Turn a build request into what BuildKit is asked: frontend attributes, exporters, caches, session services.

Spec: docker/buildx ``build/opt.go`` for the attributes; moby/buildkit ``frontend/dockerui``.
"""

from __future__ import annotations

import os
import re
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from crossdock.buildkit.session.auth import Auth
from crossdock.buildkit.session.content import ContentStores, LayoutStore
from crossdock.buildkit.session.filesync import FileSync, LocalDir
from crossdock.buildkit.session.secrets import Secrets
from crossdock.buildkit.session.ssh import SshForward
from crossdock.buildkit.session.upload import Upload
from crossdock.buildkit.solve import CacheEntry, SolveOptions
from crossdock.errors import ContextError, UsageError
from crossdock.registry import Credentials
from crossdock.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from crossdock.builders.request import BuildRequest, SecretSpec
    from crossdock.buildkit.session.server import Attachable
    from crossdock.cancel import CancelToken
    from crossdock.errors import CrossdockError

__all__ = ["Plan", "make_plan"]

_URL = re.compile(r"(https?://|git://|ssh://|git@[^/:]+:|github\.com/)")


@dataclass(slots=True, kw_only=True)
class Plan:
    """What is sent, and what must be released afterwards."""

    attrs: dict[str, str] = field(default_factory=dict)
    attachables: list[Attachable] = field(default_factory=list)
    stack: ExitStack = field(default_factory=ExitStack)
    entitlements: list[str] = field(default_factory=list)
    cache_from: tuple[CacheEntry, ...] = ()
    cache_to: tuple[CacheEntry, ...] = ()
    #: content stores by the name the daemon asks for
    stores: dict[str, LayoutStore] = field(default_factory=dict)

    def options(self) -> SolveOptions:
        """Return the options, exports left out."""
        return SolveOptions(
            frontend="dockerfile.v0",
            frontend_attrs=self.attrs,
            entitlements=tuple(self.entitlements),
            cache_imports=self.cache_from,
            cache_exports=self.cache_to,
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
        _attributes(request, plan)
        _caches(request, plan)
        if plan.stores:
            plan.attachables.append(ContentStores(plan.stores))
        plan.attachables.append(Auth(Credentials(), cancel=cancel, on_error=on_error))
        plan.attachables.append(Secrets({s.id: read_secret(s) for s in request.secrets}))
        plan.stack = plan.stack.pop_all()
    return plan


def _contexts(
    request: BuildRequest, plan: Plan, on_error: Callable[[CrossdockError], None], stdin: BinaryIO | None
) -> None:
    dirs: dict[str, LocalDir] = {}
    _main_context(request, plan, dirs, stdin)
    _dockerfile(request, plan, dirs)
    for name, value in request.named_contexts.items():
        plan.attrs[f"context:{name}"] = _named(name, value, dirs, plan.stores)
    if dirs:
        plan.attachables.append(FileSync(dirs, on_error=on_error))
    agents = request.ssh or (("default",) if request.context.startswith(("ssh://", "git@")) else ())
    if agents:
        plan.attachables.append(SshForward(dict(map(_agent, agents))))


def _main_context(
    request: BuildRequest, plan: Plan, dirs: dict[str, LocalDir], stdin: BinaryIO | None
) -> None:
    context = request.context
    if context == "-":
        if stdin is None:
            summary = "the context is read from standard input, but there is none"
            raise ContextError(summary)
        upload = Upload()
        plan.attrs["context"] = upload.add(stdin)
        plan.attachables.append(upload)
    elif _URL.match(context):
        plan.attrs["context"] = context
    else:
        dirs["context"] = LocalDir(path=_directory(context) if context else _scratch(plan))


def _dockerfile(request: BuildRequest, plan: Plan, dirs: dict[str, LocalDir]) -> None:
    attrs, remote = plan.attrs, "context" in plan.attrs
    given = Path(request.dockerfile) if request.dockerfile else None
    if request.dockerfile_text is not None:
        folder = _scratch(plan)
        (folder / "Dockerfile").write_bytes(request.dockerfile_text)
        path = folder / "Dockerfile"
        remote = True
    elif remote and (given is None or not given.is_absolute()):
        attrs["filename"] = str(given or "Dockerfile")
        return
    else:
        path = given if given is not None else _default_dockerfile(dirs["context"].path)
    if not path.is_file():
        summary = f"failed to read dockerfile: {path}: no such file"
        raise ContextError(summary, hint="name it with -f FILE")
    dirs["dockerfile"] = LocalDir(path=path.parent.absolute())
    attrs["filename"] = path.name
    if remote:
        attrs["dockerfilekey"] = "dockerfile"


def _directory(path: str) -> Path:
    found = Path(path)
    if not found.exists():
        summary = f"unable to prepare context: path {path!r} not found"
        raise ContextError(summary)
    if not found.is_dir():
        summary = f"unable to prepare context: {path!r} is not a directory"
        raise ContextError(summary, hint="give the directory, and the Dockerfile with -f")
    return found.absolute()


def _default_dockerfile(context: Path) -> Path:
    upper, lower = context / "Dockerfile", context / "dockerfile"
    return lower if not upper.exists() and lower.exists() else upper


def _scratch(plan: Plan) -> Path:
    import tempfile

    return Path(plan.stack.enter_context(tempfile.TemporaryDirectory(prefix="crossdock-")))


def _named(name: str, value: str, dirs: dict[str, LocalDir], stores: dict[str, LayoutStore]) -> str:
    if value.startswith("oci-layout://"):
        return _layout(name, value.removeprefix("oci-layout://"), stores)
    if value.startswith("docker-image://") or _URL.match(value):
        return value
    if value.startswith("target:"):
        summary = f"named context {name}={value}: targets exist in bake files only"
        raise UsageError(summary)
    dirs[name] = LocalDir(path=_directory(value))
    return f"local:{name}"


def _layout(name: str, value: str, stores: dict[str, LayoutStore]) -> str:
    import json

    path_text, _, digest = value.partition("@")
    root = Path(path_text)
    tag = "latest"
    if not root.is_dir() and ":" in root.name:
        head, _, tag = path_text.rpartition(":")
        root = Path(head)
    try:
        index = json.loads((root / "index.json").read_bytes())
    except (OSError, ValueError) as exc:
        summary = f"named context {name}: {root} is not an OCI layout: {exc}"
        raise ContextError(summary) from exc
    if not digest:
        entries = index.get("manifests") or []
        names = [(e.get("annotations") or {}).get("org.opencontainers.image.ref.name") for e in entries]
        chosen = [e for e, n in zip(entries, names, strict=True) if n == tag] or (
            entries if len(entries) == 1 else []
        )
        if not chosen:
            known = ", ".join(filter(None, names)) or "none"
            summary = f"named context {name}: the layout {root} has no tag {tag!r}"
            raise ContextError(summary, hint=f"tags in it: {known}")
        digest = str(chosen[0].get("digest"))
    key = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "layout"
    stores[f"oci:{key}"] = LayoutStore(root.absolute())
    return f"oci-layout://{key}@{digest}"


def _attributes(request: BuildRequest, plan: Plan) -> None:
    attrs = plan.attrs
    for name, value in request.build_args.items():
        attrs[f"build-arg:{name}"] = value
    for name, value in request.labels.items():
        attrs[f"label:{name}"] = value
    simple: Mapping[str, str] = {
        "target": request.target,
        "platform": ",".join(map(str, request.platforms)),
        "add-hosts": ",".join(request.add_hosts),
        "shm-size": str(request.shm_size) if request.shm_size else "",
        "ulimit": ",".join(request.ulimits),
        "cgroup-parent": request.cgroup_parent,
        "image-resolve-mode": "pull" if request.pull else "",
        "force-network-mode": request.network if request.network in ("host", "none") else "",
    }
    attrs.update({k: v for k, v in simple.items() if v})
    if request.no_cache:
        attrs["no-cache"] = ""
    elif request.no_cache_filter:
        attrs["no-cache"] = ",".join(request.no_cache_filter)
    for key, value in request.resources.items():
        attrs[key.replace("-", "")] = value
    for kind, params in request.attests.items():
        if params is not None:
            attrs[f"attest:{kind}"] = ",".join(f"{k}={v}" for k, v in params.items())
    plan.entitlements = [e for e in request.allow if not e.startswith("buildx.local")]
    if request.network == "host" and "network.host" not in plan.entitlements:
        plan.entitlements.append("network.host")


def _caches(request: BuildRequest, plan: Plan) -> None:
    def entry(spec: Mapping[str, str], key: str) -> CacheEntry:
        attrs = dict(spec)
        kind = attrs.pop("type", "registry")
        if kind == "local":
            path = attrs.pop(key, "")
            if not path:
                summary = f"local cache needs {key}=DIRECTORY"
                raise UsageError(summary)
            root = Path(path).absolute()
            if key == "src":
                attrs.setdefault("digest", _cache_digest(root, attrs.pop("tag", "latest")))
            plan.stores[f"local:{root}"] = LayoutStore(root, writable=key == "dest")
            attrs[key] = str(root)
        return CacheEntry(type=kind, attrs=attrs)

    plan.cache_from = tuple(entry(c, "src") for c in request.cache_from)
    plan.cache_to = tuple(entry(c, "dest") for c in request.cache_to)


def _cache_digest(root: Path, tag: str) -> str:
    import json

    try:
        index = json.loads((root / "index.json").read_bytes())
    except (OSError, ValueError) as exc:
        summary = f"local cache {root}: cannot read index.json: {exc}"
        raise ContextError(
            summary, hint="export a cache there first with --cache-to type=local,dest=…"
        ) from exc
    for item in index.get("manifests") or []:
        if (item.get("annotations") or {}).get("org.opencontainers.image.ref.name", "latest") == tag:
            return str(item.get("digest"))
    summary = f"local cache {root} has no tag {tag!r}"
    raise ContextError(summary)


def read_secret(spec: SecretSpec) -> Secret:
    """Read one secret.

    Raises: UsageError naming the file or variable that is not there.
    """
    if spec.value is not None:
        return spec.value
    if spec.env:
        if spec.env not in os.environ:
            summary = f"secret {spec.id!r}: the environment variable {spec.env} is not set"
            raise UsageError(summary)
        return Secret(os.environ[spec.env])
    try:
        return Secret(Path(spec.path).read_bytes())
    except OSError as exc:
        summary = f"secret {spec.id!r}: cannot read {spec.path}: {exc.strerror}"
        raise UsageError(summary) from exc


def _agent(spec: str) -> tuple[str, str]:
    name, _, path = spec.partition("=")
    if not path:
        path = os.environ.get("SSH_AUTH_SOCK", "")
        if not path:
            summary = f"--ssh {spec}: SSH_AUTH_SOCK is not set"
            raise UsageError(summary, hint="start an agent with ssh-agent, or give --ssh default=SOCKET")
    return name or "default", path
