"""Only attention may mix tokens: refuse a graph in which something else visibly does.

The requests of a step lie one after another along T. A convolution, a running sum or a total over T would
carry one request into the next. What this list does not know, the packed contract finds by running.
"""

from __future__ import annotations

import torch
from torch import fx

from ..errors import TraceError
from ..graph.nodes import args_of, argument, aten, is_call, path, positive, value

_CONVOLUTIONS = (aten.conv1d, aten.conv2d, aten.convolution, aten._convolution)
_ALONG = (aten.cumsum, aten.cumprod, aten.cummax, aten.logcumsumexp, aten.flip, aten.roll)

_TOTALS = (
    *(aten.sum, aten.mean, aten.prod, aten.amax, aten.amin, aten.max, aten.min, aten.argmax, aten.argmin),
    *(aten.any, aten.all, aten.logsumexp, aten.var, aten.std, aten.median, aten.sort, aten.topk),
)


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
        if is_call(node, *_TOTALS) and _is_over_tokens(node):
            raise _refused(node, "a total or an order")


def _has_tokens(operand: object) -> bool:
    return isinstance(operand, fx.Node) and any(isinstance(n, torch.SymInt) for n in value(operand).shape)


def _runs_over_tokens(node: fx.Node) -> bool:
    made = value(node)
    sizes = made[0].shape if isinstance(made, tuple) else made.shape
    at = 2 if is_call(node, aten.roll) else 1
    dims = argument(node, at, "dim", argument(node, at, "dims", None))
    dims = dims if isinstance(dims, list | tuple) else (dims,)
    return any(dim is None or isinstance(sizes[positive(dim, len(sizes))], torch.SymInt) for dim in dims)


def _is_over_tokens(node: fx.Node) -> bool:
    """Whether one of the dimensions of a reduction is the tokens'; without any it is over all."""
    operands = args_of(node)
    if len(operands) > 1 and isinstance(operands[1], fx.Node):
        return False  # the elementwise maximum of two tensors
    sizes = value(operands[0]).shape
    at = 2 if is_call(node, aten.topk) else 1
    default = -1 if is_call(node, aten.topk, aten.sort) else None
    dims = argument(node, at, "dim", default)
    if dims is None or dims == [] or isinstance(dims, bool):
        return _has_tokens(operands[0])
    listed = dims if isinstance(dims, list | tuple) else (dims,)
    return any(isinstance(sizes[positive(dim, len(sizes))], torch.SymInt) for dim in listed)


def _refused(node: fx.Node, what: str) -> TraceError:
    return TraceError(
        f"{what} over tokens stands outside attention, so that one request would change another "
        f"({node.target} in {path(node) or 'the model'})"
    )
