"""What a stage starts from: an image, a named context, scratch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.dockerfile.contexts import (
    GitContext,
    HttpContext,
    ImageContext,
    InputContext,
    LocalContext,
    OciLayoutContext,
    git_source,
    http_source,
    local_source,
    named,
)
from crossdock.dockerfile.convert.names import step_name
from crossdock.dockerfile.convert.stage import clone_config
from crossdock.dockerfile.convert.vertex import GivenVertex, LocalVertex, Ref, SourceVertex
from crossdock.dockerfile.paths import clean, default_path_env
from crossdock.dockerfile.text import closest
from crossdock.errors import CrossdockError, DigestMismatch, UsageError
from crossdock.image.config import ImageConfig
from crossdock.image.digest import parse_digest
from crossdock.image.reference import parse_reference
from crossdock.llb.ops import SourceOp
from crossdock.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from crossdock.dockerfile.contexts import ContextSpec
    from crossdock.dockerfile.convert.job import Job
    from crossdock.dockerfile.convert.options import ImageResolver, ResolvedImage
    from crossdock.dockerfile.convert.stage import StageState
    from crossdock.image.platform import Platform
    from crossdock.llb.graph import Output

__all__ = [
    "BaseRequest",
    "context_image",
    "empty_image",
    "follow_paths",
    "lookup_context",
    "resolve_all",
    "use_base",
]

_COMMON = ("alpine", "busybox", "centos", "debian", "fedora", "golang", "node", "python", "ubuntu")


class BaseRequest(Record):
    """An image to resolve for a stage; requests with the same ``key`` have one answer."""

    state: StageState
    ref: str
    platform: Platform
    mode: str
    log_name: str
    #: how the user wrote it
    written: str
    #: name of the OCI layout store; "" for a registry image
    store: str = ""
    #: name of the context, "" for a plain base image
    context: str = ""

    @property
    def key(self) -> tuple[str, Platform, str, str]:
        """What identifies the answer."""
        return (self.ref, self.platform, self.mode, self.store)

    @classmethod
    def image(cls, job: Job, state: StageState) -> BaseRequest:
        """Return the request for a base image."""
        platform = state.platform or job.target_platform
        prefix = f"[{platform} internal]" if job.options.multi_platform else "[internal]"
        return cls(
            state=state,
            ref=state.base_name,
            platform=platform,
            mode=job.options.image_resolve_mode,
            log_name=f"{prefix} load metadata for {state.base_name}",
            written=_familiar(state.base_name),
        )


def _familiar(ref: str) -> str:
    return parse_reference(ref).familiar.removesuffix(":latest")


def resolve_all(
    requests: Sequence[BaseRequest], images: ImageResolver, names: Sequence[str]
) -> dict[object, ResolvedImage]:
    """Resolve images, several at once; equal requests are asked once.

    Raises: what the resolver raises, with the place of the first stage that wants the image.
    """
    unique = {request.key: request for request in reversed(requests)}
    found: dict[object, ResolvedImage] = {}
    if len(unique) == 1:
        for key, request in unique.items():
            found[key] = _resolve(request, images, names)
        return found
    import threading

    failures: dict[object, BaseException] = {}

    def work(key: object, request: BaseRequest) -> None:
        try:
            found[key] = _resolve(request, images, names)
        except BaseException as exc:  # noqa: BLE001  re-raised in the calling thread
            failures[key] = exc

    threads = [threading.Thread(target=work, args=item, daemon=True) for item in unique.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for key in unique:
        if key in failures:
            raise failures[key]
    return found


def _resolve(request: BaseRequest, images: ImageResolver, names: Sequence[str]) -> ResolvedImage:
    try:
        if request.store:
            return images.resolve_oci_layout(
                request.ref, store=request.store, platform=request.platform, log_name=request.log_name
            )
        return images.resolve_image(
            request.ref, platform=request.platform, mode=request.mode, log_name=request.log_name
        )
    except CrossdockError as exc:
        if exc.source is None:
            exc.source = request.state.where
        near = closest(request.written, (*names, *_COMMON))
        if near is not None:
            exc.hint = f"did you mean {near}?" + (f" {exc.hint}" if exc.hint else "")
        raise


def use_base(job: Job, request: BaseRequest, found: ResolvedImage) -> None:
    """Give a stage its image.

    Raises: LayerError when the config is malformed.
    """
    state = request.state
    state.resolved = True
    state.dispatched = state.unregistered
    config = ImageConfig.from_json(found.config, f"image {request.ref}")
    if request.context:
        _use_context_image(job, request, found, config)
        return
    state.base_config = config
    state.image = clone_config(config)
    state.image.created = None
    platform = request.platform
    if state.platform is None and job.implicit:
        platform = _detected(config, platform, job.options.build_platforms)
    state.platform = platform
    ref = parse_reference(found.ref or request.ref)
    if found.digest:
        ref = ref.with_digest(parse_digest(found.digest))
    state.base_name = str(ref)
    if job.linter.active:
        from crossdock.dockerfile.lint.checks import check_base_platform

        check_base_platform(request.written, platform, config.platform, state, job.linter)
    if not config.diff_ids and all(h.empty_layer for h in config.history):
        return  # an image without layers is scratch with a config
    name = step_name(
        state, f"FROM {state.base_name}", platform=platform, env={}, prefixed=job.options.multi_platform
    )
    mode = job.options.image_resolve_mode
    attrs = {"image.resolvemode": mode} if mode != "default" else {}
    metadata = named(name, command=state.head.text if state.head else "")
    op = SourceOp(f"docker-image://{state.base_name}", attrs)
    state.output = Ref(SourceVertex(op, metadata, platform=platform, source=state.where))
    state.state_platform = platform


def _detected(config: ImageConfig, target: Platform, known: Sequence[Platform]) -> Platform:
    actual = (config.platform.os, config.platform.architecture)
    for platform in (target, *known):
        if (platform.os, platform.architecture) == actual:
            return platform
    return target


# --- named contexts ----------------------------------------------------------------------------------------------


def lookup_context(contexts: Mapping[str, ContextSpec], name: str, platform: Platform) -> ContextSpec | None:
    """Return the named context that replaces a stage or image name, the one for the platform first."""
    if name.lower() in ("scratch", "context"):
        return None
    try:
        name = parse_reference(name).familiar.removesuffix(":latest")
    except (UsageError, DigestMismatch):
        return None
    return contexts.get(f"{name}::{platform.normalised()}") or contexts.get(name)


def context_image(job: Job, state: StageState, spec: ContextSpec) -> BaseRequest | None:
    """Make ``state`` start from a named context; image contexts need a request.

    Raises: UsageError.
    """
    name = _context_name(job, state, spec)
    platform = state.platform or job.target_platform
    title = f"[context {name}]"
    if isinstance(spec, ImageContext) and spec.ref != "scratch":
        ref = str(parse_reference(spec.ref).with_default_tag())
        return BaseRequest(
            state=state,
            ref=ref,
            platform=platform,
            mode=job.options.image_resolve_mode,
            log_name=f"{title} load metadata for {spec.ref}",
            written=spec.ref,
            context=name,
        )
    if isinstance(spec, OciLayoutContext):
        shown = parse_reference(name.partition("::")[0]).with_digest(parse_digest(spec.digest))
        return BaseRequest(
            state=state,
            ref=str(shown),
            platform=platform,
            mode="default",
            log_name=f"{title} load metadata for {shown}",
            written=name,
            store=spec.store,
            context=name,
        )
    state.resolved = True
    state.dispatched = state.unregistered or state.context is not None
    _use_plain_context(job, state, spec, name)
    return None


def _context_name(job: Job, state: StageState, spec: ContextSpec) -> str:
    return next((n for n, known in job.options.contexts.items() if known is spec), state.shown_name)


def _use_plain_context(job: Job, state: StageState, spec: ContextSpec, name: str) -> None:
    config: ImageConfig | None = None
    match spec:
        case InputContext(output=output, config=given):
            state.output = Ref(GivenVertex(output), output.index) if output is not None else None
            config = clone_config(given) if given is not None else None
        case GitContext(git=git, text=text):
            metadata = named(f"[internal] load git source {text}")
            op = git_source(git, keep_git_dir=git.keep_git_dir is True)
            state.output = Ref(SourceVertex(op, metadata))
        case HttpContext(url=url):
            metadata = named(f"[context {name}] {url}")
            state.output = Ref(SourceVertex(http_source(url, filename="context"), metadata))
        case LocalContext():
            state.output = Ref(LocalVertex(_local(job, state, spec, name)))
        case _:
            state.output = None  # docker-image://scratch
    _set_context_image(job, state, config)


def _local(job: Job, state: StageState, spec: LocalContext, name: str) -> Callable[[], Output]:
    exclude = job.context_ignores(spec.name)

    def make() -> Output:
        return local_source(
            spec.name,
            title=f"[context {name}] load from client",
            hint=f"context:{name}-{spec.shared_key}",
            session=job.options.session,
            follow=follow_paths(state.paths),
            exclude=exclude,
        )

    return make


def _set_context_image(job: Job, state: StageState, config: ImageConfig | None) -> None:
    if state.context is None:
        # The context stands for a base image: the stage's instructions follow.
        state.image = config or empty_image(state.platform or job.target_platform)
        state.base_config = clone_config(config) if config is not None else None
        state.platform = state.platform or job.target_platform
        state.state_platform = state.platform
        return
    if config is None:
        state.image = ImageConfig(platform=state.platform or job.target_platform)
        return
    config.created = None
    state.image = config
    if config.platform.os and config.platform.architecture:
        state.platform = config.platform
        state.state_platform = config.platform.normalised()


def _use_context_image(job: Job, request: BaseRequest, found: ResolvedImage, config: ImageConfig) -> None:
    state = request.state
    config.created = None
    title = f"[context {request.context}]"
    if request.store:
        attrs = {"oci.store": request.store}
        if job.options.session:
            attrs["oci.session"] = job.options.session
        op = SourceOp(f"oci-layout://{request.ref}", attrs)
        metadata = named(f"{title} OCI load from client")
    else:
        ref = parse_reference(found.ref or request.ref)
        if found.digest:
            ref = ref.with_digest(parse_digest(found.digest))
        op = SourceOp(f"docker-image://{ref}")
        metadata = named(f"{title} {request.written}")
    state.output = Ref(SourceVertex(op, metadata, platform=request.platform))
    state.state_platform = request.platform
    state.dispatched = state.unregistered or state.context is not None
    _set_context_image(job, state, config)


def empty_image(platform: Platform) -> ImageConfig:
    """Return the config of ``FROM scratch``."""
    path = default_path_env(platform.os)
    env = [f"PATH={path}"] if path is not None else []
    return ImageConfig(platform=platform, working_dir="/", env=env)


def follow_paths(paths: Iterable[str]) -> list[str]:
    """Return the sorted paths a local source is limited to; empty when all of it is used."""
    out: list[str] = []
    for path in paths:
        if path == "/":
            return []
        out.append(clean(path.lstrip("/") or "."))
    return sorted(out)
