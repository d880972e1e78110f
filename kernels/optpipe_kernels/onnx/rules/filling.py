"""ATen operations that make tensors of one value, and that put one tensor into another."""

from __future__ import annotations

from typing import cast

from optpipe.program.program import Node

from ..converter import Converter, UnmappedError, argument, integer, tensor_type
from .table import maps


def _filled(c: Converter, node: Node, value: object) -> None:
    result = node.results[0]
    made = c.emit("Expand", c.constant(value, result.type.dtype), c.sizes(result.type.shape))
    c.bind(result, made)


@maps("aten.zeros", "aten.zeros_like", "aten.new_zeros")
def zeros(c: Converter, node: Node) -> None:
    """Zeros of the result's own shape."""
    _filled(c, node, 0)


@maps("aten.ones", "aten.ones_like", "aten.new_ones")
def ones(c: Converter, node: Node) -> None:
    """Ones of the result's own shape."""
    _filled(c, node, 1)


@maps("aten.full", "aten.full_like", "aten.new_full")
def full(c: Converter, node: Node) -> None:
    """One number everywhere."""
    value = argument(node, 2 if node.op == "aten.new_full" else 1, "fill_value")
    if not isinstance(value, bool | int | float):
        raise UnmappedError(f"'{value}' is no number.")
    _filled(c, node, value)


@maps("aten.copy")
def copy(c: Converter, node: Node) -> None:
    """The second tensor, in the shape of the first."""
    given, result = tensor_type(node.args[1], c.program), node.results[0]
    if given.dtype != result.type.dtype:
        raise UnmappedError(f"A copy from {given.dtype} to {result.type.dtype} has no mapping.")
    name = c.name(node.args[1])
    same = tuple(given.shape) == tuple(result.type.shape)
    c.bind(result, name if same else c.emit("Expand", name, c.sizes(result.type.shape)))


@maps("aten.scatter.value")
def scatter_value(c: Converter, node: Node) -> None:
    """A number put where an index says."""
    where = c.name(node.args[2])
    number = c.operand(argument(node, 3, "value"), node.results[0].type.dtype)
    values = c.emit("Expand", number, c.emit("Shape", where))
    made = c.emit("ScatterElements", c.name(node.args[0]), where, values, axis=integer(node, 1, "dim"))
    c.bind(node.results[0], made)


@maps("aten.slice_scatter")
def slice_scatter(c: Converter, node: Node) -> None:
    """A tensor put into a window of one dimension."""
    dim, step = integer(node, 2, "dim", 0), integer(node, 5, "step", 1)
    begin, end = argument(node, 3, "start") or 0, argument(node, 4, "end")
    size = node.results[0].type.shape[dim]
    if not all(isinstance(it, int) for it in (begin, end, size)):
        raise UnmappedError(f"A slice from {begin} to {end} of {size} has no mapping.")
    window = range(cast("int", size))[cast("int", begin) : cast("int", end) : step]
    _put(c, node, c.name(node.args[1]), dim, window)


@maps("aten.select_scatter")
def select_scatter(c: Converter, node: Node) -> None:
    """A tensor put at one place of a dimension."""
    dim, place = integer(node, 2, "dim"), integer(node, 3, "index")
    size = node.results[0].type.shape[dim]
    if not isinstance(size, int):
        raise UnmappedError(f"A place of {size} has no mapping.")
    source = c.emit("Unsqueeze", c.name(node.args[1]), c.constant([dim]))
    _put(c, node, source, dim, range(size)[place : place + 1 or None])


def _put(c: Converter, node: Node, source: str, dim: int, window: range) -> None:
    """The new parts behind the old ones, then each place from where it comes."""
    size = cast("int", node.results[0].type.shape[dim])
    origin = list(range(size))
    for i, place in enumerate(window):
        origin[place] = size + i
    both = c.emit("Concat", c.name(node.args[0]), source, axis=dim)
    c.bind(node.results[0], c.emit("Gather", both, c.constant(origin), axis=dim))
