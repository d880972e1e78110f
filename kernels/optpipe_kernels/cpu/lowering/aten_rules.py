"""Rules for the other ATen operations that stay in graphs: a few generic kernels do them."""

from __future__ import annotations

from typing import cast

from optpipe.program.program import Arg, Node, Value, WeightRef

from .builder import Builder, Unsupported, known_dtype
from .extent import Extent, product
from .rules import argument, dimension, integer, lowers, number
from .view import View

UNARY = (
    "neg", "abs", "sqrt", "rsqrt", "exp", "log", "sin", "cos", "tanh",
    "sigmoid", "silu", "relu", "square", "reciprocal", "floor", "round", "erf", "logical_not",
)  # fmt: skip
BINARY = ("add", "sub", "mul", "div", "pow", "maximum", "minimum", "eq", "ne", "lt", "le", "gt", "ge",
          "logical_and", "logical_or", "bitwise_and", "bitwise_or")  # fmt: skip
_OVERLOADS = ("", ".Tensor", ".Scalar", ".Tensor_Scalar", ".Tensor_Tensor")


# Copies


@lowers("aten.to.dtype", "aten._to_copy", "aten.type_as")
def cast_(b: Builder, node: Node) -> None:
    """``copy(x, out)`` converts."""
    x, wanted = b.view(node.args[0]), known_dtype(node.results[0].type)
    b.bind(node.results[0], x if x.dtype == wanted else b.copied(x, wanted))


@lowers("aten.cat")
def cat(b: Builder, node: Node) -> None:
    """Each part is copied into its window."""
    out = b.new(node.results[0].type)
    dim, begin = dimension(integer(node, 1, "dim", 0), out.rank), 0
    for part in cast("tuple[Arg, ...]", node.args[0]):
        x = b.view(part)
        extent = x.size[dim]
        window = out.slice(dim, begin, extent)
        if window is None or extent.fixed is None:
            raise Unsupported("a cat along a dimension that steps change has no kernel")
        b.emit("copy", [x], [window])
        begin += extent.fixed
    b.bind(node.results[0], out)


@lowers("aten.stack")
def stack(b: Builder, node: Node) -> None:
    """Each part is copied into its index."""
    out = b.new(node.results[0].type)
    dim = dimension(integer(node, 1, "dim", 0), out.rank)
    for index, part in enumerate(cast("tuple[Arg, ...]", node.args[0])):
        window = out.select(dim, index)
        if window is None:
            raise Unsupported("a stack along a dimension that steps change has no kernel")
        b.emit("copy", [b.view(part)], [window])
    b.bind(node.results[0], out)


@lowers("aten.repeat")
def repeat(b: Builder, node: Node) -> None:
    """Copy x into every tile of the result: both seen as [r0, s0, r1, s1, …]."""
    x, out = b.view(node.args[0]), b.new(node.results[0].type)
    counts = [int(number(count)) for count in cast("tuple[Arg, ...]", node.args[1])]
    x = _checked(x.expand((*[Extent(1)] * (len(counts) - x.rank), *x.size)), "repeat")
    pairs: list[Extent] = []
    source: list[Extent] = []
    for count, extent in zip(counts, x.size, strict=True):
        pairs += [Extent(count), extent]
        source += [Extent(1), extent]
    tiles = _checked(out.reshape(tuple(pairs)), "repeat")
    spread = _checked(_checked(x.reshape(tuple(source)), "repeat").expand(tuple(pairs)), "repeat")
    _copy(b, spread, tiles)
    b.bind(node.results[0], out)


@lowers("aten.repeat_interleave.self_int")
def repeat_interleave(b: Builder, node: Node) -> None:
    """Copy x into the result seen as [.., s, r, ..]."""
    x, out = b.view(node.args[0]), b.new(node.results[0].type)
    count = integer(node, 1, "repeats")
    if argument(node, 2, "dim") is None:
        raise Unsupported("repeat_interleave without a dimension has no kernel")
    dim = dimension(integer(node, 2, "dim"), x.rank)
    wide = (*x.size[: dim + 1], Extent(count), *x.size[dim + 1 :])
    thin = (*x.size[: dim + 1], Extent(1), *x.size[dim + 1 :])
    spread = _checked(_checked(x.reshape(thin), "repeat_interleave").expand(wide), "repeat_interleave")
    _copy(b, spread, _checked(out.reshape(wide), "repeat_interleave"))
    b.bind(node.results[0], out)


# Elementwise


@lowers(*(f"aten.{name}" for name in UNARY), "aten.bitwise_not")
def unary(b: Builder, node: Node) -> None:
    """``name(x, out)``."""
    kernel = node.op.removeprefix("aten.").replace("bitwise_not", "logical_not")
    _elementwise(b, node, kernel, [node.args[0]])


@lowers("aten.gelu")
def gelu(b: Builder, node: Node) -> None:
    """The exact form or the one with tanh."""
    exact = argument(node, 1, "approximate", "none") == "none"
    _elementwise(b, node, "gelu" if exact else "gelu_tanh", [node.args[0]])


@lowers(*(f"aten.{name}{overload}" for name in BINARY for overload in _OVERLOADS))
def binary(b: Builder, node: Node) -> None:
    """``name(a?, b?, out) | | scalar``: the scalar stands for the operand left out."""
    name = node.op.split(".")[1]
    if argument(node, 2, "alpha", 1) != 1 or argument(node, 3, "rounding_mode") is not None:
        raise Unsupported(f"{node.op} with alpha or a rounding mode has no kernel")
    _elementwise(b, node, name, list(node.args[:2]))


@lowers("aten.clamp")
def clamp(b: Builder, node: Node) -> None:
    """``clamp(x, out) | | low high``."""
    low, high = argument(node, 1, "min"), argument(node, 2, "max")
    limits = (-float("inf") if low is None else number(low), float("inf") if high is None else number(high))
    x, out = b.view(node.args[0]), b.new(node.results[0].type)
    b.emit("clamp", [x], [out], (), limits)
    b.bind(node.results[0], out)


@lowers("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf")
def where(b: Builder, node: Node) -> None:
    """``where(condition, a?, b?, out) | | scalar``."""
    _elementwise(b, node, "where", list(node.args[:3]))


@lowers("aten.masked_fill.Scalar")
def masked_fill(b: Builder, node: Node) -> None:
    """``where(mask, scalar, x)``."""
    x, mask, scalar = node.args[:3]
    _elementwise(b, node, "where", [mask, scalar, x])


def _elementwise(b: Builder, node: Node, kernel: str, operands: list[Arg]) -> None:
    out = b.new(node.results[0].type)
    reads: list[View | None] = []
    scalars = []
    for operand in operands:
        if isinstance(operand, Value | WeightRef):
            reads.append(_checked(b.view(operand).expand(out.size), kernel))
        else:
            reads.append(None)
            scalars.append(number(operand))
    if len(scalars) > 1:
        raise Unsupported(f"{node.op} of two numbers has no kernel")
    b.emit(kernel, reads, [out], (), scalars)
    b.bind(node.results[0], out)


# Reductions and lookups


@lowers("aten.sum.dim_IntList", "aten.mean.dim", "aten.amax", "aten.amin")
def reduce(b: Builder, node: Node) -> None:
    """``sum(x, out) | reduced``: the reduced dimensions are moved behind the others."""
    x = b.view(node.args[0])
    given = cast("tuple[Arg, ...]", argument(node, 1, "dim")) or tuple(range(x.rank))
    dims = sorted(dimension(int(number(d)), x.rank) for d in given)
    order = tuple(d for d in range(x.rank) if d not in dims) + tuple(dims)
    out = b.new(node.results[0].type)
    b.emit(node.op.split(".")[1], [x.permute(order)], [_flat(out)], (len(dims),))
    b.bind(node.results[0], out)


@lowers("aten.softmax.int", "aten._softmax", "aten.log_softmax.int", "aten._log_softmax")
def softmax(b: Builder, node: Node) -> None:
    """``softmax(x, out)`` along the last dimension."""
    x, out = b.view(node.args[0]), b.new(node.results[0].type)
    order = _last(dimension(integer(node, 1, "dim"), x.rank), x.rank)
    kernel = node.op.split(".")[1].removeprefix("_")
    b.emit(kernel, [x.permute(order)], [out.permute(order)])
    b.bind(node.results[0], out)


@lowers("aten.topk")
def topk(b: Builder, node: Node) -> None:
    """``topk(x, values, indices) | k`` along the last dimension, the largest first."""
    x = b.view(node.args[0])
    if (
        dimension(integer(node, 2, "dim", -1), x.rank) != x.rank - 1
        or argument(node, 3, "largest", True) is not True
    ):
        raise Unsupported("topk of the smallest, or not along the last dimension, has no kernel")
    values, indices = (b.new(value.type) for value in node.results)
    b.emit("topk", [x], [values, indices], (integer(node, 1, "k"),))
    b.bind(node.results[0], values)
    b.bind(node.results[1], indices)


@lowers("aten.index_select")
def index_select(b: Builder, node: Node) -> None:
    """``index_select(x, ids, out) | dim``."""
    x = b.view(node.args[0])
    select(b, node, x, dimension(integer(node, 1, "dim"), x.rank), b.view(node.args[2]))


@lowers("aten.index.Tensor")
def index(b: Builder, node: Node) -> None:
    """One list of indices along one dimension."""
    x, indices = b.view(node.args[0]), cast("tuple[Arg, ...]", node.args[1])
    given = [at for at, it in enumerate(indices) if it is not None]
    if len(given) != 1:
        raise Unsupported("an index by several tensors has no kernel")
    select(b, node, x, given[0], b.view(indices[given[0]]))


@lowers("aten.gather")
def gather(b: Builder, node: Node) -> None:
    """``gather(x, ids, out)`` along the last dimension; the others broadcast."""
    x, ids, out = b.view(node.args[0]), b.view(node.args[2]), b.new(node.results[0].type)
    dim = dimension(integer(node, 1, "dim"), x.rank)
    b.emit("gather", [x, ids], [out], (dim,))
    b.bind(node.results[0], out)


def select(b: Builder, node: Node, x: View, dim: int, ids: View) -> None:
    """x [A.., N, C..] by ids [I..] is [A.., I.., C..]; the kernel sees ids as one list."""
    out = b.new(node.results[0].type)
    flat = b.dense(ids)
    count = flat.size
    one = _checked(flat.reshape((_whole(count),)), "index_select")
    shaped = _checked(out.reshape((*x.size[:dim], _whole(count), *x.size[dim + 1 :])), "index_select")
    b.emit("index_select", [x, one], [shaped], (dim,))
    b.bind(node.results[0], out)


# Constants


@lowers("aten.full", "aten.zeros", "aten.ones", "aten.full_like", "aten.zeros_like", "aten.ones_like")
def full(b: Builder, node: Node) -> None:
    """``fill(out) | | value``."""
    name = node.op.removeprefix("aten.").removesuffix("_like")
    value = number(argument(node, 1, "fill_value")) if name == "full" else float(name == "ones")
    out = b.new(node.results[0].type)
    b.emit("fill", [], [out], (), (value,))
    b.bind(node.results[0], out)


def _whole(size: tuple[Extent, ...]) -> Extent:
    total = product(size)
    if total is None:
        raise Unsupported("an index of two counts has no kernel")
    return total


def _flat(view: View) -> View:
    return _checked(view.reshape(tuple(extent for extent in view.size if extent != Extent(1))), "reduce")


def _last(dim: int, rank: int) -> tuple[int, ...]:
    return (*(d for d in range(rank) if d != dim), dim)


def _copy(b: Builder, source: View, target: View) -> None:
    b.emit("copy", [source], [target])


def _checked(view: View | None, what: str) -> View:
    if view is None:
        raise Unsupported(f"the operands of {what} do not line up as strided views")
    return view
