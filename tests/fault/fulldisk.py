"""Builds on a small disk, filled to one level after the other. Runs in namespaces of its own.

``fulldisk.py KIND FOLDER PROGRAM BASE LEVELS``: mounts a small file system of KIND (``tmpfs``, or ``ext4`` on a loop
device) at ``FOLDER/disk``, keeps a store there, and prints one JSON object: how each level ended, and every complaint.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

MIB = 1 << 20
DISK = 72 * MIB
DOCKERFILE = """
FROM {base} AS work
RUN --mount=type=bind,source=seed,target=/seed cat /seed > /dev/null && mkdir /w && \\
    for i in $(seq 100); do echo $i > /w/$i; done
RUN dd if=/dev/zero of=/big bs=1M count=4 2> /dev/null
FROM {base}
COPY --from=work /big /w /out/
COPY tree seed /tree/
RUN cp /out/big /big
"""


class Disk:
    """The small disk, and builds on it."""

    def __init__(self, kind: str, folder: Path, program: str, base: str) -> None:
        self.disk = folder / "disk"
        self.disk.mkdir()
        self._mount(kind, folder)
        self.program = program
        self.context = folder / "context"
        (self.context / "tree").mkdir(parents=True)
        (self.context / "Dockerfile").write_text(DOCKERFILE.format(base=base))
        (self.context / "tree/data").write_bytes(os.urandom(MIB // 2))
        self.out = folder / "out.tar"
        self.environment = {**os.environ, "CROSSDOCK_ROOT": str(self.disk / "store")}
        self.complaints: list[str] = []

    def _mount(self, kind: str, folder: Path) -> None:
        options = ["-t", "tmpfs", "-o", f"size={DISK},mode=700", "tmpfs"]
        if kind == "ext4":
            image = folder / "disk.img"
            with image.open("wb") as file:
                file.truncate(DISK)
            subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
            options = ["-o", "loop", str(image)]
        subprocess.run(["mount", *options, str(self.disk)], check=True)

    def fill(self, leave: int) -> None:
        """Leave that many bytes free."""
        filler = self.disk / "filler"
        filler.unlink(missing_ok=True)
        with filler.open("wb") as file:
            while (free := self.free() - leave) >= 4096:
                try:
                    file.write(b"\1" * min(free, MIB))
                    file.flush()
                except OSError:
                    return

    def empty(self) -> None:
        (self.disk / "filler").unlink(missing_ok=True)

    def free(self) -> int:
        disk = os.statvfs(self.disk)
        return disk.f_bavail * disk.f_frsize

    def run(self, *arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [self.program, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def build(self, seed: str) -> tuple[int, str]:
        (self.context / "seed").write_text(seed)
        output = f"type=oci,dest={self.out}"
        code, said = self.run("build", str(self.context), "--progress=plain", "-o", output)
        if "Traceback" in said:
            self.complaints.append(f"{seed}: traceback\n{said}")
        if code != 0 and self.out.exists():
            self.complaints.append(f"{seed}: half an output")
        self.out.unlink(missing_ok=True)
        return code, said

    def level(self, leave: int) -> str:
        """Build with that much left, judge the store, free the disk, build again."""
        where = f"{leave >> 10} KiB left"
        self.fill(leave)
        code, said = self.build(where)
        outcome = {0: "done", 102: "full"}.get(code, "other")
        if outcome == "other":
            self.complaints.append(f"{where}: exit {code}\n{said}")
        elif outcome == "full" and "space" not in said.rpartition("ERROR:")[2]:
            self.complaints.append(f"{where}: the error does not say that the disk is full\n{said}")
        if outcome == "full":
            code, said = self.run("prune", "-af")
            if code != 0:
                self.complaints.append(f"{where}: prune on the full disk: exit {code}\n{said}")
        self.empty()
        code, said = self.run("store", "check")
        if code != 0:
            self.complaints.append(f"{where}: check: exit {code}\n{said}")
        code, said = self.build(where)
        if code != 0:
            self.complaints.append(f"{where}: after space was freed: exit {code}\n{said}")
        code, said = self.run("prune", "-af")
        if code != 0:
            self.complaints.append(f"{where}: prune: exit {code}\n{said}")
        return outcome


def main() -> None:
    kind, folder, program, base, levels = sys.argv[1:]
    disk = Disk(kind, Path(folder), program, base)
    code, said = disk.build("first")
    if code != 0:
        disk.complaints.append(f"on the empty disk: {said}")
    disk.run("prune", "-af")
    highest = 26 * MIB
    steps = int(levels)
    outcomes = [disk.level(highest * number * number // (steps * steps)) for number in range(steps)]
    print(json.dumps({"outcomes": outcomes, "complaints": disk.complaints}))


if __name__ == "__main__":
    main()
