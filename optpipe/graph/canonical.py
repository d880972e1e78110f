"""One spelling for each thing: what moves no data and changes no number is cancelled or spelt one way.

- casts, copies, expands, slices and products with one that change nothing are dropped;
- view, unsqueeze, squeeze, flatten and selects of single rows are ``aten.reshape`` with explicit sizes;
- transposes are ``aten.permute``; those that only move dimensions of one are reshapes, and those before a
  norm of rows move behind it;
- a product with a transposed stored weight is ``aten.linear``;
- chains of either are one; sizes are read from the inputs.

The pass manager does this after every pass, so that no pass has to look through what another left behind.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from .nodes import (
    Dim,
    args_of,
    argument,
    aten,
    is_call,
    is_tensor,
    positive,
    rank,
    same_shape,
    same_size,
    same_type,
    shape,
    value,
)
from .sizes import as_arguments, size_node

# calls whose result is their first operand when dtype and shape agree
_MAY_CHANGE_NOTHING = (
    aten.alias,
    aten.clone,
    aten.contiguous,
    aten.detach,
    aten.detach_,
    aten.expand,
    aten.lift_fresh_copy,
    aten.slice,
    aten.to,
    aten._to_copy,
    aten.type_as,
    aten.repeat,
)
_RESHAPES = (
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.unsqueeze.default,
    aten.squeeze,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.view_as.default,
)
_TRANSPOSES = (
    aten.transpose.int,
    aten.permute.default,
    aten.t.default,
    aten.swapaxes.default,
    aten.movedim.int,
)

Rule = Callable[[fx.Graph, fx.Node], fx.Node | None]


def canonicalize(gm: fx.GraphModule) -> int:
    """Rewrite to a fixed point; returns how many nodes were replaced or dropped."""
    graph, total = gm.graph, 0
    while True:
        changed = sum(_visit(graph, node) for node in list(graph.nodes)) + eliminate_dead(graph)
        total += changed
        if not changed:
            return total


def eliminate_dead(graph: fx.Graph) -> int:
    """Erase nodes without users that write nothing; returns how many."""
    erased = 0
    for node in reversed(list(graph.nodes)):
        schema = getattr(node.target, "_schema", None)
        writes = node.op == "call_function" and schema is not None and schema.is_mutable
        if not node.users and node.op not in ("placeholder", "output") and not writes:
            graph.erase_node(node)
            erased += 1
    return erased


def _visit(graph: fx.Graph, node: fx.Node) -> int:
    if node.op != "call_function" or node._erased:
        return 0
    for rule in _RULES:
        with graph.inserting_before(node):
            new = rule(graph, node)
        if new is not None:
            new.meta.setdefault("path", node.meta.get("path", ""))
            node.replace_all_uses_with(new)
            graph.erase_node(node)
            return 1
    return 0


def _add(graph: fx.Graph, target: Any, args: tuple[Any, ...], val: torch.Tensor) -> fx.Node:
    node = graph.call_function(target, args)
    node.meta["val"] = val
    return node


def _size(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """sym_size of anything → the size as read from an input."""
    held = value(node)
    if isinstance(held, torch.SymInt) and not held.node.expr.is_Integer:
        found = size_node(graph, held)
        return found if found is not node and isinstance(found, fx.Node) else None
    return None


def _nothing(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """A call that changes neither dtype, shape nor values → its operand."""
    first = args_of(node)[0] if node.args else None
    if not is_tensor(first) or not isinstance(value(node), torch.Tensor) or not same_type(node, first):
        return None
    if is_call(node, *_MAY_CHANGE_NOTHING):
        return first
    if is_call(node, aten.dropout) and argument(node, 2, "train") is False:
        return first
    other = args_of(node)[1] if len(node.args) > 1 else None
    if (
        is_call(node, aten.mul, aten.div)
        and isinstance(other, int | float)
        and other == 1
        and len(node.args) == 2
        and not node.kwargs
    ):
        return first
    if is_call(node, aten.add, aten.sub) and isinstance(other, int | float) and other == 0:
        return first
    return None


def _reshape(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """Every way to regroup dimensions → one reshape of where the data came from."""
    if not is_call(node, *_RESHAPES) or not is_tensor(args_of(node)[0]):
        return None
    source: fx.Node = args_of(node)[0]
    while is_call(source, aten.reshape.default):
        source = args_of(source)[0]
    if same_shape(shape(source), shape(node)):
        return source
    sizes = as_arguments(graph, shape(node))
    if node.target is aten.reshape.default and node.args == (source, sizes):
        return None
    return _add(graph, aten.reshape.default, (source, sizes), value(node))


def _single(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """select of the only row of a dimension, or an expand that only adds dimensions → reshape."""
    if not is_call(node, aten.select.int, aten.expand.default) or not is_tensor(args_of(node)[0]):
        return None
    source: fx.Node = args_of(node)[0]
    if is_call(node, aten.select.int):
        dim = positive(int(args_of(node)[1]), rank(source))
        if not same_size(shape(source)[dim], 1):
            return None
    elif not same_shape(_no_ones(shape(source)), _no_ones(shape(node))):
        return None
    return _add(graph, aten.reshape.default, (source, as_arguments(graph, shape(node))), value(node))


def _no_ones(sizes: tuple[Dim, ...]) -> tuple[Dim, ...]:
    return tuple(size for size in sizes if not same_size(size, 1))


def permutation(node: fx.Node) -> list[int] | None:
    """The order of dimensions that a transpose of any spelling leaves, or None for another call."""
    if not is_call(node, *_TRANSPOSES) or not is_tensor(args_of(node)[0]):
        return None
    count = rank(args_of(node)[0])
    order = list(range(count))
    if is_call(node, aten.permute.default):
        return [positive(dim, count) for dim in args_of(node)[1]]
    if is_call(node, aten.t.default):
        return order[::-1]
    a, b = (positive(int(dim), count) for dim in args_of(node)[1:3])
    if is_call(node, aten.movedim.int):
        order.insert(b, order.pop(a))
    else:
        order[a], order[b] = order[b], order[a]
    return order


def _permute(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """Every transpose → one permute of where the data came from, or a reshape when no data moves."""
    order = permutation(node)
    if order is None:
        return None
    source: fx.Node = args_of(node)[0]
    while is_call(source, aten.permute.default):
        order = [list(args_of(source)[1])[dim] for dim in order]
        source = args_of(source)[0]
    if order == sorted(order):
        return source
    if _moves_only_ones(source, order):
        return _add(graph, aten.reshape.default, (source, as_arguments(graph, shape(node))), value(node))
    if node.target is aten.permute.default and args_of(node)[0] is source and list(args_of(node)[1]) == order:
        return None
    return _add(graph, aten.permute.default, (source, order), value(node))


def _moves_only_ones(source: fx.Node, order: list[int]) -> bool:
    kept = [dim for dim in order if not same_size(shape(source)[dim], 1)]
    return kept == sorted(kept)


def _permuted_ones(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """permute(reshape(x)) where the reshape only added ones, and the reverse, meet as reshape(permute(x))."""
    if not is_call(node, aten.permute.default) or not is_call(args_of(node)[0], aten.reshape.default):
        return None
    regroup: fx.Node = args_of(node)[0]
    source: fx.Node = args_of(regroup)[0]
    kept = [dim for dim, size in enumerate(shape(regroup)) if not same_size(size, 1)]
    if not same_shape(tuple(shape(regroup)[dim] for dim in kept), shape(source)):
        return None
    order = [kept.index(dim) for dim in args_of(node)[1] if dim in kept]
    inner = source
    if order != sorted(order):
        inner = _add(graph, aten.permute.default, (source, order), value(source).permute(order))
        inner.meta["path"] = node.meta.get("path", "")
    return _add(graph, aten.reshape.default, (inner, as_arguments(graph, shape(node))), value(node))


def _sink_permute(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """norm(permute(x)) over rows that stay rows → permute(norm(x)), where it meets the next permute."""
    if not is_call(node, torch.ops.optpipe.rms_norm, torch.ops.optpipe.layer_norm):
        return None
    moved, *scales = args_of(node)
    if not is_call(moved, aten.permute.default) or len(moved.users) != 1:
        return None
    source, order = args_of(moved)
    if order[-1] != rank(source) - 1 or any(is_tensor(scale) and rank(scale) != 1 for scale in scales):
        return None
    target: Any = node.target
    normed = graph.call_function(target, (source, *scales), node.kwargs)
    normed.meta.update(val=value(source), path=node.meta.get("path", ""))
    return _add(graph, aten.permute.default, (normed, order), value(node))


def _linear(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """x · Wᵀ spelt as a product with a transposed stored weight → linear."""
    if not is_call(node, aten.matmul.default, aten.mm.default) or rank(node) < 2:
        return None
    x, moved = args_of(node)[:2]
    weight = args_of(moved)[0] if is_call(moved, aten.permute.default) else None
    if weight is None or weight.op != "get_attr" or list(args_of(moved)[1]) != [1, 0]:
        return None
    return _add(graph, aten.linear.default, (x, weight), value(node))


def _reshaped_items(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """getitem of a tuple that was built in the graph → the item."""
    if node.target is operator.getitem and isinstance(args_of(node)[0], list | tuple):
        item = args_of(node)[0][args_of(node)[1]]
        return item if isinstance(item, fx.Node) else None
    return None


_RULES: tuple[Rule, ...] = (
    _size,
    _nothing,
    _reshape,
    _single,
    _permute,
    _permuted_ones,
    _sink_permute,
    _linear,
    _reshaped_items,
)
