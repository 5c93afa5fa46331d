"""Runs pieces of code in a worker of their own, with an open engine, and gives back what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

PRELUDE = '''
import json, os, sys, threading, time
from pathlib import Path
from crossdock.engine.sandbox.worker import become_worker
worker = become_worker()
from crossdock.cancel import CancelToken
from crossdock.engine.facade import Engine, EngineOptions, SolveInputs
from crossdock.errors import CrossdockError, StepFailed, SolveError
from crossdock.llb.graph import Node, Output
from crossdock.llb.ops import *
from crossdock.llb.ops import OpMetadata
from crossdock.secret import Secret

STORE, CONTEXT = Path(sys.argv[1]), Path(sys.argv[2])


class Sink:
    def __init__(self):
        self.events = []
    def emit(self, event):
        self.events.append(event)
    def of(self, kind):
        return [e for e in self.events if type(e).__name__ == kind]
    @property
    def cached(self):
        return {e.name: e.cached for e in self.of("Vertex") if e.completed_ns}
    @property
    def log(self):
        return b"".join(e.data for e in self.of("VertexLog")).decode()


def named(name, **more):
    return OpMetadata(description={"llb.customname": name}, **more)

def copy(src, dest, **fields):
    for flag in ("create_dest_path", "dir_copy_contents", "allow_wildcard", "follow_symlink"):
        fields.setdefault(flag, True)
    return FileActionCopy(src=src, dest=dest, **fields)

def copied(source, src, dest, onto=None, name="copy", **fields):
    base = [] if onto is None else [onto]
    action = FileAction(action=copy(src, dest, **fields), input=len(base) - 1, secondary_input=len(base), output=0)
    return Output(Node(FileOp((action,)), [*base, source], metadata=named(name)))

def files(*actions, onto=None, name="file"):
    base = [] if onto is None else [onto]
    made = tuple(
        FileAction(action=a, input=(len(base) + n - 1 if n or base else -1), output=0 if n == len(actions) - 1 else -1)
        for n, a in enumerate(actions)
    )
    return Output(Node(FileOp(made), base, metadata=named(name)))

def run(onto, command, name="run", mounts=(), inputs=(), meta=None, ignore=False, **fields):
    op = ExecOp(
        meta=ExecMeta(args=("/bin/sh", "-c", command), **(meta or {})),
        mounts=(Mount(dest="/", input=0, output=0), *mounts), **fields)
    return Output(Node(op, [onto, *inputs], metadata=named(name, ignore_cache=ignore)))

def local(name="context", **attrs):
    return Output(Node(SourceOp("local://" + name, attrs), metadata=named("load " + name)))

def base():
    """busybox, /etc/passwd and /tmp, from the folder "base"."""
    made = copied(local("base"), "/", "/", name="base")
    return files(
        FileActionMkDir(path="/etc", make_parents=True),
        FileActionMkFile(path="/etc/passwd", data=b"root:x:0:0::/:/bin/sh\\nbob:x:1000:1001::/:/bin/sh\\n"),
        FileActionMkFile(path="/etc/group", data=b"root:x:0:\\nstaff:x:50:\\n"),
        FileActionMkDir(path="/tmp", mode=0o777),
        onto=made, name="files")

def open_engine(**options):
    return Engine.open(EngineOptions(STORE, **options))

def solve(engine, *outputs, sink=None, cancel=None, **inputs):
    inputs.setdefault("locals", {"context": CONTEXT, "base": Path(os.environ["BASE"])})
    return engine.solve(outputs, inputs=SolveInputs(**inputs), sink=sink or Sink(), cancel=cancel or CancelToken())

def text(engine, ref, path):
    data = engine.read_file(ref, path, cancel=CancelToken())
    return None if data is None else data.decode()

def names(engine, ref, path="/"):
    return [f.name for f in engine.read_dir(ref, path, cancel=CancelToken())]

def say(**values):
    print(json.dumps(values), flush=True)
'''


class Worker:
    """Starts code in worker processes that share a store, a context and a base."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.store = folder / "store"
        self.context = folder / "context"
        self.context.mkdir()
        self._base = base

    def start(self, body: str) -> subprocess.Popen[str]:
        env = {**os.environ, "BASE": str(self._base)}
        return subprocess.Popen(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(body), str(self.store), str(self.context)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )

    def finish(self, process: subprocess.Popen[str], timeout_s: float = 60) -> list[dict[str, Any]]:
        out, err = process.communicate(timeout=timeout_s)
        assert process.returncode == 0, err
        # An error in a thread of its own ends only that thread.
        assert "Traceback" not in err, err
        return [json.loads(line) for line in out.splitlines()]

    def run(self, body: str) -> dict[str, Any]:
        """Run ``body``; everything it said, merged."""
        merged: dict[str, Any] = {}
        for said in self.finish(self.start(body)):
            merged.update(said)
        return merged
