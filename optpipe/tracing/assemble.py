"""A tensor that is allocated and then filled part by part is the parts, joined.

Before: %e = new_empty(%x, [1, H, T, 24]); %a = slice_scatter(%e, %p, 3, 0, 16);
        %b = slice_scatter(%a, %q, 3, 16)
After:  %b = cat([%p, %q], 3)

Only when the parts leave no gap: what is left of uninitialized memory is refused by the verifier.

Source: the keys of DeepSeek's latent attention in transformers 5.23, after functionalization.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..graph.nodes import argument, aten, is_call, path, positive, rank, same_shape, shape, value

_ALLOCATIONS = (aten.new_empty, aten.empty, aten.empty_like, aten.new_zeros, aten.zeros, aten.zeros_like)
Part = tuple[int, int, fx.Node]


def assemble(gm: fx.GraphModule) -> int:
    """Join every tensor that is filled part by part, in place; return how many."""
    count = 0
    for node in reversed(list(gm.graph.nodes)):
        found = _parts(node) if is_call(node, aten.slice_scatter) else None
        if found is None:
            continue
        dim, parts = found
        with gm.graph.inserting_before(node):
            joined = _call(node, aten.cat.default, [_fitted(node, dim, part) for part in parts], dim)
        node.replace_all_uses_with(joined)
        count += 1
    if count:
        gm.graph.eliminate_dead_code()
    return count


def _parts(last: fx.Node) -> tuple[int, list[Part]] | None:
    """(dimension, parts in order) of a tensor whose last part is written by ``last``; None with gaps."""
    dim = positive(argument(last, 2, "dim", 0), rank(last))
    width = shape(last)[dim]
    node: Any = last
    parts: list[Part] = []
    while is_call(node, aten.slice_scatter):
        span = _span(node, dim, width)
        if span is None:
            return None
        parts.append((*span, _written(node.args[1])))
        node = node.args[0]
    parts.sort(key=lambda part: part[0])
    ends = [0, *(end for _, end, _ in parts)]
    if not is_call(node, *_ALLOCATIONS) or ends[-1] != width or ends[:-1] != [start for start, _, _ in parts]:
        return None
    return dim, parts


def _span(scatter: fx.Node, dim: int, width: object) -> tuple[int, int] | None:
    """Where a slice is written, in numbers."""
    start, end = argument(scatter, 3, "start") or 0, argument(scatter, 4, "end")
    if positive(argument(scatter, 2, "dim", 0), rank(scatter)) != dim or argument(scatter, 5, "step", 1) != 1:
        return None
    if type(width) is not int or type(start) is not int or not (end is None or type(end) is int):
        return None
    return (start % width if start < 0 else start), min(width if end is None else end, width) % (width + 1)


def _written(source: Any) -> fx.Node:
    """What a part holds: the source of the copy into it."""
    return source.args[1] if is_call(source, aten.copy) else source  # type: ignore[no-any-return]


def _fitted(whole: fx.Node, dim: int, part: Part) -> fx.Node:
    """A part in the shape and dtype of its place: copies broadcast and cast."""
    start, end, node = part
    wanted = (*shape(whole)[:dim], end - start, *shape(whole)[dim + 1 :])
    if not same_shape(shape(node), wanted):
        sizes = [size if type(size) is int else -1 for size in wanted]
        node = _call(whole, aten.expand.default, node, sizes)
    if value(node).dtype != value(whole).dtype:
        node = _call(whole, aten.to.dtype, node, value(whole).dtype)
    return node


def _call(replaced: fx.Node, target: torch._ops.OpOverload, *args: Any) -> fx.Node:
    node = replaced.graph.call_function(target, args)
    node.meta["val"] = target(*fx.node.map_arg(args, value))
    node.meta["path"] = path(replaced)
    return node
