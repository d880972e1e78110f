"""Predicates that fusions are written with: each gives the parts of an expression of its shape, or None."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from .nodes import args_of, argument, aten, is_call, is_tensor, positive, rank, same_size, shape, value

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
    if is_call(node, aten.pow.Tensor_Scalar) and args_of(node)[1] == 2:
        return _node(args_of(node)[0])
    if is_call(node, aten.square.default):
        return _node(args_of(node)[0])
    if is_call(node, aten.mul.Tensor) and args_of(node)[0] is args_of(node)[1]:
        return _node(args_of(node)[0])
    return None


def mean_of_last(node: object) -> fx.Node | None:
    """mean(x, −1, keepdim) → x."""
    if not is_call(node, aten.mean.dim) or argument(node, 2, "keepdim") is not True:
        return None
    source = _node(args_of(node)[0])
    dims = args_of(node)[1]
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
        return _node(args_of(node)[0])
    if is_call(node, aten.pow.Tensor_Scalar) and args_of(node)[1] == -0.5:
        return _node(args_of(node)[0])
    if is_call(node, aten.reciprocal.default) and is_call(args_of(node)[0], aten.sqrt.default):
        return _node(args_of(args_of(node)[0])[0])
    return None


def root(node: object) -> fx.Node | None:
    """√x → x."""
    if is_call(node, aten.sqrt.default):
        return _node(args_of(node)[0])
    if is_call(node, aten.pow.Tensor_Scalar) and args_of(node)[1] == 0.5:
        return _node(args_of(node)[0])
    return None


def scaled_by_inverse_root(node: object) -> Iterator[tuple[fx.Node, fx.Node]]:
    """x · y^−½ or x / √y → (x, y)."""
    for a, b in operands(node, aten.mul.Tensor):
        inside = inverse_root(b)
        if inside is not None and is_tensor(a):
            yield a, inside
    if is_call(node, aten.div.Tensor):
        inside = root(args_of(node)[1])
        if inside is not None and is_tensor(args_of(node)[0]):
            yield args_of(node)[0], inside


def part_of_last(node: object) -> tuple[fx.Node, int, int, int] | None:
    """A slice, chunk or split of the last dimension → (source, start, stop, step) with real numbers."""
    if is_call(node, aten.slice.Tensor):
        source = _node(args_of(node)[0])
        start, stop, step = (argument(node, i, n, d) for i, n, d in _SLICE)
        if source is None or positive(argument(node, 1, "dim", 0), rank(source)) != rank(source) - 1:
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
    whole, index = args_of(node)
    if not is_call(whole, aten.chunk, aten.split, aten.split_with_sizes):
        return None
    source = _node(args_of(whole)[0])
    if source is None or positive(argument(whole, 2, "dim", 0), rank(source)) != rank(source) - 1:
        return None
    widths: list[Any] = [val.shape[-1] for val in value(whole)]
    if not all(isinstance(width, int) for width in widths):
        return None
    start = sum(widths[:index])
    return source, start, start + widths[index], 1


def negated(node: object) -> fx.Node | None:
    """−x → x."""
    if is_call(node, aten.neg.default):
        return _node(args_of(node)[0])
    return None


def joined_last(node: object) -> list[fx.Node] | None:
    """cat(parts, −1) → parts."""
    if not is_call(node, aten.cat.default):
        return None
    parts = args_of(node)[0]
    if positive(argument(node, 1, "dim", 0), rank(parts[0])) != rank(parts[0]) - 1:
        return None
    return list(parts)


def stacked_last(node: object) -> list[fx.Node] | None:
    """stack(parts, −1) → parts."""
    if not is_call(node, aten.stack.default):
        return None
    parts = args_of(node)[0]
    count = rank(parts[0]) + 1
    return list(parts) if positive(argument(node, 1, "dim", 0), count) == count - 1 else None


def regrouped(node: object) -> object:
    """Behind any reshape."""
    while is_call(node, aten.reshape.default):
        node = args_of(node)[0]
    return node


def is_row(node: fx.Node, width: int | torch.SymInt) -> bool:
    """Whether a node is a vector of ``width``."""
    return rank(node) == 1 and same_size(shape(node)[0], width)


def _node(arg: object) -> fx.Node | None:
    return arg if isinstance(arg, fx.Node) and is_tensor(arg) else None
