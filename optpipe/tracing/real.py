"""Complex numbers, which some models turn their rotary embeddings with, as pairs of real ones.

Before: %c = polar(%one, %angle); %y = view_as_real(view_as_complex(%x) * %c)
After:  %r = cos(%angle), %i = sin(%angle), times %one where it is not ones;
        %y = stack([%x0·%r − %x1·%i, %x0·%i + %x1·%r], −1)

A Program has no complex dtype, and few targets have one. What is not in the table below is refused.

Source: Llama 4 and DeepSeek V2 in transformers 5.23.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..errors import TraceError
from ..graph.nodes import aten, is_call, path, value

Pair = tuple[fx.Node, fx.Node]

# calls that treat both parts alike and count no dimension that a pair lacks
_ALIKE = (
    *(aten.view, aten.reshape, aten._unsafe_view, aten.unsqueeze, aten.squeeze, aten.expand, aten.alias),
    *(aten.transpose, aten.permute, aten.slice, aten.select, aten.clone, aten.contiguous, aten.detach),
)


def make_real(gm: fx.GraphModule) -> int:
    """Rewrite every complex value, in place; return how many there were.

    Raises:
        TraceError: a complex value is used in a way that is not known.
    """
    pairs: dict[fx.Node, Pair] = {}
    for node in list(gm.graph.nodes):
        if node.op != "call_function":
            continue
        if _is_complex(node):
            with gm.graph.inserting_before(node):
                pairs[node] = _pair(_Builder(node), node, pairs)
        elif any(operand in pairs for operand in node.all_input_nodes):
            with gm.graph.inserting_before(node):
                node.replace_all_uses_with(_back(_Builder(node), node, pairs))
    if pairs:
        gm.graph.eliminate_dead_code()
    return len(pairs)


def _is_complex(node: fx.Node) -> bool:
    made = value(node)
    return isinstance(made, torch.Tensor) and made.is_complex()


def _pair(build: _Builder, node: fx.Node, pairs: dict[fx.Node, Pair]) -> Pair:
    """The real and the imaginary part of a complex node."""
    if is_call(node, aten.polar):
        length, angle = node.args
        real, imaginary = (build(op, angle) for op in (aten.cos.default, aten.sin.default))
        if not is_call(length, aten.ones_like):
            real, imaginary = (build(aten.mul.Tensor, length, turn) for turn in (real, imaginary))
        return real, imaginary
    if is_call(node, aten.view_as_complex):
        parts = (build(aten.select.int, node.args[0], -1, index) for index in (0, 1))
        return next(parts), next(parts)
    if is_call(node, aten.mul):
        return _product(build, node, pairs)
    if is_call(node, aten._conj):
        real, imaginary = pairs[node.args[0]]  # type: ignore[index]
        return real, build(aten.neg.default, imaginary)
    if is_call(node, *_ALIKE):
        target, rest = node.target, node.args[1:]
        both = (build(target, part, *rest, **node.kwargs) for part in pairs[node.args[0]])  # type: ignore[index]
        return next(both), next(both)
    if is_call(node, aten.to, aten._to_copy) and node.args[0] in pairs:
        return pairs[node.args[0]]  # type: ignore[index]
    raise _unknown(node)


def _product(build: _Builder, node: fx.Node, pairs: dict[fx.Node, Pair]) -> Pair:
    left, right = node.args
    if left not in pairs:
        left, right = right, left
    a, b = pairs[left]  # type: ignore[index]
    if right not in pairs:
        real, imaginary = (build(node.target, part, right) for part in (a, b))
        return real, imaginary
    c, d = pairs[right]  # type: ignore[index]
    times = aten.mul.Tensor
    return (
        build(aten.sub.Tensor, build(times, a, c), build(times, b, d)),
        build(aten.add.Tensor, build(times, a, d), build(times, b, c)),
    )


def _back(build: _Builder, node: fx.Node, pairs: dict[fx.Node, Pair]) -> fx.Node:
    """The real node that reads a complex one."""
    if is_call(node, aten.view_as_real):
        return build(aten.stack.default, list(pairs[node.args[0]]), -1)  # type: ignore[index]
    for target, part in ((aten.real, 0), (aten.imag, 1)):
        if is_call(node, target):
            return pairs[node.args[0]][part]  # type: ignore[index]
    raise _unknown(node)


def _unknown(node: fx.Node) -> TraceError:
    return TraceError(f"{path(node) or 'the model'} computes with complex numbers ({node.target})")


class _Builder:
    """Adds calls with fake values and the path of the node they stand for."""

    def __init__(self, replaced: fx.Node) -> None:
        self._replaced = replaced

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = self._replaced.graph.call_function(target, args, kwargs)
        fakes, named = fx.node.map_arg((node.args, node.kwargs), value)
        node.meta["val"] = target(*fakes, **named)
        node.meta["path"] = path(self._replaced)
        return node
