"""Every error a caller of Crossdock can see, in one tree.

::

    CrossdockError                       exit 1
    ├── UsageError                       a flag, argument or option value is wrong
    ├── ConfigError                      a file the user wrote (not a Dockerfile) is wrong
    ├── DockerfileError                  carries a source range
    ├── ContextError                     the build context: missing, unreadable, changed during the build
    ├── SolveError                       a vertex failed; ``cause`` says why
    │   └── StepFailed                   a RUN step ended with a non-zero code
    ├── CacheError                       cache import or export; usually only a warning
    ├── RegistryError                    method, redacted URL, HTTP status, registry error codes
    │   ├── AuthError                    401/403 and credential helpers
    │   ├── NotFoundError                404
    │   └── PlatformNotFound             the index has no manifest for the platform
    ├── DigestMismatch                   content is not what its digest says
    ├── LayerError                       an archive is malformed or hostile
    ├── StoreError                       the local store
    │   └── StoreFull                    no space left; exit 102
    ├── SandboxError                     the machine lacks what running steps needs
    ├── EmulationError                   QEMU or binfmt_misc
    ├── BuilderError                     builder store, driver or node
    │   └── PlatformNotOffered           the builder does not offer a requested platform
    ├── ExportError                      an output cannot be written
    ├── RemoteError                      rebuilt from BuildKit's typed details
    ├── NotSupported                     a clear refusal of what this version does not do
    ├── InternalError                    a defect of Crossdock; exit 100
    └── Cancelled                        Ctrl-C or an API caller's token; exit 130

Exit codes follow buildx: 1 failure, 100 internal, 102 resources exhausted, 130 cancelled.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

from crossdock.record import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = [
    "AuthError",
    "BuilderError",
    "CacheError",
    "Cancelled",
    "ConfigError",
    "ContextError",
    "CrossdockError",
    "DigestMismatch",
    "DockerfileError",
    "EmulationError",
    "ExportError",
    "InternalError",
    "LayerError",
    "NotFoundError",
    "NotSupported",
    "PlatformNotFound",
    "PlatformNotOffered",
    "Position",
    "RegistryError",
    "RemoteError",
    "SandboxError",
    "SolveError",
    "SourceFile",
    "SourceRange",
    "StepFailed",
    "StoreError",
    "StoreFull",
    "UsageError",
    "translate",
]


class Position(NamedTuple):
    """A place in a text: 1-based line, 0-based column (BuildKit's ``pb.Position`` convention)."""

    line: int
    column: int = 0


class SourceFile(NamedTuple):
    """The text that ranges point into: display name and content."""

    name: str
    text: str


class SourceRange(NamedTuple):
    """A range of a source file, both ends inclusive."""

    file: SourceFile
    start: Position
    end: Position


class CrossdockError(Exception):
    """Base of all errors: what happened, the details, and what to do about it."""

    #: stable kebab-case name, documented in ``docs/reference/errors.md``
    code: ClassVar[str] = "error"
    exit_code: int = 1

    def __init__(
        self,
        summary: str,
        *,
        detail: str | None = None,
        hint: str | None = None,
        source: SourceRange | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(summary)
        self.summary = summary
        #: further text, several lines allowed
        self.detail = detail
        #: what the user can do, one sentence
        self.hint = hint
        #: where in a Dockerfile or definition the error is
        self.source = source
        #: whether the same call may succeed later
        self.retryable = retryable


class UsageError(CrossdockError):
    """A flag, argument or option value is wrong."""

    code = "usage"


class ConfigError(CrossdockError):
    """A configuration file is wrong."""

    code = "config"


class DockerfileError(CrossdockError):
    """The Dockerfile is wrong; ``source`` says where."""

    code = "dockerfile"

    def __init__(
        self,
        summary: str,
        *,
        detail: str | None = None,
        hint: str | None = None,
        source: SourceRange | None = None,
        others: tuple[DockerfileError, ...] = (),
    ) -> None:
        super().__init__(summary, detail=detail, hint=hint, source=source)
        #: further problems found in the same pass, in file order
        self.others = others


class ContextError(CrossdockError):
    """The build context is missing, unreadable, or changed while it was read."""

    code = "context"


class SolveError(CrossdockError):
    """A vertex of the graph failed."""

    code = "solve"

    def __init__(
        self,
        summary: str,
        *,
        vertex: str | None = None,
        vertex_name: str | None = None,
        platform: str | None = None,
        detail: str | None = None,
        hint: str | None = None,
        source: SourceRange | None = None,
    ) -> None:
        super().__init__(summary, detail=detail, hint=hint, source=source)
        #: digest of the vertex
        self.vertex = vertex
        #: the step as shown in progress, e.g. ``[linux/arm64 2/4] RUN make``
        self.vertex_name = vertex_name
        self.platform = platform


class StepFailed(SolveError):
    """A RUN step ended with a non-zero exit code or was killed."""

    code = "step-failed"

    def __init__(
        self,
        summary: str,
        *,
        step_exit_code: int,
        command: tuple[str, ...] = (),
        log_tail: tuple[str, ...] = (),
        log_path: str | None = None,
        vertex: str | None = None,
        vertex_name: str | None = None,
        platform: str | None = None,
        detail: str | None = None,
        hint: str | None = None,
        source: SourceRange | None = None,
    ) -> None:
        super().__init__(
            summary,
            vertex=vertex,
            vertex_name=vertex_name,
            platform=platform,
            detail=detail,
            hint=hint,
            source=source,
        )
        #: exit code of the step itself (128+n for signal n)
        self.step_exit_code = step_exit_code
        self.command = command
        #: last lines of the step's output, secrets masked
        self.log_tail = log_tail
        #: file with the step's whole output, when kept
        self.log_path = log_path


class CacheError(CrossdockError):
    """A cache could not be imported or exported."""

    code = "cache"


class RegistryError(CrossdockError):
    """A registry refused, failed, or could not be reached."""

    code = "registry"

    def __init__(
        self,
        summary: str,
        *,
        host: str,
        method: str | None = None,
        url: str | None = None,
        status: int | None = None,
        codes: tuple[str, ...] = (),
        detail: str | None = None,
        hint: str | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(summary, detail=detail, hint=hint, retryable=retryable)
        self.host = host
        self.method = method
        #: without user info and query values
        self.url = url
        #: HTTP status; ``None`` when no answer came
        self.status = status
        #: error codes of the distribution spec, e.g. ``MANIFEST_UNKNOWN``
        self.codes = codes


class AuthError(RegistryError):
    """The registry wants (other) credentials."""

    code = "registry-auth"


class NotFoundError(RegistryError):
    """The registry does not have the repository, manifest or blob."""

    code = "registry-not-found"


class PlatformNotFound(RegistryError):
    """An image exists but not for the wanted platform; ``available`` lists those it has."""

    code = "platform-not-found"

    def __init__(
        self, summary: str, *, host: str, platform: str, available: tuple[str, ...], hint: str | None = None
    ) -> None:
        super().__init__(summary, host=host, hint=hint)
        self.platform = platform
        self.available = available


class DigestMismatch(CrossdockError):
    """Content is not what its descriptor says."""

    code = "digest-mismatch"


class LayerError(CrossdockError):
    """An archive is malformed, or tries to leave its root."""

    code = "layer"


class StoreError(CrossdockError):
    """The local store cannot be opened, read or written."""

    code = "store"


class StoreFull(StoreError):
    """No space left on the device of the store."""

    code = "store-full"
    exit_code = 102


class SandboxError(CrossdockError):
    """The machine lacks something that running steps needs."""

    code = "sandbox"

    def __init__(
        self, summary: str, *, missing: str = "", detail: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(summary, detail=detail, hint=hint)
        #: the kernel feature, setting or program that is missing
        self.missing = missing


class EmulationError(CrossdockError):
    """QEMU or binfmt_misc cannot do what is asked."""

    code = "emulation"


class BuilderError(CrossdockError):
    """A builder, driver or node cannot be used."""

    code = "builder"


class PlatformNotOffered(BuilderError):
    """The builder does not offer a requested platform."""

    code = "platform-not-offered"


class ExportError(CrossdockError):
    """An output cannot be written."""

    code = "export"


class RemoteError(CrossdockError):
    """BuildKit reported an error over its API."""

    code = "remote"

    def __init__(
        self,
        summary: str,
        *,
        grpc_code: str | None = None,
        exit_code: int = 1,
        vertex: str | None = None,
        detail: str | None = None,
        hint: str | None = None,
        source: SourceRange | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(summary, detail=detail, hint=hint, source=source, retryable=retryable)
        self.grpc_code = grpc_code
        self.exit_code = exit_code
        #: digest of the step that failed, when the daemon says so
        self.vertex = vertex


class NotSupported(CrossdockError):
    """This version refuses what is asked; the text names it."""

    code = "not-supported"


class InternalError(CrossdockError):
    """A defect of Crossdock itself."""

    code = "internal"
    exit_code = 100


class Cancelled(CrossdockError):
    """The work was cancelled."""

    code = "cancelled"
    exit_code = 130

    def __init__(
        self, summary: str = "cancelled", *, detail: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(summary, detail=detail, hint=hint)


@contextmanager
def translate(
    mapping: Mapping[type[BaseException], Callable[[BaseException], CrossdockError]],
) -> Iterator[None]:
    """Turn foreign exceptions into ours at the rim; the original stays as ``__cause__``.

    A full disk is always :class:`StoreFull`, whatever the mapping says of ``OSError``.
    """
    try:
        yield
    except CrossdockError:
        raise
    except tuple(mapping) as exc:
        if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
            summary = f"no space left on device: {exc.filename or 'store'}"
            raise StoreFull(summary, hint="free some space, or run `crossdock prune`") from exc
        for kind, make in mapping.items():
            if isinstance(exc, kind):
                raise make(exc) from exc
        raise
