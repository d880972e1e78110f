"""``clean``: one spelling for each thing, nothing twice, positions from the input.

Before: casts, copies, views and transposes as the model's code happened to write them
After:  ``aten.reshape`` and ``aten.permute`` where data is regrouped or moved, nothing else; equal calls
        merged; ``arange(T)``, which is the position of a lone sequence's token, read from ``position_ids``
Guards: none: nothing here changes a number
Source: the usual canonicalization of compilers (Muchnick 1997, chapters 12 and 13)
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from optpipe.graph.canonical import canonicalize
from optpipe.graph.nodes import args_of, aten, input_name, rank, same_shape, same_size, shape, value
from optpipe.pipeline import Pass, Stage
from optpipe.pipeline.context import PassContext, has_effect


@dataclass(frozen=True)
class Clean(Pass):
    """Drop what changes nothing, merge equal calls and read positions from the input."""

    name: ClassVar[str] = "clean"
    stage: ClassVar[Stage] = Stage.CLEAN
    always: ClassVar[bool] = True
    whole: ClassVar[bool] = True

    def apply(self, graph: fx.Graph, cx: PassContext) -> None:
        before = len(graph.nodes)
        canonicalize(cx.gm)
        read_positions(graph, cx)
        merge_equal(graph)
        canonicalize(cx.gm)
        if len(graph.nodes) != before:
            cx.applied(next(iter(graph.nodes)), f"{before - len(graph.nodes)} nodes less")


def read_positions(graph: fx.Graph, cx: PassContext) -> None:
    """``arange(T)`` → ``position_ids``: equal for the one sequence that was traced, right for packed ones."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    positions = next((node for node in inputs if input_name(node) == "position_ids"), None)
    if positions is None:
        return
    tokens = shape(positions)[-1]
    for node in cx.nodes(aten.arange):
        if _counts_tokens(node, tokens):
            cx.replace(node, functools.partial(_as_positions, cx, positions, node))


def _counts_tokens(node: fx.Node, tokens: Any) -> bool:
    start = args_of(node)[0] if len(node.args) > 1 else 0
    step = args_of(node)[2] if len(node.args) > 2 else 1
    return start == 0 and step == 1 and rank(node) == 1 and same_size(shape(node)[0], tokens)


def _as_positions(cx: PassContext, positions: fx.Node, node: fx.Node) -> fx.Node:
    flat = positions if rank(positions) == 1 else cx.call(aten.select.int, positions, 0, 0)
    dtype: torch.dtype = value(node).dtype
    return flat if value(flat).dtype == dtype else cx.call(aten.to.dtype, flat, dtype)


def merge_equal(graph: fx.Graph) -> None:
    """Calls and weights that are equal become one, the earliest."""
    seen: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op not in ("call_function", "get_attr") or has_effect(node):
            continue
        key = (node.op, node.target, _frozen(node.args), _frozen(tuple(sorted(node.kwargs.items()))))
        first = seen.setdefault(key, node)
        if first is not node and _same_value(first, node):
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def _frozen(arg: Any) -> Any:
    if isinstance(arg, list | tuple):
        return tuple(map(_frozen, arg))
    return (type(arg), arg) if isinstance(arg, int | float) else arg


def _same_value(a: fx.Node, b: fx.Node) -> bool:
    if not isinstance(value(a), torch.Tensor):
        return True
    return bool(value(a).dtype == value(b).dtype) and same_shape(shape(a), shape(b))
