"""Fold the mask each attention call was given into the call: ``mask`` tensors become window and chunk.

Before: %m = optpipe.mask(%x, kind="window", size=8); optpipe.attention(%q, %k, %v, %m, …)
After:  optpipe.attention(%q, %k, %v, …, window=8)

Casts, copies and slices that change nothing may stand between. A mask that was changed on the way is more
than the dialect can say, and is refused.
"""

from __future__ import annotations

import torch
from torch import fx

from ..errors import TraceError
from ..graph.canonical import eliminate_dead
from ..graph.nodes import args_of, aten, is_call, path, same_shape, shape

_MAY_PASS_THROUGH = (aten.slice, aten.to, aten.clone, aten.contiguous, aten.alias, aten.expand, aten.detach)


def fold_masks(gm: fx.GraphModule) -> None:
    """Rewrite every attention call in place.

    Raises:
        TraceError: a mask was changed between where it was made and where it is used.
    """
    for node in list(gm.graph.nodes):
        if is_call(node, torch.ops.optpipe.attention) and len(node.args) > 3 and args_of(node)[3] is not None:
            meaning = _meaning(node, _source(node))
            node.args = (*args_of(node)[:3], None, *args_of(node)[4:])
            node.kwargs = {**node.kwargs, **meaning}
    eliminate_dead(gm.graph)
    left = next((node for node in gm.graph.nodes if is_call(node, torch.ops.optpipe.mask)), None)
    if left is not None:
        user = next(iter(left.users))
        raise TraceError(
            f"an attention mask is used outside attention ({user.target} in {path(user) or 'the model'})"
        )
    if not any(is_call(node, torch.ops.optpipe.attention) for node in gm.graph.nodes):
        raise TraceError("it has no attention: something else carries what earlier tokens said")


def _source(attention: fx.Node) -> fx.Node:
    mask = args_of(attention)[3]
    while isinstance(mask, fx.Node) and is_call(mask, *_MAY_PASS_THROUGH):
        before = args_of(mask)[0]
        if not isinstance(before, fx.Node) or not same_shape(shape(before), shape(mask)):
            break
        mask = before
    if not is_call(mask, torch.ops.optpipe.mask):
        where, how = path(attention), getattr(mask, "target", mask)
        raise TraceError(f"the attention mask of {where or 'the model'} was changed on its way ({how})")
    found: fx.Node = mask
    return found


def _meaning(attention: fx.Node, mask: fx.Node) -> dict[str, object]:
    kind, size = mask.kwargs["kind"], mask.kwargs.get("size")
    return {} if kind == "causal" else {str(kind): size}
