"""A registry whose uploads open a gate: steps wait there until a layer of another platform has arrived."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from support.httprelay import HttpRelay
from support.scripted import Reply

if TYPE_CHECKING:
    from collections.abc import Iterator

    import services
    from support.httprelay import Answer, Seen

WAIT_S = 60
#: the emulated platform waits at the gate; the other one has nothing to wait for
DOCKERFILE = """\
FROM {base}
ARG TARGETARCH
RUN echo "$TARGETARCH" > /made; if [ "$TARGETARCH" = arm64 ]; then wget -q -O /dev/null http://{gate}/gate || exit 7; fi
"""


class Gate:
    """A registry whose uploads are watched, and an address that answers once one has arrived."""

    def __init__(self, relay: HttpRelay) -> None:
        self.relay = relay
        #: when an upload has arrived, or whatever a case waits for
        self.open = threading.Event()
        self.asked = threading.Event()
        self.status = 200
        self.uploads = 0
        self.manifests = 0
        relay.answer = self.answer
        relay.change = self.change

    def answer(self, seen: Seen) -> Reply | None:
        if seen.path != "/gate":
            return self.upload(seen)
        self.asked.set()
        return Reply(self.status if self.open.wait(WAIT_S) else 504)

    def upload(self, seen: Seen) -> Reply | None:
        """What a case does to other requests."""
        return None

    def change(self, seen: Seen, answer: Answer) -> Answer:
        if seen.method == "PUT" and answer.status == 201:
            if "/blobs/uploads/" in seen.path:
                self.uploads += 1
                self.arrived()
            else:
                self.manifests += 1
        return answer

    def arrived(self) -> None:
        self.open.set()


@pytest.fixture
def gate(registry: services.Registry) -> Iterator[Gate]:
    """A gate before the shared registry (needs "registry")."""
    relay = HttpRelay(registry.host)
    made = Gate(relay)
    yield made
    made.open.set()
    relay.close()
