"""``fuse-layer-norm``: a layer norm in any spelling is one operation.

Before: %m = aten.mean(%x, [-1], true); %c = aten.sub(%x, %m); %v = aten.mean(aten.pow(%c, 2), [-1], true);
        %e = aten.mul(%c, aten.rsqrt(aten.add(%v, eps))); %y = aten.mul(@w, %e)        (or aten.layer_norm)
After:  %y = optpipe.layer_norm(%x, @w, none, eps=eps)
Guards: the norm is over the last dimension alone
Source: Ba, Kiros and Hinton 2016; the spelled-out form is Cohere's
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from optpipe.graph import match
from optpipe.graph.nodes import args_of, argument, aten, is_call, is_tensor, rank, same_shape, shape
from optpipe.pipeline import Pass, Stage
from optpipe.pipeline.context import PassContext


@dataclass(frozen=True)
class FuseLayerNorm(Pass):
    """Compute a layer norm in one operation, however the model spelt it."""

    name: ClassVar[str] = "fuse-layer-norm"
    stage: ClassVar[Stage] = Stage.FUSE
    always: ClassVar[bool] = True
    before: ClassVar[tuple[str, ...]] = ("fuse-rms-norm",)

    def apply(self, graph: fx.Graph, cx: PassContext) -> None:
        for node in cx.nodes():
            if is_call(node, aten.layer_norm.default):
                self._library_form(node, cx)
            elif (found := centred_and_scaled(node)) is not None:
                x, eps = found
                product, weight = scale(node) or (node, None)
                cx.replace(product, lambda: layer_norm(cx, x, weight, None, eps))  # noqa: B023

    def _library_form(self, node: fx.Node, cx: PassContext) -> None:
        if len(args_of(node)[1]) != 1:
            cx.missed(node, "it normalizes over more than the last dimension")
            return
        weight, bias = argument(node, 2, "weight"), argument(node, 3, "bias")
        eps = float(argument(node, 4, "eps", 1e-5))
        cx.replace(node, lambda: layer_norm(cx, args_of(node)[0], weight, bias, eps))


def layer_norm(
    cx: PassContext, x: fx.Node, weight: fx.Node | None, bias: fx.Node | None, eps: float
) -> fx.Node:
    return cx.call(torch.ops.optpipe.layer_norm.default, x, weight, bias, eps=eps)


def centred_and_scaled(node: fx.Node) -> tuple[fx.Node, float] | None:
    """(x − mean(x)) · (mean((x − mean(x))²) + eps)^−½ → (x, eps)."""
    for centred, inside in match.scaled_by_inverse_root(node):
        shifted = match.plus_scalar(inside)
        mean = match.mean_of_last(shifted[0]) if shifted else None
        inner = match.square(mean) if mean is not None else None
        x = deviation(centred)
        if shifted and x is not None and inner is not None and (inner is centred or deviation(inner) is x):
            return x, shifted[1]
    return None


def deviation(node: object) -> fx.Node | None:
    """x − mean(x) → x."""
    if not is_call(node, aten.sub.Tensor):
        return None
    x, mean = args_of(node)[:2]
    return x if isinstance(x, fx.Node) and match.mean_of_last(mean) is x else None


def scale(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The product of a norm's only use with a stored weight of its rows (or of its heads' rows)."""
    if len(node.users) != 1:
        return None
    product = next(iter(node.users))
    for a, b in match.operands(product, aten.mul.Tensor):
        stored = is_tensor(b) and b.op == "get_attr" and rank(b) < rank(node)
        if a is node and stored and same_shape(shape(b), shape(node)[-rank(b) :]):
            return product, b
    return None
