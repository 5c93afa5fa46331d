"""What exporters take and give: values, and the seams to the rest of the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from crossdock.record import NamedTuple, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from crossdock.cancel import CancelToken
    from crossdock.engine.exporters.ahead import Sent
    from crossdock.engine.exporters.attestation import Attestation, AttestationManifest
    from crossdock.engine.store import LayerId, Lease, Store
    from crossdock.image.config import ImageConfig
    from crossdock.image.descriptor import Descriptor
    from crossdock.image.digest import Digest
    from crossdock.image.manifest import Index, Manifest
    from crossdock.image.platform import Platform
    from crossdock.progress.events import EventSink
    from crossdock.registry.client import RegistryClient

__all__ = [
    "BuiltImage",
    "ExportContext",
    "ExportResult",
    "ExporterSpec",
    "InlineCache",
    "LayerAccess",
    "Output",
    "PlatformImage",
    "PlatformManifest",
]


class Output(Protocol):
    """Where an archive goes when it goes to no file: standard output, a request to a Docker Engine."""

    def write(self, data: bytes, /) -> object:
        """Take all of ``data``; may block, may raise."""
        ...


class ExporterSpec(NamedTuple):
    """One ``-o``: ``type`` and its attributes as given, ``dest`` among them."""

    type: str
    attrs: Mapping[str, str]
    #: takes the archive of ``oci``, ``docker`` or ``tar`` instead of ``dest``
    output: Output | None = None


class PlatformImage(NamedTuple):
    """A result for one platform: its layers, bottom first, and its config without ``rootfs``."""

    platform: Platform
    ref: Sequence[LayerId]
    config: ImageConfig | None = None
    #: of the image it was built on: its layers and history keep their times
    base_config: ImageConfig | None = None
    #: what is to be attested beside it
    attestations: Sequence[Attestation] = ()


class LayerAccess(Protocol):
    """What exporters ask of the engine when they need files rather than blobs."""

    def directory(self, layer: LayerId, vertex: str, cancel: CancelToken) -> Path:
        """Return the layer's overlay directory, fetched and unpacked when it is remote.

        Progress is shown under ``vertex``.
        """
        ...

    def mounted(
        self, ref: Sequence[LayerId], vertex: str, cancel: CancelToken, *, above: Sequence[Path] = ()
    ) -> AbstractContextManager[Path]:
        """Show the layers, and plain directories above them, as one read-only file system, for the length of the block."""
        ...

    def fetch(self, blob: Descriptor, repositories: Sequence[str], vertex: str, cancel: CancelToken) -> None:
        """Have a blob in the store, fetched from one of the repositories when it is not there.

        Raises: StoreError when nobody is known to have it; RegistryError, DigestMismatch.
        """
        ...


class InlineCache(Protocol):
    """Makes what an image's config tells of the build cache; ``""`` when there is nothing to tell."""

    def __call__(self, platform: Platform, layers: Sequence[LayerId], blobs: Sequence[Digest], /) -> str:
        """Return the value for ``moby.buildkit.cache.v0``."""
        ...


def _nothing() -> None:
    """Do nothing."""


class ExportContext:
    """What an export works with. ``client`` is asked for only when a registry is needed."""

    __slots__ = (
        "access",
        "caller",
        "cancel",
        "client",
        "epoch_s",
        "inline",
        "lease",
        "made",
        "sent",
        "sink",
        "store",
        "written",
    )

    def __init__(
        self,
        *,
        store: Store,
        lease: Lease,
        access: LayerAccess,
        client: Callable[[], RegistryClient],
        sink: EventSink,
        cancel: CancelToken,
        epoch_s: int | None = None,
        caller: str = "",
    ) -> None:
        self.store = store
        self.lease = lease
        self.access = access
        self.client = client
        self.sink = sink
        self.cancel = cancel
        #: SOURCE_DATE_EPOCH of the build; an exporter's ``source-date-epoch`` goes before it
        self.epoch_s = epoch_s
        #: tells the exports of callers apart that are shown together, as bake shows its targets
        self.caller = caller
        #: makes the inline cache of an image, base64 of JSON: of its platform, layers and their blobs
        self.inline: InlineCache | None = None
        #: digests of blobs that were written for it: a registry hardly has them
        self.made: set[str] = set()
        #: blobs that were sent before the export began
        self.sent: Sent | None = None
        #: is told that all is in the store, before anything is pushed
        self.written: Callable[[], None] = _nothing

    def with_cancel(self, cancel: CancelToken) -> ExportContext:
        """Return the same context with another token."""
        other = ExportContext(
            store=self.store,
            lease=self.lease,
            access=self.access,
            client=self.client,
            sink=self.sink,
            cancel=cancel,
            epoch_s=self.epoch_s,
            caller=self.caller,
        )
        other.inline = self.inline
        other.made = self.made
        other.sent = self.sent
        other.written = self.written
        return other


class PlatformManifest(NamedTuple):
    """The assembled image of one platform."""

    platform: Platform
    #: as the index holds it: with platform and annotations
    descriptor: Descriptor
    manifest: Manifest
    config: ImageConfig
    config_raw: bytes
    #: repositories (``host/name``) known to hold a layer, by digest
    repositories: Mapping[Digest, Sequence[str]]
    layer_ids: Sequence[LayerId]


class BuiltImage(Record, kw_only=False):
    """An assembled image: one manifest, or an index of several."""

    descriptor: Descriptor
    raw: bytes
    platforms: Sequence[PlatformManifest]
    index: Index | None
    #: in the index after the images
    attestations: Sequence[AttestationManifest] = ()


class ExportResult(NamedTuple):
    """What was exported; ``responses`` has BuildKit's keys, one mapping per exporter."""

    responses: Sequence[Mapping[str, object]]
    #: by exporter; None for those that make none
    images: Sequence[BuiltImage | None] = ()

    @property
    def image(self) -> BuiltImage | None:
        """Of the first exporter that makes images; None when none does."""
        return next((image for image in self.images if image is not None), None)

    @property
    def merged(self) -> dict[str, object]:
        """All responses in one mapping, later exporters over earlier."""
        merged: dict[str, object] = {}
        for response in self.responses:
            merged.update(response)
        return merged
