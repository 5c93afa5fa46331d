"""Run a function of a test module inside a worker namespace, in a process of its own.

``in_worker(function, ...)`` starts Python anew (a namespace needs a process with one thread), becomes a worker, calls
``function(stage, **arguments)`` and returns its result. Arguments and result travel as JSON; what the function raises
is shown in the failure.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import baseimage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from crossdock.engine.sandbox.sandbox import Sandbox
    from crossdock.engine.sandbox.step import StepResult
    from crossdock.engine.sandbox.worker import WorkerInfo

_TOP = Path(__file__).resolve().parent.parent.parent
_TIMEOUT_S = 60
#: OCI architecture -> Debian's
DEBIAN = {
    "amd64": "amd64",
    "arm64": "arm64",
    "arm": "armhf",
    "386": "i386",
    "ppc64le": "ppc64el",
    "s390x": "s390x",
}


class Stage:
    """What a function inside the worker works with."""

    def __init__(self, info: WorkerInfo, folder: Path) -> None:
        self.info = info
        #: the case's folder, on disk
        self.folder = folder
        self._sandbox: Sandbox | None = None
        self._number = 0

    @property
    def sandbox(self) -> Sandbox:
        """The sandbox of this worker."""
        if self._sandbox is None:
            from crossdock.engine.sandbox.sandbox import Sandbox

            self._sandbox = Sandbox(self.info)
        return self._sandbox

    def layer(self, **files: str) -> Path:
        """A layer directory with files (``a__b`` is ``a/b``)."""
        self._number += 1
        made = self.folder / f"layer{self._number}"
        made.mkdir()
        for name, text in files.items():
            path = made / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return made

    def run(self, rootfs: str, *args: str, upper: Path | None = None, **step: Any) -> tuple[StepResult, str]:
        """Run a command over ``rootfs`` with an upper directory of its own; the result and what it printed."""
        from crossdock.cancel import CancelToken
        from crossdock.engine.sandbox.step import StepSpec

        upper = upper or self.layer()
        work = self.layer()
        out = bytearray()
        step.setdefault("env", ("PATH=/bin:/sbin:/usr/bin",))
        lowers = [Path(path) for path in rootfs.split("|")]
        with self.sandbox.mounted(lowers, upper=upper, work=work) as root:
            result = self.sandbox.run(
                StepSpec(rootfs=root, args=args, **step),
                log=lambda _stream, data: out.extend(data),
                cancel=CancelToken(),
            )
        return result, out.decode(errors="replace")

    def sh(self, rootfs: str, script: str, **step: Any) -> str:
        """Run a shell script that must succeed; what it printed."""
        result, out = self.run(rootfs, "/bin/sh", "-ec", script, **step)
        assert result.exit_code == 0, f"{result}\n{out}"
        return out


def in_worker(
    function: Callable[..., Any],
    folder: Path,
    *,
    options: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
    prefix: tuple[str, ...] = (),
    **arguments: Any,
) -> Any:
    """Call ``function(stage, **arguments)`` in a worker; ``prefix`` is put before the Python command."""
    request = {
        "file": function.__code__.co_filename,
        "function": function.__name__,
        "folder": str(folder),
        "options": {"run_dir": str(folder / "run"), **(options or {})},
        "arguments": arguments,
    }
    (folder / "request.json").write_text(json.dumps(request))
    path = os.pathsep.join(str(_TOP / name) for name in ("src", "tests", "scripts"))
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "support.stage", str(folder)],
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return json.loads((folder / "result.json").read_text())


def make_rootfs(folder: Path, architecture: str) -> Path:
    """Unpack a busybox root file system for an OCI architecture into ``folder``."""
    binary = baseimage.busybox_packages([DEBIAN[architecture]])[DEBIAN[architecture]]
    native = baseimage.busybox_packages(["amd64" if os.uname().machine == "x86_64" else "arm64"])
    listing = subprocess.run(
        [str(next(iter(native.values()))), "--list"], capture_output=True, text=True, check=True
    )
    for name in ("bin", "etc", "root", "usr/bin"):
        (folder / name).mkdir(parents=True)
    (folder / "tmp").mkdir()
    (folder / "tmp").chmod(0o1777)
    (folder / "bin/busybox").write_bytes(binary.read_bytes())
    (folder / "bin/busybox").chmod(0o755)
    for applet in set(listing.stdout.split()) - {"busybox"}:
        (folder / "bin" / applet).symlink_to("busybox")
    (folder / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
    )
    (folder / "etc/group").write_text("root:x:0:\nstaff:x:50:nobody,user\nuser:x:1000:\nnogroup:x:65534:\n")
    return folder


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """``rootfs("arm64")``: a busybox root file system, made once; cases never write to it."""
    made: dict[str, str] = {}

    def get(architecture: str = "") -> str:
        from crossdock.image.platform import local_platform

        name = architecture or local_platform().architecture
        if name not in made:
            made[name] = str(make_rootfs(tmp_path_factory.mktemp(f"rootfs-{name}"), name))
        return made[name]

    return get


def _main() -> None:
    folder = Path(sys.argv[1])
    request = json.loads((folder / "request.json").read_text())
    options = request["options"]
    options["run_dir"] = Path(options["run_dir"])
    from crossdock.engine.sandbox.worker import WorkerOptions, become_worker

    info = become_worker(WorkerOptions(**options))
    found = importlib.util.spec_from_file_location("case_module", request["file"])
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    result = getattr(module, request["function"])(Stage(info, folder), **request["arguments"])
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    _main()
