"""Positions that a model counts itself become the ``position_ids`` it is given.

Before: %p = arange(T); %e = embedding(@positions, %p + 2)
After:  %p = select(%position_ids, 0, 0); %e = embedding(@positions, %p + 2)

Decoders of encoder-decoder models (BART and its kin) take no ``position_ids``: they count the tokens of the
batch. For one sequence the two are equal, number for number. For the packed sequences of a step only
``position_ids`` is right. It runs after attention is matched, when no mask is left that counts pairs.

Source: ``position_embeddings`` in transformers' BART, MBart, Marian, Pegasus, TrOCR, Whisper.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..graph.nodes import argument, aten, is_call, path, same_size, value


def bind_positions(gm: fx.GraphModule) -> int:
    """Replace every count of the tokens by ``position_ids``, in place; return how many.

    A table that is cut to the first T entries is a count too: it becomes a look-up by position.

    Args:
        gm: a traced graph with ``input_ids`` [1, T] and ``position_ids`` [1, T].
    """
    given = {node.name: node for node in gm.graph.nodes if node.op == "placeholder"}
    tokens, positions = value(given["input_ids"]).shape[1], given["position_ids"]
    count = 0
    for node in list(gm.graph.nodes):
        if not node.users:
            continue
        start, cut = _counts_from(node, tokens), _cut_dimension(node, tokens)
        if start is None and cut is None:
            continue
        with gm.graph.inserting_before(node):
            new = _call(node, aten.select.int, positions, 0, 0)
            if cut is not None:
                new = _call(node, aten.index_select.default, node.args[0], cut, new)
            elif start:
                new = _call(node, aten.add.Tensor, new, start)
            if value(new).dtype != value(node).dtype:
                new = _call(node, aten.to.dtype, new, value(node).dtype)
        node.replace_all_uses_with(new)
        gm.graph.erase_node(node)
        count += 1
    return count


def _counts_from(node: fx.Node, tokens: torch.SymInt) -> int | None:
    """The first number of an arange over exactly the tokens, in steps of one; else None."""
    if not is_call(node, aten.arange) or not same_size(value(node).shape[0], tokens):
        return None
    overload = getattr(node.target, "_overloadname", "")
    if overload == "default":
        return 0
    if overload == "start_step" and len(node.args) > 2 and node.args[2] != 1:
        return None
    return node.args[0] if type(node.args[0]) is int else None


def _cut_dimension(node: fx.Node, tokens: torch.SymInt) -> int | None:
    """The dimension of a weight or buffer that a slice cuts to its first T entries; else None."""
    table = node.args[0] if is_call(node, aten.slice) else None
    if not isinstance(table, fx.Node) or table.op != "get_attr":
        return None
    start, step = argument(node, 2, "start"), argument(node, 4, "step", 1)
    dim = argument(node, 1, "dim", 0)
    if start not in (None, 0) or step != 1 or not same_size(value(node).shape[dim], tokens):
        return None
    return int(dim)


def _call(replaced: fx.Node, target: torch._ops.OpOverload, *args: Any) -> fx.Node:
    node = replaced.graph.call_function(target, args)
    node.meta["val"] = target(*fx.node.map_arg(args, value))
    node.meta["path"] = path(replaced)
    return node
