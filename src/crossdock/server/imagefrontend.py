"""Frontends in images: run as a container that speaks LLBBridge over its standard input and output.

Spec: moby/buildkit ``frontend/gateway/gateway.go`` (Solve), ``frontend/gateway/grpcclient`` (environment).
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from typing import TYPE_CHECKING, Protocol

from crossdock.buildkit.rpc.serve import Server
from crossdock.buildkit.rpc.streams import ConnectionLost
from crossdock.builds.steps import shown
from crossdock.engine.facade_container import ContainerSpec
from crossdock.engine.sandbox.step import StepStdio
from crossdock.errors import CrossdockError, SolveError
from crossdock.image.config import ImageConfig
from crossdock.image.platform import local_platform
from crossdock.image.reference import parse_reference
from crossdock.llb.graph import Node, Output
from crossdock.llb.ops import ExecMeta, Mount, NetMode, OpMetadata, SourceOp
from crossdock.progress.events import VertexLog
from crossdock.server.answer import Answer
from crossdock.server.failures import Unsupported
from crossdock.server.patience import Patience
from crossdock.server.results import platform_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from crossdock.buildkit.rpc.serve import Handler
    from crossdock.cancel import CancelToken
    from crossdock.engine.sandbox.step import StepResult
    from crossdock.server.jobs import Job
    from crossdock.server.results import Results

__all__ = ["run_frontend_image", "serve_stdio"]

_NETWORK_NONE = "moby.buildkit.frontend.network.none"
_LABEL_CAPS = "moby.buildkit.frontend.caps"


class _Run(Protocol):
    """Runs a program: what it reads, what takes (stream, data) of it; returns when it has ended."""

    def __call__(
        self, stdio: StepStdio, log: Callable[[int, bytes], None], cancel: CancelToken, /
    ) -> StepResult: ...


class _StdioStream:
    """The pipes of a container as a byte stream; the container's side is a descriptor and a log."""

    def __init__(self) -> None:
        self.near, self._far = os.pipe()
        # Bounded: a frontend that writes faster than it is read must wait.
        self._incoming: queue.Queue[bytes] = queue.Queue(64)
        self._rest = b""
        self._ended = False
        # Guards _far.
        self._lock = threading.Lock()

    def took(self, data: bytes) -> None:
        """Take what the container wrote."""
        while not self._ended:
            try:
                self._incoming.put(data, timeout=0.5)
            except queue.Full:
                continue
            return

    def end(self) -> None:
        """Note that the container is gone."""
        self.took(b"")

    def recv(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes; empty at the end."""
        if not self._rest and not self._ended:
            self._rest = self._incoming.get()
            self._ended = not self._rest
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def sendall(self, data: bytes | bytearray, /) -> None:
        """Send everything. Raises: OSError."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._far, view) :]

    def shutdown_write(self) -> None:
        """Close the container's standard input."""
        with self._lock:
            if self._far >= 0:
                os.close(self._far)
                self._far = -1

    def close(self) -> None:
        """Close both directions."""
        self._ended = True
        self.shutdown_write()


def serve_stdio(
    run: _Run, handlers: Mapping[str, Handler], show: Callable[[bytes], None], cancel: CancelToken
) -> StepResult:
    """Run a program that is served ``handlers`` on its standard streams; returns how it ended.

    ``show`` gets what it writes to standard error. Raises: what ``run`` raises.
    """
    stream = _StdioStream()
    server = Server(stream, handlers)

    def log(number: int, data: bytes) -> None:
        if number == 1:
            stream.took(data)
        else:
            show(data)

    def started(_pid: int) -> None:
        try:
            server.start()
        except ConnectionLost:
            return  # the program ended at once: its status tells

    try:
        return run(StepStdio(stream.near, started=started), log, cancel)
    finally:
        stream.end()
        server.close()
        stream.close()
        os.close(stream.near)


def run_frontend_image(
    job: Job, source: str, attrs: Mapping[str, str], handlers: Callable[[Answer], Mapping[str, Handler]]
) -> Results:
    """Run the frontend in image ``source``; ``handlers`` makes what it may ask for.

    Raises: the frontend's error; SolveError when it ends without a result; what finding the image raises.
    """
    platform = local_platform()
    ref = str(parse_reference(source).with_default_tag())
    mode = attrs.get("image-resolve-mode") or "default"
    found = job.images.resolve_image(
        ref, platform=platform, mode=mode, log_name=f"resolve image config for {ref}"
    )
    config = ImageConfig.from_json(found.config, f"image {ref}")
    pinned = parse_reference(ref).with_digest(found.digest)
    name = OpMetadata(description={"llb.customname": f"[internal] frontend {pinned.familiar}"})
    image = job.solve_output(
        Output(Node(SourceOp(f"docker-image://{pinned}"), metadata=name, platform=platform))
    )
    _check_caps(ref, config, attrs)
    labels = config.labels or {}
    meta = ExecMeta(
        args=(*(config.entrypoint or ()), *(config.cmd or ())),
        env=(*(config.env or ()), *_environment(job, attrs)),
        cwd=config.working_dir or "/",
        user=config.user or "",
    )
    if not meta.args:
        summary = f"the frontend image {source} says not what to run"
        raise SolveError(summary)
    spec = ContainerSpec(
        mounts=(Mount(dest="/", input=0),),
        refs=(image,),
        network=NetMode.NONE if _NETWORK_NONE in labels else NetMode.UNSET,
    )
    container = job.engine.container(spec, inputs=job.inputs(), sink=job.log, cancel=job.cancel)
    patience = Patience(source, job.cancel)
    answer = Answer(on_given=patience.answered)
    try:
        with shown(job.log, f"[internal] running frontend {pinned.familiar}") as step:

            def show(data: bytes) -> None:
                now = time.time_ns()
                job.log.emit(VertexLog(vertex=step.digest, stream=2, data=data, timestamp_ns=now))

            def run(stdio: StepStdio, log: Callable[[int, bytes], None], cancel: CancelToken) -> StepResult:
                def heard(number: int, data: bytes) -> None:
                    if number == 1:
                        patience.spoke()
                    log(number, data)

                return container.run(meta, stdio=stdio, log=heard, cancel=cancel)

            try:
                result = serve_stdio(run, handlers(answer), show, patience.cancel)
                if not answer.given:
                    answer.give(_without_result(source, result))
            except CrossdockError:
                # The answer of one that had to be ended holds.
                if not (answer.given and patience.cancel.cancelled):
                    raise
    finally:
        patience.close()
        container.close()
    job.cancel.check()
    return answer.wait(job.cancel)


def _without_result(source: str, result: StepResult) -> CrossdockError:
    summary = f"frontend {source} ended without a result: exit code {result.exit_code}"
    return SolveError(summary, detail=result.explanation or None, hint=result.hint or None)


def _check_caps(ref: str, config: ImageConfig, attrs: Mapping[str, str]) -> None:
    """Refuse what the client demands of a frontend that does not say it has it."""
    wanted = [cap for cap in attrs.get("frontend.caps", "").split(",") if cap]
    offered = (config.labels or {}).get(_LABEL_CAPS, "").split(",")
    for cap in wanted:
        if not cap.endswith("+forward") and cap not in offered:
            summary = f"the frontend {ref} does not support {cap}"
            raise Unsupported(summary, capability=cap)


def _environment(job: Job, attrs: Mapping[str, str]) -> list[str]:
    workers = [{"ID": "crossdock", "Labels": {}, "Platforms": [platform_json(local_platform())]}]
    out = [
        f"BUILDKIT_SESSION_ID={job.session_id}",
        "BUILDKIT_EXPORTEDPRODUCT=crossdock",
        f"BUILDKIT_WORKERS={json.dumps(workers, separators=(',', ':'))}",
    ]
    pairs = enumerate(sorted(attrs.items()))
    return [*out, *(f"BUILDKIT_FRONTEND_OPT_{number}={key}={value}" for number, (key, value) in pairs)]
