"""What is done for an export before it begins: packing is found in the store, notes are kept, leaving it ends the rest."""

from __future__ import annotations

import os
import stat
import threading
from typing import TYPE_CHECKING

import pytest

from crossdock.cancel import CancelToken
from crossdock.engine.exporters import ExporterSpec, begin_ahead, export
from crossdock.engine.exporters.ahead import Sent
from crossdock.errors import Cancelled

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from crossdock.engine.exporters import ExportContext, PlatformImage
    from crossdock.engine.store import Store
    from unit.engine.exporters.conftest import Access, Events


def archive(path: Path, **attrs: str) -> ExporterSpec:
    return ExporterSpec("oci", {"dest": str(path), **attrs})


@pytest.mark.parametrize("compression", ["gzip", "zstd", "uncompressed"])
def test_layers_are_packed_once_as_the_export_wants_them(
    context: ExportContext,
    access: Access,
    images: Sequence[PlatformImage],
    tmp_path: Path,
    compression: str,
) -> None:
    specs = [archive(tmp_path / "out.tar", compression=compression)]
    with begin_ahead(specs, context=context, multi_platform=True) as ahead:
        ahead.add(images[0])
        result = export(images, specs, context=context, multi_platform=True, ahead=ahead)
    packed = [*images[0].ref, *images[1].ref]
    assert sorted(access.asked) == sorted(packed), "each layer was read once"
    plain = export(images, specs, context=context, multi_platform=True)
    assert result.merged["containerimage.digest"] == plain.merged["containerimage.digest"]


def test_an_epoch_cuts_the_times_of_what_is_packed_ahead(
    context: ExportContext, access: Access, images: Sequence[PlatformImage], tmp_path: Path
) -> None:
    context.epoch_s = 1
    specs = [archive(tmp_path / "out.tar", **{"rewrite-timestamp": "true"})]
    with begin_ahead(specs, context=context, multi_platform=True) as ahead:
        ahead.add(images[0])
        export(images, specs, context=context, multi_platform=True, ahead=ahead)
    assert len(access.asked) == 4


def test_outputs_that_hold_no_layers_pack_nothing(
    context: ExportContext, access: Access, images: Sequence[PlatformImage], tmp_path: Path
) -> None:
    specs = [ExporterSpec("local", {"dest": str(tmp_path / "out")}), ExporterSpec("cacheonly", {})]
    with begin_ahead(specs, context=context, multi_platform=True) as ahead:
        ahead.add(images[0])
    assert access.asked == []


def test_what_packing_has_to_say_is_said_by_the_export(
    context: ExportContext, events: Events, images: Sequence[PlatformImage], store: Store, tmp_path: Path
) -> None:
    folder = store.layers.directory(images[0].ref[0])
    assert folder is not None
    os.mknod(folder / "listening", stat.S_IFSOCK | 0o600)
    specs = [archive(tmp_path / "out.tar")]
    with begin_ahead(specs, context=context, multi_platform=True) as ahead:
        ahead.add(images[0])
        export(images, specs, context=context, multi_platform=True, ahead=ahead)
    said = [e for e in events.events if b"listening is a socket" in getattr(e, "data", b"")]
    assert len(said) == 1


def test_a_failure_ahead_is_the_export_s_to_tell(
    context: ExportContext, images: Sequence[PlatformImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt fails; the export packs the layer itself."""
    real, tried = context.access.directory, []

    def directory(*args: object) -> Path:
        tried.append(args[0])
        if len(tried) == 1:
            raise OSError(5, "Input/output error")
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(context.access, "directory", directory)
    specs = [archive(tmp_path / "out.tar")]
    with begin_ahead(specs, context=context, multi_platform=True) as ahead:
        ahead.add(images[0])
        ahead._threads[0].join()
        export(images, specs, context=context, multi_platform=True, ahead=ahead)
    assert (tmp_path / "out.tar").exists()
    assert tried.count(tried[0]) == 2


class TestSent:
    def test_a_blob_is_taken_on_once(self) -> None:
        sent = Sent()
        assert not sent.any("r/app")
        assert sent.begin("r/app", "sha256:a") is not None
        assert sent.begin("r/app", "sha256:a") is None
        assert sent.begin("r/other", "sha256:a") is not None
        assert sent.any("r/app")
        assert sent.find("r/app", "sha256:b") is None

    def test_who_follows_hears_how_far_it_is_and_that_it_arrived(self) -> None:
        sending = Sent().begin("r/app", "sha256:a")
        assert sending is not None
        heard: list[int] = []
        sending.moved(10)

        def rest() -> None:
            sending.moved(20)
            sending.end(arrived=True)

        done = threading.Thread(target=rest)
        box: list[bool] = []

        def progress(position: int) -> None:
            heard.append(position)
            if position == 10:
                done.start()

        box.append(sending.follow(progress, CancelToken()))
        done.join()
        assert box == [True]
        assert heard == [10, 20]

    def test_one_that_did_not_arrive_is_the_follower_s(self) -> None:
        sending = Sent().begin("r/app", "sha256:a")
        assert sending is not None
        sending.end()
        assert sending.follow(lambda _: None, CancelToken()) is False

    def test_a_cancelled_follower_does_not_wait(self) -> None:
        sending = Sent().begin("r/app", "sha256:a")
        assert sending is not None
        cancel = CancelToken()
        threading.Timer(0.01, cancel.cancel).start()
        with pytest.raises(Cancelled):
            sending.follow(lambda _: None, cancel)
