"""LLB: the graph that frontends make and both engines run.

``ops`` are the operations, ``graph`` joins them, ``codec`` reads and writes BuildKit's protobuf definition.
"""

from crossdock.llb.graph import Definition, Graph, Node, Output, walk

__all__ = ["Definition", "Graph", "Node", "Output", "walk"]
