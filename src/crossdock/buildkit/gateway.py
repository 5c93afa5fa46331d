"""The gateway (LLBBridge): what a client in a frontend's place may ask of a running build.

Spec: moby/buildkit ``frontend/gateway/pb/gateway.proto``; the build is named by metadata.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from crossdock.buildkit.details import error_from_rpc
from crossdock.buildkit.proto import gateway_pb2, ops_pb2
from crossdock.buildkit.rpc.status import RpcError
from crossdock.buildkit.session.tree import posix_mode
from crossdock.record import Record, field

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from crossdock.buildkit.gatewayrun import GatewayContainer
    from crossdock.buildkit.rpc.channel import Call, Channel
    from crossdock.buildkit.solve import CacheEntry
    from crossdock.cancel import CancelToken
    from crossdock.image import Platform
    from crossdock.llb import Definition

__all__ = ["FileStat", "Gateway", "GatewayResult", "ResolvedImage", "SourceMeta"]

_BRIDGE = "/moby.buildkit.v1.frontend.LLBBridge/"
#: seconds until the daemon must know the build
_JOB_S = 20.0


class ResolvedImage(Record):
    """An image reference resolved by the daemon; ``config`` is the raw image config."""

    ref: str
    digest: str
    config: bytes = field(repr=False)


class GatewayResult(Record):
    """What a solve inside the build gave."""

    #: result id by platform, or under ``""`` when there is one
    refs: Mapping[str, str] = field(hash=False)
    metadata: Mapping[str, bytes] = field(hash=False)
    #: the message itself, to be handed to :meth:`Gateway.finish`
    raw: Any = field(repr=False, hash=False)


class FileStat(Record):
    """A file of a result."""

    path: str
    #: permission bits, set-id and sticky included
    mode: int
    is_dir: bool
    uid: int
    gid: int
    size: int
    mtime_ns: int
    #: target of a symbolic link
    linkname: str


class SourceMeta(Record):
    """A source resolved by the daemon; fields of other kinds of sources are empty."""

    identifier: str
    attrs: Mapping[str, str] = field(hash=False)
    #: of an image
    image_digest: str = ""
    image_config: bytes = b""
    #: of Git: what the ref points to, the whole ref, the commit behind a tag
    git_checksum: str = ""
    git_ref: str = ""
    git_commit: str = ""
    #: of HTTP
    http_checksum: str = ""
    http_filename: str = ""


class Gateway:
    """The gateway of one build; methods raise what the daemon reports, as our errors."""

    def __init__(
        self,
        channel: Channel,
        build_ref: str,
        cancel: CancelToken,
        *,
        ended: Callable[[], bool] = lambda: False,
    ) -> None:
        """``ended`` says whether the build is over already, so that nobody waits for it to begin."""
        self._ended = ended
        self._channel = channel
        self._metadata = (("buildkit-controlapi-buildid", build_ref),)
        self._cancel = cancel
        #: capabilities of frontends, by id
        self.caps: frozenset[str] = frozenset()
        self.llb_caps: frozenset[str] = frozenset()

    def ping(self) -> None:
        """Wait until the daemon knows the build, and learn what it can do."""
        deadline = time.monotonic() + _JOB_S
        while True:
            self._cancel.check()
            try:
                got = self._channel.unary(
                    f"{_BRIDGE}Ping",
                    gateway_pb2.PingRequest(),
                    gateway_pb2.PongResponse,
                    metadata=self._metadata,
                    timeout_s=_JOB_S,
                )
            except RpcError as exc:
                # The job is registered by Control.Solve, which may arrive a little later than this call.
                late = self._ended() or time.monotonic() > deadline
                if late or exc.code in ("UNAVAILABLE", "UNIMPLEMENTED"):
                    raise error_from_rpc(exc, "waiting for the build to start") from exc
                self._cancel.sleep(0.02)
                continue
            self.caps = frozenset(c.ID for c in got.FrontendAPICaps if c.Enabled)
            self.llb_caps = frozenset(c.ID for c in got.LLBCaps if c.Enabled)
            return

    def solve(
        self,
        *,
        frontend: str = "",
        frontend_opt: Mapping[str, str] | None = None,
        definition: Definition | None = None,
        evaluate: bool = False,
        inputs: Mapping[str, Definition] | None = None,
        cache_imports: Sequence[CacheEntry] = (),
    ) -> GatewayResult:
        """Solve a frontend or a definition within the build."""
        request = gateway_pb2.SolveRequest(
            Frontend=frontend,
            FrontendOpt=dict(frontend_opt or {}),
            allowResultReturn=True,
            allowResultArrayRef=True,
            Evaluate=evaluate,
            CacheImports=[gateway_pb2.CacheOptionsEntry(Type=c.type, Attrs=c.attrs) for c in cache_imports],
        )
        if definition is not None:
            request.Definition.CopyFrom(_message(definition))
        for name, value in (inputs or {}).items():
            request.FrontendInputs[name].CopyFrom(_message(value))
        result = self.call("Solve", request, "solving").result
        refs = {k: v.id for k, v in result.refs.refs.items()} or dict(result.refsDeprecated.refs)
        if not refs and (only := result.ref.id or result.refDeprecated):
            refs = {"": only}
        return GatewayResult(refs=refs, metadata=dict(result.metadata), raw=result)

    def resolve_image_config(
        self, ref: str, *, platform: Platform | None = None, mode: str = "default", log_name: str = ""
    ) -> ResolvedImage:
        """Resolve an image reference on the daemon."""
        request = gateway_pb2.ResolveImageConfigRequest(Ref=ref, ResolveMode=mode, LogName=log_name)
        if platform is not None:
            request.Platform.CopyFrom(_platform(platform))
        got = self.call("ResolveImageConfig", request, f"resolving {ref}")
        return ResolvedImage(ref=got.Ref or ref, digest=got.Digest, config=got.Config)

    def resolve_source_meta(
        self,
        identifier: str,
        *,
        attrs: Mapping[str, str] | None = None,
        platform: Platform | None = None,
        mode: str = "default",
        log_name: str = "",
    ) -> SourceMeta:
        """Resolve a source (``docker-image://…``, ``git://…``, ``https://…``) on the daemon; needs v0.12, HTTP v0.14.

        Raises: RemoteError with the code UNIMPLEMENTED from older ones.
        """
        request = gateway_pb2.ResolveSourceMetaRequest(
            Source=ops_pb2.SourceOp(identifier=identifier, attrs=dict(attrs or {})),
            ResolveMode=mode,
            LogName=log_name,
        )
        if platform is not None:
            request.Platform.CopyFrom(_platform(platform))
        got = self.call("ResolveSourceMeta", request, f"resolving {identifier}")
        return SourceMeta(
            identifier=got.Source.identifier,
            attrs=dict(got.Source.attrs),
            image_digest=got.Image.Digest,
            image_config=got.Image.Config,
            git_checksum=got.Git.Checksum,
            git_ref=got.Git.Ref,
            git_commit=got.Git.CommitChecksum,
            http_checksum=got.HTTP.Checksum,
            http_filename=got.HTTP.Filename,
        )

    def evaluate(self, ref: str) -> None:
        """Have a result made now, which is otherwise made when something needs it."""
        self.call("Evaluate", gateway_pb2.EvaluateRequest(Ref=ref), "evaluating a result")

    def read_dir(self, ref: str, path: str, *, pattern: str = "") -> tuple[FileStat, ...]:
        """Return the entries of a directory of a result, those that match ``pattern``."""
        request = gateway_pb2.ReadDirRequest(Ref=ref, DirPath=path, IncludePattern=pattern)
        return tuple(map(_file_stat, self.call("ReadDir", request, f"reading {path}").entries))

    def stat_file(self, ref: str, path: str) -> FileStat:
        """Return what a file of a result is."""
        request = gateway_pb2.StatFileRequest(Ref=ref, Path=path)
        return _file_stat(self.call("StatFile", request, f"looking at {path}").stat)

    def inputs(self) -> dict[str, bytes]:
        """Return the definitions that the build was given, encoded, by name."""
        got = self.call("Inputs", gateway_pb2.InputsRequest(), "asking for inputs").Definitions
        return {name: value.SerializeToString(deterministic=True) for name, value in got.items()}

    def warn(
        self, vertex: str, short: str, *, detail: Sequence[str] = (), url: str = "", level: int = 1
    ) -> None:
        """Attach a warning to a step."""
        request = gateway_pb2.WarnRequest(
            digest=vertex,
            level=level,
            short=short.encode(),
            detail=[line.encode() for line in detail],
            url=url,
        )
        self.call("Warn", request, "warning")

    def container(self, ref: str, **settings: Any) -> GatewayContainer:
        """Begin a container over a result; see :class:`crossdock.buildkit.gatewayrun.GatewayContainer`."""
        from crossdock.buildkit.gatewayrun import GatewayContainer

        return GatewayContainer(self, ref, **settings)

    def start(self, method: str) -> Call:
        """Begin a call of the gateway whose messages the caller sends. Raises: as the channel."""
        return self._channel.start(f"{_BRIDGE}{method}", metadata=self._metadata)

    @property
    def cancel(self) -> CancelToken:
        """The token of the build."""
        return self._cancel

    def read_file(self, ref: str, path: str, *, offset: int = 0, length: int = 0) -> bytes:
        """Read a file of a result; ``length`` 0 reads to the end."""
        request = gateway_pb2.ReadFileRequest(Ref=ref, FilePath=path)
        if offset or length:
            request.Range.CopyFrom(gateway_pb2.FileRange(Offset=offset, Length=length))
        return bytes(self.call("ReadFile", request, f"reading {path}").Data)

    def finish(self, result: GatewayResult | None) -> None:
        """Hand the final result to the controller, which then exports it; ``None`` = an empty result."""
        raw = result.raw if result is not None else gateway_pb2.Result()
        self.call("Return", gateway_pb2.ReturnRequest(result=raw), "returning the result")

    def fail(self, error: RpcError) -> None:
        """Tell the controller that the build failed, and why; its own answer then says the same."""
        from google.rpc.status_pb2 import Status  # only failures pay for it

        status = Status.FromString(error.details) if error.details else Status()
        if not status.code:
            status.code, status.message = error.number, error.message
        self.call("Return", gateway_pb2.ReturnRequest(error=status), "returning the error")

    def call(self, method: str, request: Any, what: str) -> Any:
        """Make a call and return its answer. Raises: what the daemon reports."""
        response = getattr(gateway_pb2, f"{method}Response")
        try:
            call = self._channel.unary_call(f"{_BRIDGE}{method}", request, metadata=self._metadata)
            with self._cancel.waking(call.cancel):
                return response.FromString(call.result())
        except RpcError as exc:
            self._cancel.check()
            raise error_from_rpc(exc, what) from exc


def _platform(platform: Platform) -> ops_pb2.Platform:
    return ops_pb2.Platform(OS=platform.os, Architecture=platform.architecture, Variant=platform.variant)


def _file_stat(stat: Any) -> FileStat:
    return FileStat(
        path=stat.path,
        mode=posix_mode(stat.mode),
        is_dir=bool(stat.mode & 1 << 31),
        uid=stat.uid,
        gid=stat.gid,
        size=stat.size,
        mtime_ns=stat.modTime,
        linkname=stat.linkname,
    )


def _message(definition: Definition) -> ops_pb2.Definition:
    from crossdock.buildkit.definitions import definition_message  # most builds send none

    return definition_message(definition)
