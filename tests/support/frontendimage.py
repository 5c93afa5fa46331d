"""Images of frontends: any program that speaks LLBBridge on its standard streams, asked for by ``# syntax=``.

They are made here, of this machine's Python and the project's own client: nothing is fetched.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support import cli
from support.programs import add_program, put

if TYPE_CHECKING:
    import services

__all__ = ["MISBEHAVIOUR", "forwarder", "frontend", "frontends_end"]

SOURCE = Path(__file__).resolve().parents[2] / "src/crossdock"
FRONTEND = '''
"""A frontend that does what its build argument says, or MODE in its environment."""
import json, os, sys, time
sys.path.insert(0, "/lib/frontend")
from crossdock.buildkit.proto import gateway_pb2 as pb, ops_pb2
from crossdock.buildkit.rpc.channel import Channel
from crossdock.buildkit.rpc.status import RpcError
from crossdock.llb.codec import encode_definition, marshal
from crossdock.llb.graph import Node, Output
from crossdock.llb.ops import FileAction, FileActionCopy, FileActionMkFile, FileOp, SourceOp

class Stdio:
    def recv(self, size):
        return os.read(0, size)
    def sendall(self, data):
        view = memoryview(data)
        while view:
            view = view[os.write(1, view):]
    def shutdown_write(self):
        pass
    def close(self):
        pass

opts = dict(v.split("=", 1) for k, v in os.environ.items() if k.startswith("BUILDKIT_FRONTEND_OPT_"))
mode = opts.get("build-arg:mode", os.environ.get("MODE", "build"))
if mode == "crash":
    sys.exit("the frontend fell over")
if mode == "nonsense":
    os.write(1, b"HTTP/1.1 200 OK\\r\\n\\r\\n" * 1000)
    sys.exit(4)
if mode == "silent":
    sys.exit(0)
channel = Channel(Stdio)
def call(name, request, response):
    return channel.unary("/moby.buildkit.v1.frontend.LLBBridge/" + name, request, response)
def solve(output):
    definition = ops_pb2.Definition.FromString(encode_definition(marshal(output)))
    request = pb.SolveRequest(Definition=definition, allowResultReturn=True, allowResultArrayRef=True)
    return call("Solve", request, pb.SolveResponse).result.ref
pong = call("Ping", pb.PingRequest(), pb.PongResponse)
assert {"source.local", "file.base"} <= {c.ID for c in pong.LLBCaps}
if mode == "hang":
    print("hanging", file=sys.stderr, flush=True)
    time.sleep(3600)
if mode == "error":
    request = pb.ReturnRequest()
    request.error.code, request.error.message = 3, "line 7 makes no sense"
    call("Return", request, pb.ReturnResponse)
    os._exit(1)
def give(**metadata):
    one = FileAction(action=FileActionMkFile(path="/x", data=b"x"), input=-1, output=0)
    fields = {"metadata": {"containerimage.config": b"{}", **metadata}}
    ref = pb.Ref(id=solve(Output(Node(FileOp((one,))))).id)
    fields |= {"refs": pb.RefMap(refs={"a": ref})} if "refs.platforms" in metadata else {"ref": ref}
    try:
        call("Return", pb.ReturnRequest(result=pb.Result(**fields)), pb.ReturnResponse)
    except RpcError as exc:
        sys.exit(f"refused: {exc}")
    os._exit(0)
if mode == "config":
    give(**{"containerimage.config": b"{"})
if mode == "platforms":
    give(**{"refs.platforms": b'{"Platforms": [{"ID": "a", "Platform": {"OS": "linux"}}]}'})
if mode == "endless":
    give(**{"containerimage.config": b"x" * (40 << 20)})
if mode == "wordless":
    request = pb.ReturnRequest()
    request.error.code = 2
    call("Return", request, pb.ReturnResponse)
    os._exit(1)
if mode == "forward":
    request = pb.SolveRequest(
        Frontend="dockerfile.v0", FrontendOpt=opts, allowResultReturn=True, allowResultArrayRef=True
    )
    answer = pb.ReturnRequest()
    try:
        answer.result.CopyFrom(call("Solve", request, pb.SolveResponse).result)
    except RpcError as exc:
        answer.error.code, answer.error.message = 2, exc.message
        answer.error.MergeFromString(exc.details)
    call("Return", answer, pb.ReturnResponse)
    os._exit(0)
if mode == "upload":
    # As BuildKit's frontend does: the file is looked at, and then used by a step of its own.
    for number in range(2):
        attrs = {"http.filename": f"context{number}"}
        file = Output(Node(SourceOp(opts["context"], attrs)))
        read = pb.ReadFileRequest(Ref=solve(file).id, FilePath=f"/context{number}")
        read.Range.Length = 4
        print("begins with", call("ReadFile", read, pb.ReadFileResponse).Data, file=sys.stderr, flush=True)
    copy = FileActionCopy(src="/context1", dest="/", attempt_unpack=True)
    action = FileAction(action=copy, input=-1, secondary_input=0, output=0)
    ref = solve(Output(Node(FileOp((action,)), [file])))
    call("Return", pb.ReturnRequest(result=pb.Result(ref=pb.Ref(id=ref.id))), pb.ReturnResponse)
    os._exit(0)
source = Output(Node(SourceOp("local://dockerfile", {"local.session": os.environ["BUILDKIT_SESSION_ID"]})))
text = call("ReadFile", pb.ReadFileRequest(Ref=solve(source).id, FilePath="/Dockerfile"), pb.ReadFileResponse)
told = {"file": text.Data.decode(), "opts": opts, "workers": json.loads(os.environ["BUILDKIT_WORKERS"])}
action = FileAction(action=FileActionMkFile(path="/told", data=json.dumps(told).encode()), input=-1, output=0)
ref = solve(Output(Node(FileOp((action,)))))
result = pb.Result(ref=pb.Ref(id="unknown" if mode == "lie" else ref.id))
try:
    call("Return", pb.ReturnRequest(result=result), pb.ReturnResponse)
except Exception as exc:
    sys.exit(f"refused: {exc}")
if mode == "linger":
    time.sleep(3600)
os._exit(0)
'''

#: values of the build argument ``mode``, and what is then said
MISBEHAVIOUR = (
    ("crash", "ended without a result: exit code 1"),
    ("nonsense", "ended without a result"),
    ("error", "line 7 makes no sense"),
    ("lie", "ended without a result"),
    ("silent", "ended without a result: exit code 0"),
    ("wordless", "the frontend failed and gave no reason"),
    ("config", "the result's containerimage.config: image config is not valid JSON"),
    ("platforms", "the result's refs.platforms is malformed: it lacks 'os'"),
    ("endless", "refused: RESOURCE_EXHAUSTED: a message of 41943"),
)


def _tree(root: Path) -> None:
    """This machine's Python with what the frontend imports."""
    add_program(root, sys._base_executable, "/usr/bin/python3")  # type: ignore[attr-defined]
    library = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix}))
    unused = ("test", "tests", "idlelib", "lib2to3", "ensurepip", "site-packages", "dist-packages", "tkinter")
    shutil.copytree(library, root / str(library).lstrip("/"), ignore=shutil.ignore_patterns(*unused))
    for module in (library / "lib-dynload").glob("*.so"):
        add_program(root, str(module), str(module))
    packages = root / "lib/frontend"
    shutil.copytree(SOURCE, packages / "crossdock", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("protobuf", "googleapis-common-protos"):
        for file in importlib.metadata.files(name) or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                put(packages, Path(str(file.locate())), str(file))
    (root / "frontend.py").write_text(FRONTEND)


@pytest.fixture(scope="session")
def frontend(registry: services.Registry, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A frontend that tells what it was asked, and misbehaves on demand; pushed once (needs "registry")."""
    folder = tmp_path_factory.mktemp("frontend")
    _tree(folder / "tree")
    (folder / "tree/Dockerfile").write_text(
        'FROM scratch\nCOPY . /\nENTRYPOINT ["/usr/bin/python3", "-S", "/frontend.py"]\n'
        "LABEL moby.buildkit.frontend.network.none=true moby.buildkit.frontend.caps=example.cap\n"
    )
    name = f"{registry.host}/case/frontend:1"
    _push(folder, name)
    return name


@pytest.fixture(scope="session")
def forwarder(frontend: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A frontend that has the builder's own do it, as preprocessors do."""
    folder = tmp_path_factory.mktemp("forwarder")
    (folder / "tree").mkdir()
    (folder / "tree/Dockerfile").write_text(
        f"FROM {frontend}\nENV MODE=forward\n"
        "LABEL moby.buildkit.frontend.caps=moby.buildkit.frontend.subrequests\n"
    )
    name = frontend.replace("/frontend:", "/forwarder:")
    _push(folder, name)
    return name


def _push(folder: Path, name: str) -> None:
    crossdock = cli.make(folder / "crossdock")
    crossdock("build", "--builder", "embedded", "--push", "-t", name, folder / "tree").ok()
    crossdock.close()
    shutil.rmtree(folder / "tree")


def frontends_end(timeout_s: float = 60) -> bool:
    """Wait until no frontend is at work on this machine; other cases, running beside, have some for seconds."""
    deadline = time.monotonic() + timeout_s
    while _frontends():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _frontends() -> list[str]:
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if line.endswith("/usr/bin/python3 -S /frontend.py")]
