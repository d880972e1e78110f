"""ATen operations that look at a tensor in another way."""

from __future__ import annotations

from typing import cast

from optpipe.program.program import Arg, Node, Value

from ..converter import Converter, UnmappedError, argument, integer, tensor_type
from .table import maps

_END = (1 << 63) - 1


@maps("aten.reshape", "aten.view", "aten._unsafe_view", "aten.flatten.using_ints", "aten.unflatten.int",
      "aten.unsqueeze", "aten.squeeze", "aten.squeeze.dim", "aten.squeeze.dims",
      "aten.reshape_as", "aten.view_as")  # fmt: skip
def reshape(c: Converter, node: Node) -> None:
    """The result's own sizes say everything; rows and columns do not see what is behind them."""
    source, result = node.args[0], node.results[0]
    if isinstance(source, Value) and _per_token(source) and _per_token(result):
        c.demand(source)
        if source.name in c.rows:
            c.bind_rows(result, c.rows[source.name])
            return
    c.bind(node.results[0], c.emit("Reshape", c.name(node.args[0]), c.shape_of(node.results[0])))


def _per_token(value: Value) -> bool:
    shape = value.type.shape
    return len(shape) > 1 and shape[0] == "T" and all(isinstance(it, int) for it in shape[1:])


@maps("aten.permute", "aten.transpose.int", "aten.t")
def permute(c: Converter, node: Node) -> None:
    """Another order of dimensions."""
    rank = len(node.results[0].type.shape)
    order = list(range(rank))
    if node.op == "aten.permute":
        order = [int(cast("int", it)) % rank for it in cast("tuple[Arg, ...]", node.args[1])]
    else:
        pair = (0, 1) if node.op == "aten.t" else (integer(node, 1, "dim0"), integer(node, 2, "dim1"))
        first, second = (it % rank for it in pair)
        order[first], order[second] = order[second], order[first]
    c.bind(node.results[0], c.emit("Transpose", c.name(node.args[0]), perm=order))


@maps("aten.expand", "aten.expand_as")
def expand(c: Converter, node: Node) -> None:
    """Dimensions of one are repeated. Expand broadcasts both ways, so a size that stays may be given as 1."""
    given, wanted = tensor_type(node.args[0], c.program).shape, node.results[0].type.shape
    before = (1,) * (len(wanted) - len(given)) + tuple(given)
    sizes = [1 if old == new else new for old, new in zip(before, wanted, strict=True)]
    c.bind(node.results[0], c.emit("Expand", c.name(node.args[0]), c.sizes(sizes)))


@maps("aten.broadcast_tensors")
def broadcast_tensors(c: Converter, node: Node) -> None:
    """Each expanded to the shape of all."""
    for value, arg in zip(node.results, cast("tuple[Arg, ...]", node.args[0]), strict=True):
        c.bind(value, c.emit("Expand", c.name(arg), c.sizes(value.type.shape)))


@maps("aten.repeat")
def repeat(c: Converter, node: Node) -> None:
    """The whole tensor, several times along each dimension."""
    times = node.args[1]
    if not isinstance(times, tuple) or not all(isinstance(it, int) for it in times):
        raise UnmappedError(f"{node.op} by {times} has no mapping.")
    rank = len(tensor_type(node.args[0], c.program).shape)
    x = c.name(node.args[0])
    if extra := len(times) - rank:
        x = c.emit("Unsqueeze", x, c.constant(list(range(extra))))
    c.bind(node.results[0], c.emit("Tile", x, c.constant(list(times))))


@maps("aten.repeat_interleave.self_int")
def repeat_interleave(c: Converter, node: Node) -> None:
    """Each element several times in a row: a new dimension behind it, repeated and folded in."""
    times, dim = integer(node, 1, "repeats"), integer(node, 2, "dim")
    rank = len(node.results[0].type.shape)
    at = dim % rank + 1
    wide = c.emit("Unsqueeze", c.name(node.args[0]), c.constant([at]))
    sizes = [1] * (rank + 1)
    sizes[at] = times
    spread = c.emit("Expand", wide, c.constant(sizes))
    c.bind(node.results[0], c.emit("Reshape", spread, c.shape_of(node.results[0])))


@maps("aten.cat", "aten.concat")
def cat(c: Converter, node: Node) -> None:
    """One behind the other."""
    parts = [c.name(it) for it in cast("tuple[Arg, ...]", node.args[0])]
    c.bind(node.results[0], c.emit("Concat", *parts, axis=integer(node, 1, "dim", 0)))


@maps("aten.stack")
def stack(c: Converter, node: Node) -> None:
    """Along a new dimension."""
    dim = integer(node, 1, "dim", 0) % len(node.results[0].type.shape)
    at = c.constant([dim])
    parts = [c.emit("Unsqueeze", c.name(it), at) for it in cast("tuple[Arg, ...]", node.args[0])]
    c.bind(node.results[0], c.emit("Concat", *parts, axis=dim))


@maps("aten.split.Tensor", "aten.split_with_sizes", "aten.chunk", "aten.unbind.int")
def split(c: Converter, node: Node) -> None:
    """Parts along one dimension, as wide as the results."""
    unbound = node.op == "aten.unbind.int"
    dim = integer(node, 1 if unbound else 2, "dim", 0)
    rank = len(tensor_type(node.args[0], c.program).shape)
    widths = [1 if unbound else _width(value, dim % rank) for value in node.results]
    if len(widths) == 1 and not unbound:
        c.bind(node.results[0], c.name(node.args[0]))
        return
    parts = c.emit("Split", c.name(node.args[0]), c.constant(widths), outputs=len(widths), axis=dim)
    for value, part in zip(node.results, parts if len(widths) > 1 else [parts], strict=True):
        c.bind(value, c.emit("Squeeze", part, c.constant([dim])) if unbound else part)


def _width(value: Value, dim: int) -> int:
    size = value.type.shape[dim]
    if not isinstance(size, int):
        raise UnmappedError(f"A split into {value.type} has no mapping.")
    return size


@maps("aten.slice.Tensor")
def slice_(c: Converter, node: Node) -> None:
    """A window of one dimension."""
    dim, step = integer(node, 1, "dim", 0), integer(node, 4, "step", 1)
    begin, end = argument(node, 2, "start") or 0, argument(node, 3, "end", _END)
    if not isinstance(begin, int):
        raise UnmappedError(f"A slice from {begin} has no mapping.")
    if not isinstance(end, int):  # the size of the dimension itself
        size = tensor_type(node.args[0], c.program).shape[dim]
        if end is not None and str(end) != str(size):
            raise UnmappedError(f"A slice to {end} of {size} has no mapping.")
        end = _END
    ends = [c.constant([it]) for it in (begin, end, dim, step)]
    c.bind(node.results[0], c.emit("Slice", c.name(node.args[0]), *ends))


@maps("aten.select.int")
def select(c: Converter, node: Node) -> None:
    """One place of a dimension."""
    place = c.constant(integer(node, 2, "index"))
    c.bind(node.results[0], c.emit("Gather", c.name(node.args[0]), place, axis=integer(node, 1, "dim")))
