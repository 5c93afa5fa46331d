"""A store with layers, and an export context whose seams are as thin as can be."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from crossdock.cancel import CancelToken
from crossdock.engine.exporters import ExportContext, PlatformImage
from crossdock.engine.store import Store
from crossdock.errors import StoreError
from crossdock.image import History, ImageConfig, Platform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from crossdock.engine.store import LayerId, Lease
    from crossdock.image import Descriptor
    from crossdock.progress import Event
    from crossdock.registry import RegistryClient

AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")


class Events:
    """Keeps what was emitted."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event, /) -> None:
        self.events.append(event)

    @property
    def statuses(self) -> list[str]:
        """Ids of the stages, in order of their first appearance."""
        return list(dict.fromkeys(e.id for e in self.events if hasattr(e, "id")))


class Access:
    """Layers of the store as they are; what is remote comes from ``remote``."""

    def __init__(self, store: Store, lease: Lease) -> None:
        self._store = store
        self._lease = lease
        self.remote: dict[str, bytes] = {}
        self.fetched: list[str] = []
        self.asked: list[LayerId] = []

    def directory(self, layer: LayerId, vertex: str, cancel: CancelToken) -> Path:
        self.asked.append(layer)
        path = self._store.layers.directory(layer)
        assert path is not None
        return path

    @contextmanager
    def mounted(
        self, ref: Sequence[LayerId], vertex: str, cancel: CancelToken, *, above: Sequence[Path] = ()
    ) -> Iterator[Path]:
        # The topmost layer stands for the whole: overlay mounts are the sandbox's matter.
        path = self._store.layers.directory(ref[-1])
        assert path is not None
        yield path

    def fetch(self, blob: Descriptor, repositories: Sequence[str], vertex: str, cancel: CancelToken) -> None:
        if not repositories:
            summary = "nowhere"
            raise StoreError(summary)
        self.fetched.append(blob.digest)
        self._store.content.put_bytes(self.remote[blob.digest], self._lease)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def lease(store: Store) -> Iterator[Lease]:
    with store.lease() as held:
        yield held


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def access(store: Store, lease: Lease) -> Access:
    return Access(store, lease)


@pytest.fixture
def no_client() -> Callable[[], RegistryClient]:
    def refuse() -> RegistryClient:
        pytest.fail("no registry is needed here")

    return refuse


@pytest.fixture
def context(
    store: Store, lease: Lease, events: Events, access: Access, no_client: Callable[[], RegistryClient]
) -> ExportContext:
    return ExportContext(
        store=store, lease=lease, access=access, client=no_client, sink=events, cancel=CancelToken()
    )


@pytest.fixture
def make_layer(store: Store, lease: Lease) -> Callable[..., LayerId]:
    def make(files: Mapping[str, bytes], description: str = "RUN make") -> LayerId:
        with store.layers.new(lease, kind="exec", description=description) as new:
            for name, data in files.items():
                path = new.fs / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                os.utime(path, (1_700_000_000, 1_700_000_000))
            return new.commit()

    return make


@pytest.fixture
def make_image(make_layer: Callable[..., LayerId]) -> Callable[..., PlatformImage]:
    def make(platform: Platform = AMD64, layers: int = 2, **config: object) -> PlatformImage:
        ids = [make_layer({f"f{n}": platform.architecture.encode() * 100}, f"RUN {n}") for n in range(layers)]
        history = [History(created_by=f"RUN {n}") for n in range(layers)]
        fields: dict[str, object] = {"platform": platform, "env": ["A=b"], "history": history, **config}
        return PlatformImage(platform, ids, ImageConfig(**fields))  # type: ignore[arg-type]

    return make


@pytest.fixture
def image(make_image: Callable[..., PlatformImage]) -> PlatformImage:
    return make_image()


@pytest.fixture
def images(make_image: Callable[..., PlatformImage]) -> list[PlatformImage]:
    return [make_image(AMD64), make_image(ARM64)]
