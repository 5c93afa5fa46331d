"""``moby.buildkit.v1.frontend.LLBBridge``: what a frontend, or a client in its place, asks of a running build.

Spec: moby/buildkit ``frontend/gateway/pb/gateway.proto``, ``frontend/gateway/gateway.go``; the build is named by the
metadata ``buildkit-controlapi-buildid``.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from crossdock.buildkit.proto import gateway_pb2, ops_pb2, stat_pb2
from crossdock.buildkit.rpc.serve import unary
from crossdock.buildkit.session.tree import go_mode
from crossdock.errors import (
    Position,
    SolveError,
    SourceFile,
    SourceRange,
    UsageError,
)
from crossdock.progress.events import VertexWarning
from crossdock.server.caps import FRONTEND_CAPS, LLB_CAPS, as_messages
from crossdock.server.containers import serve_processes
from crossdock.server.failures import ClientFailure, Missing, answering
from crossdock.server.policies import read_policies
from crossdock.server.results import Results
from crossdock.server.runner import solve_request
from crossdock.server.sourcemeta import resolve_image, resolve_source

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from crossdock.buildkit.rpc.serve import Handler, ServerCall
    from crossdock.engine.cache.refs import Ref
    from crossdock.engine.facade import FileInfo
    from crossdock.server.answer import Answer
    from crossdock.server.jobs import Job
    from crossdock.server.workers import Worker

__all__ = ["Containers", "LLBBridge", "build_id", "handlers"]

_BUILD = "buildkit-controlapi-buildid"
_MAX_READ = 16 << 20

pb = gateway_pb2


def _missing(path: str) -> Missing:
    return Missing(f"open {path}: no such file or directory")


class LLBBridge:
    """The service's methods; ``find`` gives the build that a call is about."""

    def __init__(
        self,
        find: Callable[[ServerCall], Job],
        worker: Worker,
        answer: Answer | None = None,
        inputs: Mapping[str, ops_pb2.Definition] | None = None,
    ) -> None:
        """``answer`` takes the result and ``inputs`` are given, where it is not the client that is the frontend."""
        self._find = find
        self._worker = worker
        self._answer = answer
        self._inputs = inputs

    # --- solving ---

    def ping(self, _request: pb.PingRequest, call: ServerCall) -> pb.PongResponse:
        """Tell what there is, once the build is known."""
        with answering():
            self._find(call)
            return pb.PongResponse(
                FrontendAPICaps=as_messages(FRONTEND_CAPS),
                LLBCaps=as_messages(LLB_CAPS),
                Workers=[self._worker.record()],
            )

    def solve(self, request: pb.SolveRequest, call: ServerCall) -> pb.SolveResponse:
        """Run a frontend or take a definition; results are made when they are needed."""
        with answering():
            job = self._find(call)
            policies = read_policies(request.SourcePolicies)
            job.caches.load((e.Type, dict(e.Attrs)) for e in request.CacheImports)
            results = solve_request(
                job,
                frontend=request.Frontend,
                attrs=request.FrontendOpt,
                definition=request.Definition,
                inputs=request.FrontendInputs,
            )
            for ref in results.all_refs():
                ref.policies = policies
            if request.Evaluate:
                job.solve(results.all_refs())
            if not results.single and not request.allowResultReturn:
                summary = "solve did not return default result"
                raise UsageError(summary)
            response = pb.SolveResponse(result=results.to_pb(arrays=request.allowResultArrayRef))
            if not request.allowResultReturn:
                only = results.refs.get("")
                response.ref = only.id if only is not None else ""
            if request.Final:
                self._answer_of(job).give(results)
            return response

    def evaluate(self, request: pb.EvaluateRequest, call: ServerCall) -> pb.EvaluateResponse:
        """Make a result."""
        with answering():
            job = self._find(call)
            job.solve([job.find(request.Ref)])
            return pb.EvaluateResponse()

    def give_back(self, request: pb.ReturnRequest, call: ServerCall) -> pb.ReturnResponse:
        """Take the client's result, which ends its part of the build."""
        with answering():
            job = self._find(call)
            if request.HasField("error"):
                self._answer_of(job).give(ClientFailure(request.error))
            elif request.HasField("result"):
                self._answer_of(job).give(Results.from_pb(request.result, job.known()))
            else:
                self._answer_of(job).give(Results.empty())
            return pb.ReturnResponse()

    def inputs(self, _request: pb.InputsRequest, call: ServerCall) -> pb.InputsResponse:
        """Give the definitions that the build request brought."""
        with answering():
            job = self._find(call)
            given = job.request.FrontendInputs if self._inputs is None else self._inputs
            return pb.InputsResponse(Definitions=dict(given))

    def warn(self, request: pb.WarnRequest, call: ServerCall) -> pb.WarnResponse:
        """Attach a warning to a vertex."""
        with answering():
            source = None
            if request.ranges:
                file = SourceFile(request.info.filename, request.info.data.decode("utf-8", "surrogateescape"))
                start = min(Position(r.start.line, r.start.character) for r in request.ranges)
                end = max(Position(r.end.line, r.end.character) for r in request.ranges)
                source = SourceRange(file, start, end)
            self._find(call).log.emit(
                VertexWarning(
                    vertex=request.digest,
                    level=request.level,
                    short=request.short.decode(errors="replace"),
                    detail=tuple(d.decode(errors="replace") for d in request.detail),
                    url=request.url,
                    source=source,
                )
            )
            return pb.WarnResponse()

    def _answer_of(self, job: Job) -> Answer:
        return job.answer if self._answer is None else self._answer

    # --- looking ---

    def resolve_image(
        self, request: pb.ResolveImageConfigRequest, call: ServerCall
    ) -> pb.ResolveImageConfigResponse:
        """Find an image's digest and config."""
        with answering():
            return resolve_image(self._find(call), request)

    def resolve_source(
        self, request: pb.ResolveSourceMetaRequest, call: ServerCall
    ) -> pb.ResolveSourceMetaResponse:
        """Find what a source is now."""
        with answering():
            return resolve_source(self._find(call), request)

    def read_file(self, request: pb.ReadFileRequest, call: ServerCall) -> pb.ReadFileResponse:
        """Read a file of a result, or a part of it."""
        with answering():
            job, ref = self._made(request.Ref, call)
            data = job.engine.read_file(ref, request.FilePath, cancel=job.cancel, sink=job.log)
            if data is None:
                raise _missing(request.FilePath)
            return pb.ReadFileResponse(Data=_part(data, request))

    def read_dir(self, request: pb.ReadDirRequest, call: ServerCall) -> pb.ReadDirResponse:
        """List a directory of a result."""
        with answering():
            job, ref = self._made(request.Ref, call)
            entries = job.engine.read_dir(ref, request.DirPath, cancel=job.cancel, sink=job.log)
            if entries is None:
                raise _missing(request.DirPath)
            return pb.ReadDirResponse(entries=_listed(entries, request.IncludePattern))

    def stat_file(self, request: pb.StatFileRequest, call: ServerCall) -> pb.StatFileResponse:
        """Describe a path of a result."""
        with answering():
            job, ref = self._made(request.Ref, call)
            found = job.engine.stat(ref, request.Path, cancel=job.cancel, sink=job.log)
            if found is None:
                raise _missing(request.Path)
            return pb.StatFileResponse(stat=_stat(found))

    def _made(self, name: str, call: ServerCall) -> tuple[Job, Ref]:
        job = self._find(call)
        return job, job.solve([job.find(name)])[0]


class Containers:
    """The methods about interactive containers."""

    def __init__(self, find: Callable[[ServerCall], Job]) -> None:
        self._find = find

    def new(self, request: pb.NewContainerRequest, call: ServerCall) -> pb.NewContainerResponse:
        """Open a container."""
        with answering():
            job = self._find(call)
            job.containers.new(job, request)
            return pb.NewContainerResponse()

    def release(self, request: pb.ReleaseContainerRequest, call: ServerCall) -> pb.ReleaseContainerResponse:
        """Close a container."""
        with answering():
            self._find(call).containers.release(request.ContainerID)
            return pb.ReleaseContainerResponse()

    def execute(self, call: ServerCall) -> None:
        """Run processes in containers."""
        with answering():
            job = self._find(call)
            call.greet([])
            serve_processes(job, call)

    def read_file(self, request: pb.ReadFileRequest, call: ServerCall) -> pb.ReadFileResponse:
        """Read a file as a container has it now."""
        with answering():
            container = self._find(call).containers.get(request.Ref)
            data = container.read_file(request.FilePath, request.MountIndex)
            if data is None:
                raise _missing(request.FilePath)
            return pb.ReadFileResponse(Data=_part(data, request))

    def read_dir(self, request: pb.ReadDirRequest, call: ServerCall) -> pb.ReadDirResponse:
        """List a directory as a container has it now."""
        with answering():
            container = self._find(call).containers.get(request.Ref)
            entries = container.read_dir(request.DirPath, request.MountIndex)
            if entries is None:
                raise _missing(request.DirPath)
            return pb.ReadDirResponse(entries=_listed(entries, request.IncludePattern))

    def stat_file(self, request: pb.StatFileRequest, call: ServerCall) -> pb.StatFileResponse:
        """Describe a path as a container has it now."""
        with answering():
            container = self._find(call).containers.get(request.Ref)
            found = container.stat(request.Path, request.MountIndex)
            if found is None:
                raise _missing(request.Path)
            return pb.StatFileResponse(stat=_stat(found))


def _part(data: bytes, request: pb.ReadFileRequest) -> bytes:
    start = max(0, request.Range.Offset)
    length = request.Range.Length or len(data)
    data = data[start : start + max(0, length)]
    if len(data) > _MAX_READ:
        summary = f"{request.FilePath} is larger than a message may be: read it in parts"
        raise SolveError(summary)
    return data


def _listed(entries: Sequence[FileInfo], pattern: str) -> list[stat_pb2.Stat]:
    return [_stat(e) for e in entries if not pattern or fnmatchcase(e.name, pattern)]


def _stat(info: FileInfo) -> stat_pb2.Stat:
    return stat_pb2.Stat(
        path=info.name,
        mode=go_mode(info.mode),
        uid=info.uid,
        gid=info.gid,
        size=info.size,
        modTime=info.mtime_ns,
        linkname=info.target,
    )


def build_id(call: ServerCall) -> str:
    """Return which build a call is about. Raises: UsageError."""
    found = next(iter(call.metadata(_BUILD)), "")
    if not found:
        summary = "no buildid found in context"
        raise UsageError(summary)
    return found


def handlers(bridge: LLBBridge, containers: Containers) -> dict[str, Handler]:
    """Return the service's methods."""
    methods: dict[str, Handler] = {
        "Ping": unary(pb.PingRequest, bridge.ping),
        "Solve": unary(pb.SolveRequest, bridge.solve),
        "Evaluate": unary(pb.EvaluateRequest, bridge.evaluate),
        "Return": unary(pb.ReturnRequest, bridge.give_back),
        "Inputs": unary(pb.InputsRequest, bridge.inputs),
        "Warn": unary(pb.WarnRequest, bridge.warn),
        "ResolveImageConfig": unary(pb.ResolveImageConfigRequest, bridge.resolve_image),
        "ResolveSourceMeta": unary(pb.ResolveSourceMetaRequest, bridge.resolve_source),
        "ReadFile": unary(pb.ReadFileRequest, bridge.read_file),
        "ReadDir": unary(pb.ReadDirRequest, bridge.read_dir),
        "StatFile": unary(pb.StatFileRequest, bridge.stat_file),
        "NewContainer": unary(pb.NewContainerRequest, containers.new),
        "ReleaseContainer": unary(pb.ReleaseContainerRequest, containers.release),
        "ReadFileContainer": unary(pb.ReadFileRequest, containers.read_file),
        "ReadDirContainer": unary(pb.ReadDirRequest, containers.read_dir),
        "StatFileContainer": unary(pb.StatFileRequest, containers.stat_file),
        "ExecProcess": containers.execute,
    }
    return {f"/moby.buildkit.v1.frontend.LLBBridge/{name}": method for name, method in methods.items()}
