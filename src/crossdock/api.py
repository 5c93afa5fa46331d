"""Crossdock from Python: build, and look at builders. The command line is a user of this.

A build with the embedded engine runs in a worker process, because entering a user namespace needs a process with one
thread; events, errors and the result come back as the objects described here. Safe from any thread, several at once.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crossdock.errors import CrossdockError, NotSupported, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from crossdock.builders.model import NodeGroup
    from crossdock.builders.request import BuildRequest, OutputSpec, SecretSpec
    from crossdock.builders.result import BuildResult
    from crossdock.builders.status import NodeStatus
    from crossdock.builders.usage import PruneRequest, UsageRecord
    from crossdock.cancel import CancelToken
    from crossdock.image.platform import Platform
    from crossdock.progress.events import Event, EventSink
    from crossdock.secret import Secret

__all__ = ["Builder", "build", "list_builders", "make_request"]


def build(
    context: str | os.PathLike[str] = ".",
    *,
    builder: str | Builder | None = None,
    on_event: Callable[[Event], object] | None = None,
    cancel: CancelToken | None = None,
    dockerfile: str | os.PathLike[str] | bytes | None = None,
    tags: Sequence[str] = (),
    platforms: Sequence[str | Platform] = (),
    push: bool = False,
    load: bool = False,
    outputs: Sequence[str | OutputSpec] = (),
    build_args: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    target: str = "",
    contexts: Mapping[str, str] | None = None,
    no_cache: bool = False,
    no_cache_filter: Sequence[str] = (),
    pull: bool = False,
    network: str = "default",
    secrets: Mapping[str, Secret | bytes | str | os.PathLike[str]] | Sequence[str | SecretSpec] = (),
    ssh: Sequence[str] = (),
    cache_from: Sequence[str] = (),
    cache_to: Sequence[str] = (),
    allow: Sequence[str] = (),
    add_hosts: Sequence[str] = (),
    annotations: Sequence[str] = (),
    attests: Sequence[str] = (),
    explain: bool = False,
) -> BuildResult:
    """Build an image and return what was made.

    ``context`` is a directory or URL; ``dockerfile`` a path, or the text itself as bytes. ``platforms`` default to the
    builder's own. ``push`` and ``load`` add outputs as the flags do; further ``outputs`` are written as for
    ``--output``. ``secrets`` maps ids to a :class:`Secret` or bytes (the value), or a path. ``on_event`` is called with
    every progress event, one at a time but perhaps from another thread; an exception of it ends an embedded build. ``cancel`` ends the build from any thread.
    With ``explain`` the result's ``explanation`` says why steps were not cached (embedded builder).

    Raises: CrossdockError of the kind that says what went wrong; Cancelled.
    """
    if os.fspath(context) == "-":
        summary = "a context on standard input is for the command line"
        raise UsageError(summary, hint="give a directory or a URL")
    request = make_request(
        os.fspath(context),
        dockerfile=dockerfile if isinstance(dockerfile, bytes | None) else os.fspath(dockerfile),
        tags=tags,
        platforms=[str(p) for p in platforms],
        push=push,
        load=load,
        outputs=outputs,
        build_args=build_args or {},
        labels=labels or {},
        target=target,
        named_contexts=contexts or {},
        no_cache=no_cache,
        no_cache_filter=tuple(no_cache_filter),
        pull=pull,
        network=network,
        secrets=_secret_specs(secrets),
        ssh=tuple(ssh),
        cache_from=cache_from,
        cache_to=cache_to,
        allow=tuple(allow),
        add_hosts=tuple(add_hosts),
        annotations=tuple(annotations),
        attests=attests,
        explain=explain,
    )
    chosen = builder if isinstance(builder, Builder) else Builder.get(builder)
    return chosen.build(request, on_event=on_event, cancel=cancel)


def make_request(
    context: str,
    *,
    dockerfile: str | bytes | None,
    tags: Iterable[str],
    platforms: Sequence[str],
    push: bool,
    load: bool,
    outputs: Iterable[str | OutputSpec],
    cache_from: Iterable[str],
    cache_to: Iterable[str],
    attests: Iterable[str] | Mapping[str, Mapping[str, str] | None],
    build_args: Mapping[str, str],
    labels: Mapping[str, str],
    **rest: object,
) -> BuildRequest:
    """Check arguments and make the request; the one border between what users write and what drivers get.

    ``rest`` are fields of :class:`BuildRequest` taken as they are. ``SOURCE_DATE_EPOCH`` of the environment becomes a
    build argument unless given, and so do the proxies that docker's config sets.

    Raises: UsageError.
    """
    from crossdock.builders import parse
    from crossdock.builders.dockerconfig import proxy_build_args
    from crossdock.builders.request import BuildRequest
    from crossdock.image.platform import parse_platforms

    specs = [parse.parse_output(o) if isinstance(o, str) else parse.check_output(o) for o in outputs]
    if push:
        specs = [*parse.with_push(specs)]
    if load:
        specs = [*parse.with_load(specs)]
    names = parse.parse_tags(tags)
    _check_outputs(specs, names)
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    args = {"SOURCE_DATE_EPOCH": epoch, **build_args} if epoch else dict(build_args)
    args.update(proxy_build_args(args))
    is_text = isinstance(dockerfile, bytes)
    if os.environ.get("BUILDX_GIT_LABELS"):
        from crossdock.builders.gitinfo import git_labels

        found = git_labels(context, None if isinstance(dockerfile, bytes) else dockerfile)
        labels = {**found, **labels}
    fields = {
        "context": context,
        "dockerfile": "" if is_text or dockerfile is None else dockerfile,
        "dockerfile_text": dockerfile if is_text else None,
        "tags": names,
        "platforms": parse_platforms(list(platforms)),
        "outputs": tuple(specs),
        "build_args": args,
        "labels": labels,
        "cache_from": parse.parse_cache_entries(cache_from),
        "cache_to": parse.parse_cache_entries(cache_to),
        "attests": dict(attests.items()) if hasattr(attests, "items") else parse.parse_attests(attests),
    }
    return BuildRequest(**fields, **rest)  # type: ignore[arg-type]  # names are checked by the constructor


def _check_outputs(outputs: Sequence[OutputSpec], tags: Sequence[str]) -> None:
    pushes = [o for o in outputs if o.type == "image" and o.attrs.get("push") in ("true", "1", "t")]
    if pushes and not tags and not all(o.attrs.get("name") for o in pushes):
        summary = "tag is needed when pushing to registry"
        raise UsageError(summary, hint="give it with -t registry/name:tag")
    if sum(o.dest == "-" for o in outputs) > 1:
        summary = "only one output can go to standard output"
        raise UsageError(summary)


def _secret_specs(
    secrets: Mapping[str, Secret | bytes | str | os.PathLike[str]] | Sequence[str | SecretSpec],
) -> tuple[SecretSpec, ...]:
    from crossdock.builders.parse import parse_secret
    from crossdock.builders.request import SecretSpec
    from crossdock.secret import Secret

    if not hasattr(secrets, "items"):
        return tuple(parse_secret(s) if isinstance(s, str) else s for s in secrets)
    specs = []
    for name, value in secrets.items():
        if isinstance(value, Secret | bytes):
            specs.append(SecretSpec(id=name, value=value if isinstance(value, Secret) else Secret(value)))
        else:
            specs.append(SecretSpec(id=name, path=os.fspath(value)))
    return tuple(specs)


class Builder:
    """A builder: something that builds for some platforms."""

    def __init__(self, group: NodeGroup) -> None:
        from crossdock.builders.drivers.table import make_driver

        self._group = group
        self._drivers = [(node, make_driver(group, node)) for node in group.nodes]

    @classmethod
    def get(cls, name: str | None = None) -> Builder:
        """Return a builder by name; without one, ``$BUILDX_BUILDER``, the chosen one, or the built-in ``embedded``.

        Raises: BuilderError; NotSupported when this version cannot use its driver.
        """
        from crossdock.builders.select import current_builder, find_builder

        name = name or os.environ.get("BUILDX_BUILDER")
        return cls(find_builder(name) if name else current_builder())

    @property
    def name(self) -> str:
        """Its name."""
        return self._group.name

    @property
    def driver(self) -> str:
        """Name of its driver."""
        return self._group.driver

    def build(
        self,
        request: BuildRequest,
        *,
        on_event: Callable[[Event], object] | None = None,
        cancel: CancelToken | None = None,
    ) -> BuildResult:
        """Run a build; Raises: CrossdockError, Cancelled."""
        from crossdock.builders.routing import run_build
        from crossdock.cancel import CancelToken

        if request.explain and self.driver != "embedded":
            summary = "only the embedded builder can explain why steps were not cached"
            raise NotSupported(summary, hint="leave out --explain, or build with --builder embedded")
        result = run_build(self._group, self._drivers, request, _sink(on_event), cancel or CancelToken())
        self._note_activity()
        return result

    def completed(self, request: BuildRequest) -> BuildRequest:
        """Return a request with the outputs this builder adds when none are asked for."""
        from crossdock.builders.routing import with_default_outputs

        return with_default_outputs(self._group, request)

    def bootstrap(
        self, *, on_event: Callable[[Event], object] | None = None, cancel: CancelToken | None = None
    ) -> None:
        """Start every node, or check that it works; Raises: CrossdockError."""
        from crossdock.cancel import CancelToken

        for _, driver in self._drivers:
            driver.bootstrap(_sink(on_event), cancel or CancelToken())

    def nodes(self, *, timeout_s: float = 20.0) -> tuple[NodeStatus, ...]:
        """Ask all nodes for status and platforms; one that does not answer carries its error."""
        from crossdock.builders.status import load_status
        from crossdock.cancel import CancelToken

        (status,) = load_status([self._group], timeout_s=timeout_s, cancel=CancelToken())
        return status.nodes

    def stop(self) -> None:
        """Stop every node; Raises: CrossdockError."""
        from crossdock.cancel import CancelToken

        for _, driver in self._drivers:
            driver.stop(CancelToken())

    def disk_usage(
        self, filters: Sequence[str] = (), *, cancel: CancelToken | None = None
    ) -> list[UsageRecord]:
        """List cache records of all nodes that match any BuildKit filter expression."""
        from crossdock.cancel import CancelToken

        token = cancel or CancelToken()
        return [r for _, driver in self._drivers for r in driver.disk_usage(filters, token)]

    def prune(self, request: PruneRequest, *, cancel: CancelToken | None = None) -> list[UsageRecord]:
        """Remove cache records of all nodes; returns what was removed."""
        from crossdock.cancel import CancelToken

        token = cancel or CancelToken()
        return [r for _, driver in self._drivers for r in driver.prune(request, token)]

    def _note_activity(self) -> None:
        """Keep the "last activity" that ``ls`` shows; a store that cannot be written loses only that."""
        if self._group.built_in or self._group.docker_context:
            return
        from crossdock.builders.store import BuilderStore

        try:
            with BuilderStore().transaction() as txn:
                txn.touch(self._group.name)
        except CrossdockError:
            return


def list_builders() -> list[str]:
    """Names of all builders: stored, built-in, and docker contexts.

    Raises: BuilderError when the store is damaged.
    """
    from crossdock.builders.select import list_all
    from crossdock.builders.store import BuilderStore

    with BuilderStore().transaction() as txn:
        return [g.name for g in list_all(txn)]


class _CallbackSink:
    __slots__ = ("_function", "_lock")

    def __init__(self, function: Callable[[Event], object]) -> None:
        import threading

        self._function = function
        # Callers need not be thread-safe: one event at a time.
        self._lock = threading.Lock()

    def emit(self, event: Event) -> None:
        with self._lock:
            self._function(event)


def _sink(on_event: Callable[[Event], object] | None) -> EventSink:
    from crossdock.progress.events import NullSink

    return NullSink() if on_event is None else _CallbackSink(on_event)
