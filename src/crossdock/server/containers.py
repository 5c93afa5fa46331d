"""Interactive containers of a build: opened, run in, looked into, released over the gateway.

Spec: moby/buildkit ``frontend/gateway/gateway.go`` (NewContainer, ExecProcess), ``frontend/gateway/pb/gateway.proto``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import select
import signal
import struct
import termios
import threading
from typing import TYPE_CHECKING, Any

from crossdock.buildkit.proto import gateway_pb2, ops_pb2
from crossdock.buildkit.rpc.serve import parsed
from crossdock.buildkit.rpc.status import RpcError
from crossdock.cancel import CancelToken
from crossdock.engine.facade_container import ContainerSpec
from crossdock.engine.sandbox.step import StepStdio
from crossdock.engine.sandbox.supervise import descendants
from crossdock.errors import Cancelled, CrossdockError, UsageError
from crossdock.image.digest import sha256_digest
from crossdock.llb.decode import unmarshal
from crossdock.llb.graph import Definition
from crossdock.llb.ops import ExecOp, NetMode, SecurityMode
from crossdock.record import replace
from crossdock.server.failures import Missing, status_of
from crossdock.server.results import platform_from_pb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.buildkit.rpc.serve import ServerCall
    from crossdock.engine.facade_container import Container
    from crossdock.llb.ops import Mount
    from crossdock.server.jobs import Job
    from crossdock.server.results import ResultRef

__all__ = ["JobContainers", "serve_processes"]

pb = gateway_pb2
_BLOCK = 64 * 1024
#: milliseconds between looks whether the process of a silent terminal has ended
_LOOK_MS = 100
#: descriptors of a process that a client may ask for
_STREAMS = (1, 2)


def decode_exec(**fields: Any) -> ExecOp:
    """Read parts of an exec as the engine has them. Raises: SolveError, NotSupported."""
    fields.setdefault("meta", ops_pb2.Meta(args=["x"]))
    op = ops_pb2.Op(exec=ops_pb2.ExecOp(**fields)).SerializeToString()
    last = ops_pb2.Op(inputs=[ops_pb2.Input(digest=sha256_digest(op))]).SerializeToString()
    result = unmarshal(Definition(ops=(op, last))).result
    found = result.node.op if result is not None else None
    if not isinstance(found, ExecOp):
        summary = "malformed container request"
        raise UsageError(summary)
    return found


class JobContainers:
    """The containers of one build. Safe from any thread."""

    def __init__(self) -> None:
        # Guards _open.
        self._lock = threading.Lock()
        self._open: dict[str, Container] = {}

    def new(self, job: Job, request: pb.NewContainerRequest) -> None:
        """Open a container. Raises: UsageError for its id or a reference; as ``Container``."""
        mounts, refs = _mounts(job, request.Mounts)
        exec_op = decode_exec(network=request.Network)
        hosts = decode_exec(meta=ops_pb2.Meta(args=["x"], extraHosts=request.extraHosts)).meta.extra_hosts
        spec = ContainerSpec(
            mounts=mounts,
            refs=tuple(job.solve(refs)),
            platform=platform_from_pb(request.platform) if request.HasField("platform") else None,
            network=NetMode(exec_op.network),
            extra_hosts=hosts,
            hostname=request.hostname,
        )
        with self._lock:
            if not request.ContainerID or request.ContainerID in self._open:
                summary = f"container {request.ContainerID} exists"
                raise UsageError(summary)
        made = job.engine.container(spec, inputs=job.inputs(), sink=job.log, cancel=job.cancel)
        with self._lock:
            other = self._open.setdefault(request.ContainerID, made)
        if other is not made:
            made.close()
            summary = f"container {request.ContainerID} exists"
            raise UsageError(summary)

    def get(self, name: str) -> Container:
        """Return an open container. Raises: Missing."""
        with self._lock:
            found = self._open.get(name)
        if found is None:
            summary = f"container details for {name} not found"
            raise Missing(summary)
        return found

    def release(self, name: str) -> None:
        """Close a container. Raises: Missing."""
        with self._lock:
            found = self._open.pop(name, None)
        if found is None:
            summary = f"container details for {name} not found"
            raise Missing(summary)
        found.close()

    def close(self) -> None:
        """Close all containers."""
        with self._lock:
            containers, self._open = list(self._open.values()), {}
        for container in containers:
            container.close()


def _mounts(job: Job, given: Sequence[ops_pb2.Mount]) -> tuple[tuple[Mount, ...], list[ResultRef]]:
    """Return mounts whose inputs are indexes into the references beside them."""
    cleaned = []
    for one in given:
        copy = ops_pb2.Mount()
        copy.CopyFrom(one)
        copy.input, copy.output = -1, -1
        cleaned.append(copy)
    refs: list[ResultRef] = []
    mounts: list[Mount] = []
    for mount in decode_exec(mounts=cleaned).mounts:
        if not mount.result_id:
            mounts.append(mount)
            continue
        ref = job.find(mount.result_id)
        if ref not in refs:
            refs.append(ref)
        mounts.append(replace(mount, input=refs.index(ref)))
    return tuple(mounts), refs


def serve_processes(job: Job, call: ServerCall) -> None:
    """Run the processes of one ``ExecProcess`` stream until the client ends it. Raises: UsageError."""
    stream = _Stream(job, call)
    call.on_gone(stream.stop)
    try:
        for raw in call.messages():
            stream.take(parsed(pb.ExecMessage, raw))
    except RpcError:
        pass  # the client is gone: its processes go too
    finally:
        stream.close()


class _Stream:
    """The processes of one stream; what they say is sent from their own threads."""

    def __init__(self, job: Job, call: ServerCall) -> None:
        self._job = job
        self._call = call
        # Guards the order of what is sent.
        self._send_lock = threading.Lock()
        self._processes: dict[str, _Process] = {}

    def take(self, message: pb.ExecMessage) -> None:
        """Take one message. Raises: UsageError, Missing."""
        name = message.ProcessID
        kind = message.WhichOneof("Input")
        if kind == "Init":
            if name in self._processes:
                summary = f"process {name} exists"
                raise UsageError(summary)
            container = self._job.containers.get(message.Init.ContainerID)
            process = self._processes[name] = _Process(self, name, message.Init, container, self._job)
            process.start()
            return
        found = self._processes.get(name)
        if found is None:
            summary = f"no such process {name}"
            raise UsageError(summary)
        if kind == "File":
            found.write(message.File.Data, end=message.File.EOF)
        elif kind == "Resize":
            found.resize(message.Resize.Rows, message.Resize.Cols)
        elif kind == "Signal":
            found.kill(message.Signal.Name)

    def send(self, name: str, **fields: Any) -> None:
        """Send a message of a process; a client that is gone gets nothing."""
        with self._send_lock, contextlib.suppress(RpcError):
            self._call.send(pb.ExecMessage(ProcessID=name, **fields).SerializeToString())

    def stop(self) -> None:
        """End all processes."""
        for process in list(self._processes.values()):
            process.cancel.cancel(Cancelled())

    def close(self) -> None:
        """End all processes, and wait for them."""
        self.stop()
        for process in self._processes.values():
            process.join()


class _Process:
    """One process with its streams."""

    def __init__(
        self, stream: _Stream, name: str, init: pb.InitMessage, container: Container, job: Job
    ) -> None:
        op = decode_exec(meta=init.Meta, security=init.Security, secretenv=init.secretenv)
        self._op = op
        self._stream = stream
        self._name = name
        self._container = container
        self._tty = init.Tty
        self._wanted = tuple(fd for fd in _STREAMS if fd in init.Fds)
        self.cancel = CancelToken(job.cancel)
        self._thread = threading.Thread(target=self._run, name="exec", daemon=True)
        self._input: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._master = -1
        self._pid = 0
        # Guards _master until it is closed, and _size, the terminal's as the kernel wants it.
        self._lock = threading.Lock()
        self._size: bytes | None = None
        #: set when there is something to write to, and when the process has ended
        self._ready = threading.Event()
        self._ended = threading.Event()
        if self._tty:
            self._master, self._near = os.openpty()
        else:
            self._near, self._master = os.pipe()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self) -> None:
        """Wait for the end."""
        self._thread.join()

    def write(self, data: bytes, *, end: bool) -> None:
        """Give the process something to read, or tell it that nothing more comes."""
        if data:
            self._input.put(data)
        if end:
            self._input.put(None)

    def resize(self, rows: int, columns: int) -> None:
        """Set the terminal's size, also before there is one."""
        if not self._tty:
            return
        with self._lock:
            self._size = struct.pack("HHHH", rows & 0xFFFF, columns & 0xFFFF, 0, 0)
            self._set_size()

    def _set_size(self) -> None:
        if self._size is None or not self._ready.is_set():
            return
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, self._size)
            # A runtime that stands between two terminals copies the size.
            if self._pid:
                os.kill(self._pid, signal.SIGWINCH)

    def _took_terminal(self, descriptor: int) -> None:
        """Use the terminal that the runtime made, in place of ours."""
        with self._lock:
            os.dup2(descriptor, self._master, inheritable=False)
            os.close(descriptor)
            self._ready.set()
            self._set_size()

    def kill(self, name: str) -> None:
        """Send a signal by name. Raises: UsageError."""
        try:
            number = signal.Signals[name if name.startswith("SIG") else f"SIG{name}"]
        except KeyError:
            summary = f"unknown signal {name!r}"
            raise UsageError(summary) from None
        for pid in descendants(self._pid)[:1] if self._pid else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _run(self) -> None:
        writer = threading.Thread(target=self._feed, name="exec-stdin", daemon=True)
        writer.start()
        reader = threading.Thread(target=self._read_terminal, name="exec-tty", daemon=True)
        if self._tty:
            reader.start()
        code, error = self._execute()
        self._ended.set()
        self._ready.set()
        os.close(self._near)
        if self._tty:
            reader.join()
        self._input.put(None)
        writer.join()
        os.close(self._master) if self._tty else None
        for fd in self._wanted:
            self._stream.send(self._name, File=pb.FdMessage(Fd=fd, EOF=True))
        exit_message = pb.ExitMessage(Code=code)
        if error is not None:
            exit_message.Error.CopyFrom(error)
        self._stream.send(self._name, Exit=exit_message)
        self._stream.send(self._name, Done=pb.DoneMessage())
        self.cancel.close()

    def _execute(self) -> tuple[int, Any]:
        """Run to the end; returns the exit code and, for a bad end, its status."""
        from google.rpc.status_pb2 import Status

        try:
            result = self._container.run(
                self._op.meta,
                security=SecurityMode(self._op.security),
                secret_env=self._op.secret_env,
                stdio=StepStdio(self._near, self._tty, self._started, self._took_terminal),
                log=self._wrote,
                cancel=self.cancel,
            )
        except CrossdockError as exc:
            return 255, status_of(exc)
        if result.exit_code == 0:
            return 0, None
        text = f"exit code: {result.exit_code}"
        return result.exit_code, Status(code=2, message=result.explanation or text)

    def _started(self, pid: int) -> None:
        self._pid = pid
        if not self._tty or not self._container.makes_terminals:
            self._ready.set()
        self._stream.send(self._name, Started=pb.StartedMessage())

    def _wrote(self, fd: int, data: bytes) -> None:
        if fd in self._wanted:
            self._stream.send(self._name, File=pb.FdMessage(Fd=fd, Data=data))

    def _feed(self) -> None:
        """Write what the client sends; closing a pipe is what ends the process's input."""
        self._ready.wait()
        while (data := self._input.get()) is not None:
            with contextlib.suppress(OSError):
                self._write_all(memoryview(data))
        if self._tty:
            with contextlib.suppress(OSError):
                os.write(self._master, b"\x04")
        else:
            os.close(self._master)

    def _write_all(self, view: memoryview) -> None:
        """Write as the process reads, until it has ended. Raises: OSError."""
        os.set_blocking(self._master, False)
        poll = select.poll()
        poll.register(self._master, select.POLLOUT)
        while view and not self._ended.is_set():
            if poll.poll(_LOOK_MS):
                with contextlib.suppress(BlockingIOError):
                    view = view[os.write(self._master, view) :]

    def _read_terminal(self) -> None:
        """Pass on what is written until the process has ended and nothing more comes: others may keep its terminal."""
        self._ready.wait()
        poll = select.poll()
        poll.register(self._master, select.POLLIN)
        while True:
            if not poll.poll(_LOOK_MS):
                if self._ended.is_set():
                    return
                continue
            try:
                data = os.read(self._master, _BLOCK)
            except BlockingIOError:
                continue
            except OSError:  # nobody has the other side open any more
                return
            if not data:
                return
            self._wrote(1, data)
