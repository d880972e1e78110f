"""Symbolic sizes as nodes: one node for each size of the graph's inputs, arithmetic for the rest."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import fx

from .nodes import args_of, aten, value

_ARITHMETIC = {sympy.Add: operator.add, sympy.Mul: operator.mul}


def as_arguments(graph: fx.Graph, sizes: Iterable[int | torch.SymInt]) -> list[int | fx.Node]:
    """Sizes as arguments of a node at the insertion point: literals, or nodes that yield them."""
    return [size if isinstance(size, int) else size_node(graph, size) for size in sizes]


def size_node(graph: fx.Graph, size: Any) -> Any:
    """A node that yields ``size``, near the inputs so that every later node may use it."""
    expression = size.node.expr
    if expression.is_Integer:
        return int(expression)
    if isinstance(expression, sympy.Symbol):
        return _symbol_node(graph, size)
    combine = _ARITHMETIC.get(type(expression))
    if combine is None:
        found = next((n for n in graph.nodes if _yields(n, expression)), None)
        assert found is not None, f"no node yields the size {expression = }"
        return found
    parts = [int(p) if p.is_Integer else size_node(graph, _with(size, p)) for p in expression.args]
    total = parts[0]
    for part in parts[1:]:
        total = _combined(graph, combine, total, part)
    return total


def _symbol_node(graph: fx.Graph, size: Any) -> Any:
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for node in graph.nodes:
        if node.target is aten.sym_size.int and _yields(node, size.node.expr) and args_of(node)[0] in inputs:
            inputs[-1].append(node)  # it may have stood behind the insertion point
            return node
    for holder in inputs:
        for dim, held in enumerate(value(holder).shape):
            if isinstance(held, torch.SymInt) and held.node.expr == size.node.expr:
                with graph.inserting_after(inputs[-1]):
                    node = graph.call_function(aten.sym_size.int, (holder, dim))
                node.meta["val"] = held
                return node
    raise AssertionError(f"no input has the size {size}")


def _combined(graph: fx.Graph, combine: Any, a: Any, b: Any) -> Any:
    last = max((part for part in (a, b) if isinstance(part, fx.Node)), key=list(graph.nodes).index)
    for node in graph.nodes:
        if node.target is combine and tuple(node.args) == (a, b):
            last.append(node)
            return node
    with graph.inserting_after(last):
        node = graph.call_function(combine, (a, b))
    left, right = (value(part) if isinstance(part, fx.Node) else part for part in (a, b))
    node.meta["val"] = combine(left, right)
    return node


def _with(size: torch.SymInt, expression: sympy.Expr) -> torch.SymInt:
    """``expression`` as a size of the same shape environment."""
    made: torch.SymInt = size.node.shape_env.create_symintnode(expression, hint=None)
    return made


def _yields(node: fx.Node, expression: sympy.Expr) -> bool:
    held = value(node)
    return node.op == "call_function" and isinstance(held, torch.SymInt) and held.node.expr == expression
