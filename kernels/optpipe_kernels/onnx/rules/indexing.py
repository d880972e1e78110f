"""ATen operations that pick by index."""

from __future__ import annotations

from optpipe.program.program import Node

from ..converter import Converter, UnmappedError, argument, integer, tensor_type
from .table import maps
from .tokens import ids_in_rows


@maps("aten.embedding")
def embedding(c: Converter, node: Node) -> None:
    """Rows of a table."""
    table, rows = c.name(node.args[0]), ids_in_rows(c, node.args[1])
    if rows is not None:
        c.bind_rows(node.results[0], c.emit("Gather", table, rows, axis=0))
    else:
        c.bind(node.results[0], c.emit("Gather", table, c.name(node.args[1]), axis=0))


@maps("aten.index_select")
def index_select(c: Converter, node: Node) -> None:
    """Places of one dimension."""
    axis = integer(node, 1, "dim")
    c.bind(node.results[0], c.emit("Gather", c.name(node.args[0]), c.name(node.args[2]), axis=axis))


@maps("aten.index.Tensor")
def index(c: Converter, node: Node) -> None:
    """Places of one dimension; the others are whole."""
    places = node.args[1]
    assert isinstance(places, tuple), "aten.index takes a list"
    given = [(axis, it) for axis, it in enumerate(places) if it is not None]
    if len(given) != 1:
        raise UnmappedError("aten.index over several dimensions at once has no mapping.")
    axis, place = given[0]
    if tensor_type(place, c.program).dtype not in ("i64", "i32"):
        raise UnmappedError("aten.index by a mask has no mapping.")
    c.bind(node.results[0], c.emit("Gather", c.name(node.args[0]), c.name(place), axis=axis))


@maps("aten.gather")
def gather(c: Converter, node: Node) -> None:
    """An index for every element."""
    axis = integer(node, 1, "dim")
    c.bind(node.results[0], c.emit("GatherElements", c.name(node.args[0]), c.name(node.args[2]), axis=axis))


@maps("aten.scatter.src")
def scatter(c: Converter, node: Node) -> None:
    """Elements put where an index says."""
    x, where, values = (c.name(node.args[i]) for i in (0, 2, 3))
    made = c.emit("ScatterElements", x, where, values, axis=integer(node, 1, "dim"))
    c.bind(node.results[0], made)


@maps("aten.topk")
def topk(c: Converter, node: Node) -> None:
    """The largest, largest first."""
    axis, largest = integer(node, 2, "dim", -1), argument(node, 3, "largest", True)
    count = c.constant([integer(node, 1, "k")])
    made = c.emit("TopK", c.name(node.args[0]), count, outputs=2, axis=axis, largest=int(bool(largest)))
    for value, name in zip(node.results, made, strict=True):
        c.bind(value, name)


@maps("aten.argmax")
def argmax(c: Converter, node: Node) -> None:
    """Where the largest is."""
    keep = int(bool(argument(node, 2, "keepdim", False)))
    made = c.emit("ArgMax", c.name(node.args[0]), axis=integer(node, 1, "dim"), keepdims=keep)
    c.bind(node.results[0], made)
