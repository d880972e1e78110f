"""Rules for the ATen operations that only look at a tensor in another way: they cost nothing."""

from __future__ import annotations

from typing import cast

from optpipe.program.program import Arg, Node

from .builder import Builder, Unsupported, sizes
from .rules import argument, dimension, integer, lowers, number


@lowers("aten.reshape", "aten.view", "aten._unsafe_view", "aten.flatten.using_ints", "aten.unflatten.int",
        "aten.unsqueeze", "aten.squeeze", "aten.squeeze.dim", "aten.squeeze.dims")  # fmt: skip
def reshape(b: Builder, node: Node) -> None:
    """The result's own sizes say everything; memory moves only when it must."""
    x, wanted = b.view(node.args[0]), sizes(node.results[0].type.shape)
    view = x.reshape(wanted)
    b.bind(node.results[0], view if view is not None else b.dense(x).reshape(wanted))


@lowers("aten.permute", "aten.transpose.int", "aten.t")
def permute(b: Builder, node: Node) -> None:
    """Another order of strides."""
    x = b.view(node.args[0])
    if node.op == "aten.permute":
        order = [dimension(int(number(d)), x.rank) for d in cast("tuple[Arg, ...]", node.args[1])]
    else:
        order = list(range(x.rank))
        first, second = (
            (0, 1) if node.op == "aten.t" else (integer(node, 1, "dim0"), integer(node, 2, "dim1"))
        )
        first, second = dimension(first, x.rank), dimension(second, x.rank)
        order[first], order[second] = order[second], order[first]
    b.bind(node.results[0], x.permute(tuple(order)))


@lowers("aten.expand", "aten.expand_as")
def expand(b: Builder, node: Node) -> None:
    """Strides of zero."""
    b.bind(node.results[0], b.view(node.args[0]).expand(sizes(node.results[0].type.shape)))


@lowers("aten.slice.Tensor")
def slice_(b: Builder, node: Node) -> None:
    """A window of one dimension; steps of one only."""
    x, dim = b.view(node.args[0]), integer(node, 1, "dim", 0)
    if integer(node, 4, "step", 1) != 1:
        raise Unsupported("a slice with a step has no kernel")
    dim = dimension(dim, x.rank)
    begin = argument(node, 2, "start") or 0
    length = x.size[dim].fixed
    if not isinstance(begin, int) or (begin < 0 and length is None):
        raise Unsupported(f"a slice from {begin} has no kernel")
    begin = begin if begin >= 0 else max(begin + cast("int", length), 0)
    b.bind(node.results[0], x.slice(dim, begin, sizes(node.results[0].type.shape)[dim]))


@lowers("aten.select.int")
def select_index(b: Builder, node: Node) -> None:
    """One index of one dimension."""
    x, index = b.view(node.args[0]), integer(node, 2, "index")
    dim = dimension(integer(node, 1, "dim"), x.rank)
    length = x.size[dim].fixed
    if index < 0 and length is None:
        raise Unsupported("a select from the end of a dimension that steps change has no kernel")
    b.bind(node.results[0], x.select(dim, index if index >= 0 else index + cast("int", length)))


@lowers("aten.split.Tensor", "aten.split_with_sizes", "aten.chunk")
def split(b: Builder, node: Node) -> None:
    """Windows side by side; nothing where a gated product makes neither half."""
    if node.results[0].name in b.siblings.silent:
        return
    x = b.view(node.args[0])
    dim = dimension(integer(node, 2, "dim", 0), x.rank)
    begin = 0
    for value in node.results:
        extent = sizes(value.type.shape)[dim]
        if extent.fixed is None:
            raise Unsupported("a split of a dimension that steps change has no kernel")
        b.bind(value, x.slice(dim, begin, extent))
        begin += extent.fixed


@lowers("aten.alias", "aten.clone", "aten.contiguous", "aten.detach")
def alias(b: Builder, node: Node) -> None:
    """Values are never changed in place, so a copy is the thing itself."""
    b.bind(node.results[0], b.view(node.args[0]))
