"""A process that uses a store until it is killed: the victim of the fault tests.

``worker.py ROOT SEED ROUNDS MODE [POINT NTH]``: makes steps (or prunes, or both) and prints a line for each
thing that is finished; with a point, kills itself the NTH time it passes there. ``MODE``: ``build``,
``prune``, ``mixed``.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from crossdock.cancel import CancelToken
from crossdock.engine.store import LayerId, Lease, Store, hooks
from crossdock.engine.store.gc import GCPolicy
from crossdock.engine.store.rim import rim
from crossdock.image.descriptor import Descriptor
from crossdock.image.digest import DiffId, Digest, sha256_digest

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
FILES = 5


class Worker:
    """Random but seeded use of one store."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store = store
        self.random = random.Random(seed)
        self.seed = seed
        self.cancel = CancelToken()

    def build(self, number: int) -> None:
        """What a small build does: a base, steps, packed layers, an image, a cache mount, a stat cache."""
        with self.store.lease() as lease:
            base = self.base(lease, self.random.randrange(4))
            name = f"{self.seed}-{number}"
            first = self.step(lease, f"sha256:{name}-1", (base,))
            if first is not None:
                self.step(lease, f"sha256:{name}-2", (base, first))
                self.pack(lease, first, name)
            self.packed(lease, f"sha256:{name}-3", base)
            with (
                self.store.mounts.use(
                    lease, name=f"m{number % 3}", sharing="shared", cancel=self.cancel
                ) as path,
                rim("use a cache mount"),
            ):
                (path / name).write_bytes(b"x" * 1000)
            table = self.store.stats.load(f"/ctx{number % 2}")
            table.record(name, os.stat("/"), b"d" * 32, time.time_ns() + 10**18)
            table.save()
            self.leave_something_undone(lease)

    def base(self, lease: Lease, which: int) -> LayerId:
        data = f"base {which}".encode() * 1000
        digest = self.store.content.put_bytes(data, lease)
        diff_id = DiffId(sha256_digest(data + b"diff"))
        blob = Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", digest, len(data))
        layer = self.store.layers.add_remote(lease, diff_id=diff_id, blob=blob)

        def fill(path: Path) -> DiffId:
            with rim("write a base"):
                for number in range(FILES):
                    (path / f"f{number}").write_bytes(data)
            return diff_id

        self.store.layers.materialise(layer, fill, self.cancel)
        return layer

    def step(self, lease: Lease, canonical: str, below: tuple[LayerId, ...]) -> LayerId | None:
        with self.store.layers.new(lease, kind="exec", description=canonical) as new:
            with rim("run a step"):
                for number in range(FILES):
                    (new.fs / f"d{number}").mkdir()
                    (new.fs / f"d{number}/data").write_text(canonical * 50)
            layer = new.commit()
        self.store.records.save(canonical, [(*below, layer)], lease=lease, keys=[f"key of {canonical}"])
        print("result", canonical, flush=True)
        return layer

    def packed(self, lease: Lease, canonical: str, base: LayerId) -> None:
        """A layer that is a blob from the beginning."""
        with self.store.layers.new(lease, kind="file", description=canonical) as new:
            with rim("make empty files"):
                for number in range(FILES):
                    (new.fs / f"f{number}").touch()
            data = canonical.encode() * 1000
            with self.store.content.writer(lease) as writer:
                writer.write(data)
                digest, size = writer.commit()
            blob = Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", digest, size)
            layer = new.commit_packed(DiffId(sha256_digest(data + b"diff")), blob)
        self.store.records.save(canonical, [(base, layer)], lease=lease, keys=[f"key of {canonical}"])
        print("packed", canonical, flush=True)

    def pack(self, lease: Lease, layer: LayerId, name: str) -> None:
        with self.store.content.writer(lease) as writer:
            for _ in range(4):
                writer.write(name.encode() * 5_000)
            digest, size = writer.commit()
        self.store.layers.add_blob(
            layer, Descriptor("x.tar+gzip", digest, size), DiffId(sha256_digest(name.encode()))
        )
        manifest = json.dumps({"layers": [{"digest": digest}], "name": name}).encode()
        top = self.store.content.put_bytes(manifest, lease)
        self.store.images.put(
            f"img{self.random.randrange(5)}", Descriptor(MANIFEST, Digest(top), len(manifest)), lease
        )
        print("blob", digest, flush=True)

    def leave_something_undone(self, lease: Lease) -> None:
        with self.store.layers.new(lease, kind="exec") as new, self.store.content.writer(lease) as writer:
            with rim("run half a step"):
                (new.fs / "half").write_bytes(b"x" * 1000)
            writer.write(b"half" * 100_000)

    def prune(self, number: int) -> None:
        kind = number % 3
        if kind == 0:
            self.store.prune(GCPolicy(all=True))
        elif kind == 1:
            self.store.enforce(200_000)
        else:
            self.store.gc((GCPolicy(max_used_space=400_000),), max_bytes=300_000)
            self.store.sync()


def main() -> None:
    root, seed, rounds, mode = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    if len(sys.argv) > 5:
        passes = int(sys.argv[6])

        def maybe_die() -> None:
            nonlocal passes
            passes -= 1
            if passes == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        hooks.install(sys.argv[5], maybe_die)
    with Store.open(root) as store:
        print("open", flush=True)
        worker = Worker(store, seed)
        for number in range(rounds):
            if mode == "build" or (mode == "mixed" and number % 4):
                worker.build(number)
            else:
                worker.prune(number // 4 if mode == "mixed" else number)
                time.sleep(0.005)
    print("end", flush=True)


if __name__ == "__main__":
    main()
