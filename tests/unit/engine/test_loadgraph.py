"""The order in which the outputs of a solve are started, and that in which they are shown."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from crossdock.engine.facade_solve import display_name, load_graph
from crossdock.image.platform import local_platform, parse_platform
from crossdock.llb.graph import Node, Output
from crossdock.llb.ops import FileAction, FileActionMkDir, FileOp, OpMetadata

NATIVE = str(local_platform())
FOREIGN = "linux/s390x" if local_platform().architecture != "s390x" else "linux/amd64"


def made(platform: str, name: str, *inputs: Output) -> Output:
    action = FileAction(
        action=FileActionMkDir(path=f"/{name}", mode=0o755),
        input=0 if inputs else -1,
        secondary_input=-1,
        output=0,
    )
    metadata = OpMetadata(description={"llb.customname": name})
    return Output(Node(FileOp((action,)), inputs, platform=parse_platform(platform), metadata=metadata))


def load(*outputs: Output) -> Any:
    env = cast("Any", SimpleNamespace(pack=None, lenient_owner=False))
    return load_graph(outputs, env=env, locals_=cast("Any", None), images=cast("Any", None), nonce=str)


@pytest.mark.parametrize("first", [NATIVE, FOREIGN])
def test_what_is_emulated_starts_first_and_is_shown_where_it_was_asked_for(first: str) -> None:
    second = FOREIGN if first == NATIVE else NATIVE
    below = made(NATIVE, "shared")
    one = made(first, "one-2", made(first, "one-1", below))
    two = made(second, "two-2", made(second, "two-1", below))
    graph = load(one, two)
    shown = [display_name(node) for node in graph.nodes.values()]
    assert shown == ["shared", "one-1", "one-2", "two-1", "two-2"]
    started = [display_name(graph.nodes[spec.id]) for spec in graph.specs]
    emulated, native = ("one", "two") if first == FOREIGN else ("two", "one")
    assert started == ["shared", f"{emulated}-1", f"{emulated}-2", f"{native}-1", f"{native}-2"]
    assert [display_name(graph.nodes[vertex]) for vertex, _ in graph.outputs] == ["one-2", "two-2"]


def test_one_output_is_loaded_as_it_is() -> None:
    graph = load(made(FOREIGN, "two", made(NATIVE, "one")))
    assert [display_name(node) for node in graph.nodes.values()] == ["one", "two"]
