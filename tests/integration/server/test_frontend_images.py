"""Frontends in images: any program that speaks LLBBridge on its standard streams, asked for by ``# syntax=``.

The image is made here, of this machine's Python and the project's own client: nothing is fetched.
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
    from integration.server.conftest import Buildx, Server

pytestmark = [pytest.mark.needs("crun", "userns", "overlay", "dockercli"), pytest.mark.slow]

SOURCE = Path(__file__).resolve().parents[3] / "src/crossdock"
FRONTEND = '''
"""A frontend that does what its build argument says."""
import json, os, sys, time
sys.path.insert(0, "/lib/frontend")
from crossdock.buildkit.proto import gateway_pb2 as pb, ops_pb2
from crossdock.buildkit.rpc.channel import Channel
from crossdock.llb.codec import encode_definition, marshal
from crossdock.llb.graph import Node, Output
from crossdock.llb.ops import FileAction, FileActionMkFile, FileOp, SourceOp

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
mode = opts.get("build-arg:mode", "build")
if mode == "crash":
    sys.exit("the frontend fell over")
if mode == "nonsense":
    os.write(1, b"HTTP/1.1 200 OK\\r\\n\\r\\n" * 1000)
    sys.exit(4)
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
os._exit(0)
'''


def tree(root: Path) -> None:
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


@pytest.fixture(scope="module")
def frontend(registry: services.Registry, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image's reference, pushed once."""
    folder = tmp_path_factory.mktemp("frontend")
    tree(folder / "tree")
    (folder / "tree/Dockerfile").write_text(
        'FROM scratch\nCOPY . /\nENTRYPOINT ["/usr/bin/python3", "-S", "/frontend.py"]\n'
        "LABEL moby.buildkit.frontend.network.none=true moby.buildkit.frontend.caps=example.cap\n"
    )
    crossdock = cli.make(folder / "crossdock")
    name = f"{registry.host}/case/frontend:1"
    crossdock("build", "--builder", "embedded", "--push", "-t", name, folder / "tree").ok()
    crossdock.close()
    shutil.rmtree(folder / "tree")
    return name


@pytest.fixture
def context(tmp_path: Path, frontend: str) -> Path:
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text(f"# syntax={frontend}\nTHIS IS NOT A DOCKERFILE\n")
    return folder


def test_a_file_in_a_language_of_its_own_is_built(
    buildx: Buildx, context: Path, tmp_path: Path, frontend: str
) -> None:
    import json

    done = buildx.build("--build-arg", "key=value", "--target", "t", "-o", tmp_path / "out", context)
    told = json.loads((tmp_path / "out/told").read_text())
    assert told["file"].endswith("THIS IS NOT A DOCKERFILE\n")
    assert told["opts"]["build-arg:key"] == "value"
    assert told["opts"]["target"] == "t"
    assert told["opts"]["source"] == frontend
    assert told["workers"][0]["Platforms"]
    assert "[internal] running frontend" in done.stderr


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        ("crash", "ended without a result: exit code 1"),
        ("nonsense", "ended without a result"),
        ("error", "line 7 makes no sense"),
        ("lie", "ended without a result"),
    ],
)
def test_one_that_misbehaves_fails_its_build_with_a_sentence(
    buildx: Buildx, context: Path, mode: str, wanted: str
) -> None:
    done = buildx.build("--build-arg", f"mode={mode}", context, check=False)
    assert done.returncode != 0
    assert wanted in done.stderr
    if mode == "crash":
        assert "the frontend fell over" in done.stderr


def test_one_that_hangs_ends_with_its_client(buildx: Buildx, context: Path, server: Server) -> None:
    running = buildx.start("build", "--progress", "plain", "--build-arg", "mode=hang", context)
    assert running.stdout is not None
    for line in running.stdout:
        if b"hanging" in line:
            break
    running.kill()
    running.wait(10)
    running.stdout.close()
    deadline = time.monotonic() + 20
    while _frontends() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _frontends()
    assert server.process.poll() is None


def _frontends() -> list[str]:
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if line.endswith("/usr/bin/python3 -S /frontend.py")]


def test_what_it_does_not_have_may_be_demanded(buildx: Buildx, context: Path) -> None:
    done = buildx.build("--call", "outline", context, check=False)
    assert done.returncode != 0


def test_the_rules_of_the_daemon_hold_for_images(
    buildx: Buildx, context: Path, tmp_path: Path, frontend: str
) -> None:
    import json

    rule = {"action": "DENY", "selector": {"identifier": f"docker-image://{frontend}"}}
    (tmp_path / "policy.json").write_text(json.dumps({"rules": [rule]}))
    env = {"EXPERIMENTAL_BUILDKIT_SOURCE_POLICY": str(tmp_path / "policy.json")}
    done = buildx.build(context, env=env, check=False)
    assert "denied by policy" in done.stderr
