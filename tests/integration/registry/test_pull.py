"""A real base image of six platforms, resolved and unpacked from a real registry."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from crossdock.cancel import CancelToken
from crossdock.engine.sources.image import ImageSource
from crossdock.engine.sources.pull import LayerPuller, PullContext
from crossdock.engine.store import Store
from crossdock.image import parse_platform, parse_reference
from crossdock.layers import UnpackOptions
from crossdock.progress import NullSink
from crossdock.registry import Credentials, RegistryClient, RegistryConfig
from support.chaos import ChaosRelay

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.servers import BaseImages

pytestmark = pytest.mark.needs("base")

#: ELF machine numbers at offset 18, and the byte order at offset 5 (1 little, 2 big)
MACHINES = {
    "linux/amd64": 62,
    "linux/arm64": 183,
    "linux/arm/v7": 40,
    "linux/386": 3,
    "linux/ppc64le": 21,
    "linux/s390x": 22,
}


@pytest.fixture
def client() -> Iterator[RegistryClient]:
    made = RegistryClient(config=RegistryConfig(), credentials=Credentials.none(), cancel=CancelToken())
    yield made
    made.close()


def machine_of(program: Path) -> int:
    head = program.read_bytes()[:20]
    return int.from_bytes(head[18:20], "little" if head[5] == 1 else "big")


def pull(store: Store, client: RegistryClient, ref: str, platform: str) -> tuple[Path, ...]:
    options = UnpackOptions(ignore_chown_errors=os.geteuid() != 0)
    with store.lease() as lease:
        source = ImageSource(store, client)
        image = source.resolve(
            parse_reference(ref), platform=parse_platform(platform), lease=lease, cancel=CancelToken()
        )
        layers = source.add_layers(image, lease=lease)
        puller = LayerPuller(store, client, unpack_options=options)
        return puller.directories(layers, PullContext(lease, NullSink(), "", CancelToken()))


@pytest.mark.parametrize("kind", ["index", "docker"])
def test_every_platform_gets_its_own_programs(
    base: BaseImages, client: RegistryClient, tmp_path: Path, kind: str
) -> None:
    with Store.open(tmp_path / "store") as store:
        for platform, machine in MACHINES.items():
            layers = pull(store, client, getattr(base, kind), platform)
            programs = [layer / "bin/busybox" for layer in layers if (layer / "bin/busybox").exists()]
            assert [machine_of(program) for program in programs] == [machine]


def test_a_pinned_base_needs_no_registry_once_it_is_here(
    base: BaseImages, client: RegistryClient, tmp_path: Path
) -> None:
    path = base.index.partition("/")[2]
    with Store.open(tmp_path / "store") as store:
        with ChaosRelay(base.index.partition("/")[0]) as relay:
            ref = f"{relay.host}/{path}@{base.digest}"
            before = pull(store, client, ref, "linux/arm64")
            client.close()
        assert pull(store, client, ref, "linux/arm64") == before
