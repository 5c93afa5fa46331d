"""What the peers need and Crossdock does not: a host-wide QEMU handler for arm64, for the time of the benchmark."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAME = "crossdock-bench-aarch64"
_MAGIC = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
_MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
# handlers go with the last mount of binfmt_misc, so where the host has none this shell keeps a private one
_SCRIPT = f"""
cd /proc/sys/fs/binfmt_misc
test -e register || {{ mount -t binfmt_misc none .; cd /; cd -; }} >/dev/null
if grep -qs aarch64 ./*; then echo present; read -r end; exit; fi
printf '%s' ':{_NAME}:M::{_MAGIC}:{_MASK}:'"$1"':POCF' > register
echo registered
read -r end || :
echo -1 > {_NAME}
"""


@contextlib.contextmanager
def host_handler() -> Iterator[None]:
    """Register arm64 host-wide unless a handler is there; removed at the end, also when this process is killed.

    Needs root. Raises: OSError when the kernel refuses.
    """
    qemu = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if not qemu:
        print("bench: no qemu-aarch64, so peers cannot build arm64", flush=True)
        yield
        return
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-ec", _SCRIPT, "sh", qemu],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        answer = holder.stdout.readline().strip()
        if not answer:
            msg = "the host-wide arm64 handler could not be registered"
            raise OSError(msg)
        print(f"bench: host-wide arm64 handler for the peers: {answer}", flush=True)
        try:
            yield
        finally:
            holder.stdin.close()
            holder.wait()
