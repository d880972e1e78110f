"""Predicates that fusions are written with: each answers "is this that shape of expression?" with its parts, or None."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

from torch import fx

from .nodes import argument, aten, is_call, is_tensor, positive, rank, same_size, shape

END = 1 << 62  # slices to the end carry a huge stop


def operands(node: object, *targets: object) -> Iterator[tuple[Any, Any]]:
    """Both orders of a two-operand call's operands; nothing when ``node`` is another call."""
    if isinstance(node, fx.Node) and is_call(node, *targets) and len(node.args) == 2 and not node.kwargs:
        a, b = node.args
        yield a, b
        yield b, a


def scalar(arg: object) -> float | None:
    """A literal number."""
    return float(arg) if isinstance(arg, int | float) and not isinstance(arg, bool) else None


def square(node: object) -> fx.Node | None:
    """x² → x."""
    if is_call(node, aten.pow.Tensor_Scalar) and node.args[1] == 2:  # type: ignore[attr-defined]
        return _node(node.args[0])  # type: ignore[attr-defined]
    if is_call(node, aten.square.default):
        return _node(node.args[0])  # type: ignore[attr-defined]
    if is_call(node, aten.mul.Tensor) and node.args[0] is node.args[1]:  # type: ignore[attr-defined]
        return _node(node.args[0])  # type: ignore[attr-defined]
    return None


def mean_of_last(node: object) -> fx.Node | None:
    """mean(x, −1, keepdim) → x."""
    if not is_call(node, aten.mean.dim) or argument(node, 2, "keepdim") is not True:  # type: ignore[arg-type]
        return None
    source = _node(node.args[0])  # type: ignore[attr-defined]
    dims = node.args[1]  # type: ignore[attr-defined]
    if source is None or len(dims) != 1 or positive(dims[0], rank(source)) != rank(source) - 1:
        return None
    return source


def plus_scalar(node: object) -> tuple[fx.Node, float] | None:
    """x + c → (x, c)."""
    for a, b in operands(node, aten.add.Tensor, aten.add.Scalar):
        if is_tensor(a) and scalar(b) is not None:
            return a, float(b)
    return None


def inverse_root(node: object) -> fx.Node | None:
    """x^−½ in any spelling → x."""
    if is_call(node, aten.rsqrt.default):
        return _node(node.args[0])  # type: ignore[attr-defined]
    if is_call(node, aten.pow.Tensor_Scalar) and node.args[1] == -0.5:  # type: ignore[attr-defined]
        return _node(node.args[0])  # type: ignore[attr-defined]
    if is_call(node, aten.reciprocal.default) and is_call(node.args[0], aten.sqrt.default):  # type: ignore[attr-defined]
        return _node(node.args[0].args[0])  # type: ignore[attr-defined]
    return None


def root(node: object) -> fx.Node | None:
    """√x → x."""
    if is_call(node, aten.sqrt.default):
        return _node(node.args[0])  # type: ignore[attr-defined]
    if is_call(node, aten.pow.Tensor_Scalar) and node.args[1] == 0.5:  # type: ignore[attr-defined]
        return _node(node.args[0])  # type: ignore[attr-defined]
    return None


def scaled_by_inverse_root(node: object) -> Iterator[tuple[fx.Node, fx.Node]]:
    """x · y^−½ or x / √y → (x, y)."""
    for a, b in operands(node, aten.mul.Tensor):
        inside = inverse_root(b)
        if inside is not None and is_tensor(a):
            yield a, inside
    if is_call(node, aten.div.Tensor):
        inside = root(node.args[1])  # type: ignore[attr-defined]
        if inside is not None and is_tensor(node.args[0]):  # type: ignore[attr-defined]
            yield node.args[0], inside  # type: ignore[attr-defined]


def part_of_last(node: object) -> tuple[fx.Node, int, int, int] | None:
    """A slice, chunk or split of the last dimension → (source, start, stop, step) with real numbers."""
    if is_call(node, aten.slice.Tensor):
        source = _node(node.args[0])  # type: ignore[attr-defined]
        start, stop, step = (argument(node, i, n, d) for i, n, d in _SLICE)  # type: ignore[arg-type]
        if source is None or positive(argument(node, 1, "dim", 0), rank(source)) != rank(source) - 1:  # type: ignore[arg-type]
            return None
        width = shape(source)[-1]
        if not all(isinstance(number, int) for number in (start, stop, step, width)):
            return None
        start, stop = (min(n + width if n < 0 else n, width) for n in (start, stop))
        return source, start, stop, step
    if isinstance(node, fx.Node) and node.target is operator.getitem:
        return _piece(node)
    return None


_SLICE = ((2, "start", 0), (3, "end", END), (4, "step", 1))


def _piece(node: fx.Node) -> tuple[fx.Node, int, int, int] | None:
    whole, index = node.args
    if not is_call(whole, aten.chunk, aten.split, aten.split_with_sizes):
        return None
    source = _node(whole.args[0])  # type: ignore[union-attr]
    if source is None or positive(argument(whole, 2, "dim", 0), rank(source)) != rank(source) - 1:  # type: ignore[arg-type]
        return None
    widths = [shape(piece)[-1] for piece in _pieces(whole)]  # type: ignore[arg-type]
    if not all(isinstance(width, int) for width in widths):
        return None
    start = sum(widths[:index])  # type: ignore[misc, arg-type]
    return source, start, start + widths[index], 1  # type: ignore[index, operator, return-value]


def _pieces(whole: fx.Node) -> list[Any]:
    class Piece:
        def __init__(self, val: Any) -> None:
            self.meta = {"val": val}

    return [Piece(val) for val in whole.meta["val"]]


def negated(node: object) -> fx.Node | None:
    """−x → x."""
    if is_call(node, aten.neg.default):
        return _node(node.args[0])  # type: ignore[attr-defined]
    return None


def joined_last(node: object) -> list[fx.Node] | None:
    """cat(parts, −1) → parts."""
    if not is_call(node, aten.cat.default):
        return None
    parts = node.args[0]  # type: ignore[attr-defined]
    if positive(argument(node, 1, "dim", 0), rank(parts[0])) != rank(parts[0]) - 1:  # type: ignore[arg-type]
        return None
    return list(parts)


def regrouped(node: object) -> object:
    """Behind any reshape."""
    while is_call(node, aten.reshape.default):
        node = node.args[0]  # type: ignore[attr-defined]
    return node


def is_row(node: fx.Node, width: object) -> bool:
    """Whether a node is a vector of ``width``."""
    return rank(node) == 1 and same_size(shape(node)[0], width)  # type: ignore[arg-type]


def _node(arg: object) -> fx.Node | None:
    return arg if isinstance(arg, fx.Node) and is_tensor(arg) else None
