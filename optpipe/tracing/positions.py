"""Positions that a model counts itself become the ``position_ids`` it is given.

Before: %p = arange(T); %e = embedding(@positions, %p + 2)
After:  %p = select(%position_ids, 0, 0); %e = embedding(@positions, %p + 2)

Decoders of encoder-decoder models (BART and its kin) take no ``position_ids``: they count the tokens of the
batch. For one sequence the two are equal, number for number. For the packed sequences of a step only
``position_ids`` is right. It runs after attention is matched, when no mask is left that counts pairs.

Source: ``position_embeddings`` in transformers' BART, MBart, Marian, Pegasus, TrOCR, Whisper.
"""

from __future__ import annotations

import torch
from torch import fx

from ..graph.nodes import aten, is_call, path, same_size, value


def bind_positions(gm: fx.GraphModule) -> int:
    """Replace every count of the tokens by ``position_ids``, in place; return how many.

    Args:
        gm: a traced graph with ``input_ids`` [1, T] and ``position_ids`` [1, T].
    """
    given = {node.name: node for node in gm.graph.nodes if node.op == "placeholder"}
    tokens, positions = value(given["input_ids"]).shape[1], given["position_ids"]
    count = 0
    for node in list(gm.graph.nodes):
        start = _counts_from(node, tokens)
        if start is None or not node.users:
            continue
        with gm.graph.inserting_before(node):
            new = _call(gm, node, aten.select.int, positions, 0, 0)
            if start:
                new = _call(gm, node, aten.add.Tensor, new, start)
            if value(new).dtype != value(node).dtype:
                new = _call(gm, node, aten.to.dtype, new, value(node).dtype)
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


def _call(gm: fx.GraphModule, replaced: fx.Node, target: torch._ops.OpOverload, *args: object) -> fx.Node:
    node = gm.graph.call_function(target, args)
    node.meta["val"] = target(*fx.node.map_arg(args, value))
    node.meta["path"] = path(replaced)
    return node
