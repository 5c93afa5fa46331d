"""Two machines that write one cache reference at the same time: two stores, a real registry, and what lies between."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from integration.cache.cachekit import Builder, all_at_once, contexts, steps_run
from support.httprelay import Answer, HttpRelay, Seen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import services
    from support.servers import BaseImages

pytestmark = pytest.mark.needs("base", "crun", "userns", "overlay")


@pytest.fixture
def relay(registry: services.Registry) -> Iterator[Callable[..., HttpRelay]]:
    """Makes ways to the registry that behave differently."""
    made: list[HttpRelay] = []

    def make(**behaviour: object) -> HttpRelay:
        made.append(HttpRelay(registry.host, **behaviour))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def folders(tmp_path: Path, base: BaseImages) -> list[Path]:
    return contexts(tmp_path, base.index, "xyzwvu")


def at_once(builder: Builder, jobs: list[tuple[Path, str]]) -> None:
    """Build each context with a store of its own and export to its reference."""

    def run(folder: Path, ref: str) -> None:
        builder(folder.name, folder, "--cache-to", f"type=registry,ref={ref},mode=max")

    all_at_once(run, jobs)


def is_put_of_tag(seen: Seen) -> bool:
    return seen.method == "PUT" and seen.path.endswith("/manifests/cache")


def all_found(builder: Builder, folders: list[Path], ref: str) -> None:
    for number, folder in enumerate(folders):
        done = builder(f"fresh{number}", folder, "--cache-from", ref)
        assert steps_run(done.err) == set(), folder.name


def test_six_machines_at_once(builder: Builder, folders: list[Path], repository: str) -> None:
    at_once(builder, [(folder, f"{repository}:cache") for folder in folders])
    all_found(builder, folders, f"{repository}:cache")


def test_two_machines_that_look_before_either_writes(
    builder: Builder, folders: list[Path], repository: str, relay: Callable[..., HttpRelay]
) -> None:
    """Both have seen the same state when the first of them writes."""
    both = threading.Barrier(2)
    met: set[str] = set()

    def meet(seen: Seen) -> None:
        if is_put_of_tag(seen) and seen.server not in met:
            met.add(seen.server)
            both.wait(60)

    path = repository.partition("/")[2]
    builder("first", folders[2], "--cache-to", f"type=registry,ref={repository}:cache,mode=max")
    ways = [relay(before=meet), relay(before=meet)]
    at_once(builder, [(folders[n], f"{ways[n].host}/{path}:cache") for n in (0, 1)])
    assert len(met) == 2
    all_found(builder, folders[:3], f"{repository}:cache")


def test_a_slow_way_gives_others_more_time(
    builder: Builder, folders: list[Path], repository: str, relay: Callable[..., HttpRelay]
) -> None:
    """The second machine writes more than a second after it looked: the first still sees that it was overwritten."""
    first_wrote = threading.Event()
    second_looked = threading.Event()

    def first(seen: Seen) -> None:
        if is_put_of_tag(seen) and not first_wrote.is_set():
            assert second_looked.wait(60)
            threading.Event().wait(0.5)  # this way is slow
            first_wrote.set()

    def second(seen: Seen) -> None:
        if is_put_of_tag(seen) and not second_looked.is_set():
            second_looked.set()
            assert first_wrote.wait(60)
            threading.Event().wait(1.0)

    path = repository.partition("/")[2]
    ways = [relay(before=first), relay(before=second)]
    at_once(builder, [(folders[n], f"{ways[n].host}/{path}:cache") for n in (0, 1)])
    all_found(builder, folders[:2], f"{repository}:cache")


def test_a_registry_that_knows_conditions_loses_nothing_however_slow(
    builder: Builder, folders: list[Path], repository: str, relay: Callable[..., HttpRelay]
) -> None:
    """One machine stands still between its look and its write, for longer than the other takes for everything."""
    other_done = threading.Event()
    stopped = threading.Event()

    def stands_still(seen: Seen) -> None:
        if is_put_of_tag(seen) and not stopped.is_set():
            stopped.set()
            assert other_done.wait(60)

    path = repository.partition("/")[2]
    builder("first", folders[2], "--cache-to", f"type=registry,ref={repository}:cache,mode=max")
    slow = relay(before=stands_still, conditions=True)
    thread = threading.Thread(target=at_once, args=(builder, [(folders[0], f"{slow.host}/{path}:cache")]))
    thread.start()
    assert stopped.wait(60)
    builder("other", folders[1], "--cache-to", f"type=registry,ref={repository}:cache,mode=max")
    other_done.set()
    thread.join()
    assert 412 in slow.statuses
    all_found(builder, folders[:3], f"{repository}:cache")


def test_a_registry_that_never_recognises_its_own_tags_is_written_to(
    builder: Builder, folders: list[Path], repository: str, relay: Callable[..., HttpRelay]
) -> None:
    path = repository.partition("/")[2]
    builder("first", folders[0], "--cache-to", f"type=registry,ref={repository}:cache,mode=max")
    wrong = relay(conditions=True, never_matches=True)
    builder("second", folders[1], "--cache-to", f"type=registry,ref={wrong.host}/{path}:cache,mode=max")
    assert 412 in wrong.statuses
    all_found(builder, folders[:2], f"{repository}:cache")


@pytest.mark.slow
def test_a_reference_that_others_keep_writing_is_a_warning(
    builder: Builder, folders: list[Path], repository: str, relay: Callable[..., HttpRelay]
) -> None:
    """The build itself is done; its layers are there."""

    def moved(seen: Seen, answer: Answer) -> Answer:
        if seen.method == "HEAD" and seen.path.endswith("/manifests/cache") and answer.status == 200:
            answer.headers["docker-content-digest"] = f"sha256:{seen.number:064x}"
        return answer

    path = repository.partition("/")[2]
    builder("first", folders[0], "--cache-to", f"type=registry,ref={repository}:cache,mode=max")
    busy = relay(change=moved)
    done = builder("second", folders[1], "--cache-to", f"type=registry,ref={busy.host}/{path}:cache,mode=max")
    assert "kept writing to" in done.err
