"""The merged view of layer directories: what overlayfs shows, from plain directories."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

import pytest

from crossdock.cancel import CancelToken
from crossdock.engine.cache.layerview import OPAQUE_XATTR, LayerView
from crossdock.engine.cache.view import resolve
from crossdock.errors import SolveError

if TYPE_CHECKING:
    from pathlib import Path


class Layers:
    """Builds layers from short texts: ``a/b=text`` file, ``d/`` directory, ``-x`` whiteout, ``d/!`` opaque, ``l>t`` link."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths: list[Path] = []

    def add(self, *entries: Any) -> Any:
        layer = self.root / f"layer{len(self.paths)}"
        layer.mkdir()
        for entry in entries:
            if entry.startswith("-"):
                path = layer / entry[1:]
                path.parent.mkdir(parents=True, exist_ok=True)
                os.mknod(path, stat.S_IFCHR, 0)
            elif entry.endswith("/!"):
                path = layer / entry[:-2]
                path.mkdir(parents=True, exist_ok=True)
                os.setxattr(path, OPAQUE_XATTR, b"y")
            elif entry.endswith("/"):
                (layer / entry).mkdir(parents=True, exist_ok=True)
            elif ">" in entry:
                name, target = entry.split(">")
                (layer / name).parent.mkdir(parents=True, exist_ok=True)
                (layer / name).symlink_to(target)
            else:
                name, text = entry.split("=")
                (layer / name).parent.mkdir(parents=True, exist_ok=True)
                (layer / name).write_text(text)
        self.paths.append(layer)
        return self

    @property
    def view(self) -> Any:
        return LayerView(self.paths)


@pytest.fixture
def layers(tmp_path: Path) -> Any:
    return Layers(tmp_path)


def tree(view: Any, node: Any = None) -> Any:
    """Return ``{path: text or target or '/'}`` by listing, checking that looking up agrees."""
    out = {}
    node = node or view.root()
    for name, kid in view.children(node).items():
        assert view.child(node, name).where == kid.where
        if kid.is_dir:
            out[kid.path] = "/"
            out.update(tree(view, kid))
        elif kid.is_link:
            out[kid.path] = ">" + view.readlink(kid)
        else:
            with os.fdopen(view.open(kid)) as file:
                out[kid.path] = file.read()
    return out


CASES = {
    "files of all layers are merged": (
        [["a=1", "d/x=1"], ["b=2", "d/y=2"]],
        {"a": "1", "b": "2", "d": "/", "d/x": "1", "d/y": "2"},
    ),
    "a higher file hides a lower one": ([["a=1"], ["a=2"]], {"a": "2"}),
    "a whiteout hides a file": ([["a=1", "b=1"], ["-a"]], {"b": "1"}),
    "a whiteout hides a directory": ([["d/x=1"], ["-d"]], {}),
    "what comes above a whiteout is all there is": ([["d/x=1"], ["-d"], ["d/y=3"]], {"d": "/", "d/y": "3"}),
    "an opaque directory hides what is below": (
        [["d/x=1", "d/e/z=1"], ["d/!", "d/y=2"]],
        {"d": "/", "d/y": "2"},
    ),
    "a directory above an opaque one still sees that": (
        [["d/x=1"], ["d/!", "d/y=2"], ["d/z=3"]],
        {"d": "/", "d/y": "2", "d/z": "3"},
    ),
    "a file hides a directory": ([["d/x=1"], ["d=2"]], {"d": "2"}),
    "a directory hides a file, and what lies below that": (
        [["d/x=0"], ["d=1"], ["d/y=2"]],
        {"d": "/", "d/y": "2"},
    ),
    "a whiteout of nothing is nothing": ([["a=1"], ["-zzz"]], {"a": "1"}),
    "no layers are an empty file system": ([], {}),
}


@pytest.mark.parametrize(("given", "expected"), CASES.values(), ids=CASES.keys())
def test_merging(layers: Any, given: Any, expected: Any) -> None:
    for entries in given:
        layers.add(*entries)
    assert tree(layers.view) == expected


RESOLVE = {
    "a plain path": ("a/b", "a/b"),
    "dots do not matter": ("./a//b/.", "a/b"),
    "a link in the middle": ("link/b", "a/b"),
    "an absolute link is taken from the root": ("abs/b", "a/b"),
    "a link cannot lead out": ("out/a/b", "a/b"),
    "links of links": ("twice/b", "a/b"),
    "nothing there": ("a/zzz", None),
    "a file is no directory": ("a/b/c", None),
}


@pytest.mark.parametrize(("path", "expected"), RESOLVE.values(), ids=RESOLVE.keys())
def test_resolving(layers: Any, path: Any, expected: Any) -> None:
    layers.add("a/b=x", "link>a", "abs>/a", "out>../../../../..", "twice>abs")
    node = resolve(layers.view, path, follow=True)
    assert (node.path if node else None) == expected


def path_of(layers: Any, path: str) -> str | None:
    node = resolve(layers.view, path, follow=True)
    return None if node is None else node.path


def test_the_last_link_is_followed_only_on_demand(layers: Any) -> None:
    layers.add("a=x", "l>a")
    link = resolve(layers.view, "l", follow=False)
    assert link is not None
    assert link.is_link
    assert path_of(layers, "l") == "a"


def test_a_loop_of_links_is_an_error(layers: Any) -> None:
    layers.add("a>b", "b>a")
    with pytest.raises(SolveError, match="too many levels of symbolic links"):
        resolve(layers.view, "a", follow=True)


def test_a_link_in_a_lower_layer_may_lead_to_a_higher_one(layers: Any) -> None:
    layers.add("l>d", "d/").add("d/x=2")
    assert path_of(layers, "l/x") == "d/x"


def test_digests_are_those_of_the_topmost_file(layers: Any) -> None:
    import hashlib

    layers.add("a=1").add("a=22")
    view = layers.view
    assert view.digests([view.child(view.root(), "a")], CancelToken()) == [hashlib.sha256(b"22").digest()]
