"""What all ops share: the node they carry out, its name and how it reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.errors import SolveError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crossdock.engine.cache.select import Selector
    from crossdock.engine.ops.env import OpEnv
    from crossdock.engine.solver import OpContext, Result
    from crossdock.llb.graph import Node

__all__ = ["BaseOp", "selector_digest"]


class BaseOp:
    """An op at work on ``node``."""

    __slots__ = ("env", "node", "vertex")

    def __init__(self, node: Node, env: OpEnv) -> None:
        self.node = node
        self.env = env
        #: digest of the vertex
        self.vertex: str = node.digest

    def content_digest(self, index: int, result: Result, ctx: OpContext) -> str:
        """Return the digest of what the op reads of an input: of all of it, unless it says otherwise."""
        return self.digest_of(result, self.selectors().get(index) or [_everything()], ctx)

    def selectors(self) -> dict[int, list[Selector]]:
        """Return what is read of the inputs that are keyed by content."""
        return {}

    def digest_of(self, result: Result, selectors: Sequence[Selector], ctx: OpContext) -> str:
        """Return the digest of parts of an input."""
        from crossdock.engine.cache.checksum import content_digest

        view = self.env.view(result, self.vertex, ctx)
        return content_digest(view, sorted(set(selectors)), ctx.cancel)

    def warn(self, ctx: OpContext, text: str) -> None:
        """Show a warning at the vertex."""
        from crossdock.progress.events import VertexWarning

        ctx.sink.emit(VertexWarning(vertex=self.vertex, level=1, short=text))

    def input(self, inputs: Sequence[Result], index: int) -> Result:
        """Return an input by its index. Raises: SolveError when the definition lies."""
        if not 0 <= index < len(inputs):
            summary = f"malformed definition: input {index} is used, and there are {len(inputs)}"
            raise SolveError(summary, vertex=self.vertex, vertex_name=self.node.name, source=self.node.source)
        return inputs[index]


def _everything() -> Selector:
    from crossdock.engine.cache.select import Selector

    return Selector()


def selector_digest(selectors: Sequence[Selector]) -> str:
    """Return what identifies the selected paths themselves."""
    from crossdock.engine.solver.keys import KeyHasher

    hasher = KeyHasher("selector")
    for selector in sorted(set(selectors)):
        hasher.text("path", selector.path).number("wildcard", selector.wildcard).number(
            "follow", selector.follow
        )
        hasher.texts("include", selector.include).texts("exclude", selector.exclude)
        hasher.texts("required", selector.required)
    return hasher.finish()
