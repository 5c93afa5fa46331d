"""A server whose store is on a disk of 64 MB: ``smalldisk.py FOLDER``, in a mount namespace of its own.

Fills the disk to one level after the other, builds, makes room, builds again. Prints one JSON object: how many builds met
a full disk, what went wrong, and how the last one ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import grpc

from crossdock.buildkit.proto import control_pb2
from fault.full import fill
from integration.server.plain import Client, code, definition, made_file, text

MIB = 1 << 20
LEVELS = (40 * MIB, 8 * MIB, 2 * MIB, MIB, MIB // 4, 65536, 16384, 4096, 0)


def attempt(client: Client, content: bytes) -> str:
    """Build something; returns ``built``, ``full``, or what else the client is told."""
    exporter = control_pb2.Exporter(Type="image", Attrs={"name": "example.com/x:1"})
    try:
        client.solve(Definition=definition(made_file(content)), Exporters=[exporter])
    except grpc.RpcError as exc:
        full = code(exc) == "RESOURCE_EXHAUSTED" or "no space left" in text(exc).lower()
        return "full" if full else f"{code(exc)}: {text(exc)}"
    return "built"


def main() -> int:
    folder = Path(sys.argv[1])
    disk, sock = folder / "disk", folder / "s.sock"
    disk.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={64 * MIB},mode=700", "tmpfs", str(disk)], check=True
    )
    program = Path(sys.executable).with_name("crossdock")
    with (folder / "log").open("w") as log:
        command = [str(program), "serve", "--addr", f"unix://{sock}", "--root", str(disk / "store")]
        server = subprocess.Popen(command, stdout=log, stderr=log)
    deadline = time.monotonic() + 60
    while not sock.exists():
        if time.monotonic() > deadline or server.poll() is not None:
            sys.exit((folder / "log").read_text())
        time.sleep(0.05)
    client = Client(f"unix://{sock}")
    outcomes = []
    for number, level in enumerate(LEVELS):
        fill(disk / "filler", level)
        outcomes.append(attempt(client, os.urandom(200_000) + bytes([number])))
        (disk / "filler").unlink()
    after = attempt(client, b"there is room again")
    client.channel.close()
    server.terminate()
    ended = server.wait(30)
    wrong = [outcome for outcome in outcomes if outcome not in ("built", "full")]
    if ended != 0 or "Traceback" in (folder / "log").read_text():
        wrong.append(f"exit code {ended}: {(folder / 'log').read_text()}")
    print(json.dumps({"full": outcomes.count("full"), "wrong": wrong, "after": after}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
