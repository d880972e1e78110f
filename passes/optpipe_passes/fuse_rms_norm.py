"""``fuse-rms-norm``: a root-mean-square norm in any spelling is one operation.

Before: %a = aten.pow(%x, 2); %b = aten.mean(%a, [-1], true); %c = aten.add(%b, eps); %d = aten.rsqrt(%c);
        %e = aten.mul(%x, %d); %y = aten.mul(@w, %e)
After:  %y = optpipe.rms_norm(%x, @w, eps=eps)
Guards: the mean is over the last dimension; the weight is a vector of its width (``1 + w`` is a unit
        offset); a scale of another shape stays outside
Source: Zhang and Sennrich 2019; the spellings are those of transformers' models
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from optpipe.graph import match
from optpipe.graph.nodes import args_of, argument, aten, is_call, is_tensor, shape
from optpipe.pipeline import Pass, Stage
from optpipe.pipeline.context import PassContext


@dataclass(frozen=True)
class FuseRmsNorm(Pass):
    """Compute a root-mean-square norm in one operation instead of six."""

    name: ClassVar[str] = "fuse-rms-norm"
    stage: ClassVar[Stage] = Stage.FUSE
    always: ClassVar[bool] = True

    def apply(self, graph: fx.Graph, cx: PassContext) -> None:
        for node in cx.nodes():
            found = normalized(node)
            if found is None:
                continue
            x, eps = found
            given = argument(node, 2, "weight") if is_call(node, aten.rms_norm.default) else None
            if given is not None:
                cx.replace(node, lambda: rms_norm(cx, x, given, eps, False))  # noqa: B023
                continue
            scaled = scale(node)
            if scaled is None:
                cx.replace(node, lambda: rms_norm(cx, x, None, eps, False))  # noqa: B023
            else:
                product, weight, offset = scaled
                cx.replace(product, lambda: rms_norm(cx, x, weight, eps, offset))  # noqa: B023


def rms_norm(cx: PassContext, x: fx.Node, weight: fx.Node | None, eps: float, offset: bool) -> fx.Node:
    return cx.call(torch.ops.optpipe.rms_norm.default, x, weight, eps=eps, unit_offset=offset)


def normalized(node: fx.Node) -> tuple[fx.Node, float] | None:
    """x · (mean(x²) + eps)^−½ → (x, eps)."""
    if is_call(node, aten.rms_norm.default) and len(args_of(node)[1]) == 1:
        return args_of(node)[0], float(argument(node, 3, "eps") or torch.finfo(torch.float32).eps)
    for x, inside in match.scaled_by_inverse_root(node):
        shifted = match.plus_scalar(inside)
        mean = match.mean_of_last(shifted[0]) if shifted else None
        if shifted and mean is not None and match.square(mean) is x:
            return x, shifted[1]
    return None


def scale(node: fx.Node) -> tuple[fx.Node, fx.Node, bool] | None:
    """The product of a norm's only use with its weight → (product, weight, unit offset)."""
    if len(node.users) != 1:
        return None
    product = next(iter(node.users))
    for a, b in match.operands(product, aten.mul.Tensor):
        if a is not node or not is_tensor(b):
            continue
        if is_weight(b, node):
            return product, b, False
        shifted = match.plus_scalar(b)
        if shifted and shifted[1] == 1.0 and is_weight(shifted[0], node):
            return product, shifted[0], True
    return None


def is_weight(node: fx.Node, of: fx.Node) -> bool:
    """Whether a node is a stored vector as wide as the rows of ``of``."""
    return node.op == "get_attr" and match.is_row(node, shape(of)[-1])
