"""Only attention may mix tokens: refuse a graph in which something else visibly does.

The requests of a step lie one after another along T. A convolution or a running sum over T would carry one
request into the next. What this list does not know, the packed contract finds by running.
"""

from __future__ import annotations

import torch
from torch import fx

from ..errors import TraceError
from ..graph.nodes import argument, aten, is_call, path, positive, value

_CONVOLUTIONS = (aten.conv1d, aten.conv2d, aten.convolution, aten._convolution)
_ALONG = (aten.cumsum, aten.cumprod, aten.cummax, aten.logcumsumexp, aten.flip, aten.roll)


def refuse_mixing(gm: fx.GraphModule) -> None:
    """Raise for the first node that mixes tokens and is no attention.

    Raises:
        TraceError: names the module and the operation.
    """
    for node in gm.graph.nodes:
        if is_call(node, *_CONVOLUTIONS) and _has_tokens(node.args[0]):
            raise _refused(node, "a convolution")
        if is_call(node, *_ALONG) and _runs_over_tokens(node):
            raise _refused(node, "a running sum or shift")


def _has_tokens(operand: object) -> bool:
    return isinstance(operand, fx.Node) and any(isinstance(n, torch.SymInt) for n in value(operand).shape)


def _runs_over_tokens(node: fx.Node) -> bool:
    made = value(node)
    sizes = made[0].shape if isinstance(made, tuple) else made.shape
    at = 2 if is_call(node, aten.roll) else 1
    dims = argument(node, at, "dim", argument(node, at, "dims", None))
    dims = dims if isinstance(dims, list | tuple) else (dims,)
    return any(dim is None or isinstance(sizes[positive(dim, len(sizes))], torch.SymInt) for dim in dims)


def _refused(node: fx.Node, what: str) -> TraceError:
    return TraceError(
        f"{what} over tokens stands outside attention, so that one request would change another "
        f"({node.target} in {path(node) or 'the model'})"
    )
