"""``fuse-add-rms-norm``: the residual add and the norm after it are one operation.

Before: %s = aten.add(%r, %x); %y = optpipe.rms_norm(%s, @w, eps=…)
After:  %y, %s = optpipe.add_rms_norm(%x, %r, @w, eps=…)
Guards: both operands of the add have the sum's shape; of several norms of one sum the first is fused; the
        weight is stored, or known before the sum
Source: the fused form that serving engines share
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from optpipe.graph.nodes import args_of, aten, is_call, is_tensor, same_type
from optpipe.pipeline import Pass, Stage
from optpipe.pipeline.context import PassContext


@dataclass(frozen=True)
class FuseAddRmsNorm(Pass):
    """Save one read and one write of the residual stream per norm."""

    name: ClassVar[str] = "fuse-add-rms-norm"
    stage: ClassVar[Stage] = Stage.FUSE
    always: ClassVar[bool] = True
    after: ClassVar[tuple[str, ...]] = ("fuse-rms-norm",)

    def apply(self, graph: fx.Graph, cx: PassContext) -> None:
        order = {node: at for at, node in enumerate(graph.nodes)}
        for norm in cx.nodes(torch.ops.optpipe.rms_norm):
            total = args_of(norm)[0]
            reason = why_not(total, norm)
            if reason is not None:
                cx.missed(norm, reason)
                continue
            fuse(cx, total, norm, order)


def why_not(total: object, norm: fx.Node) -> str | None:
    if not isinstance(total, fx.Node) or not is_call(total, aten.add.Tensor):
        return "what it norms is not a sum"
    if total.kwargs or not all(is_tensor(part) and same_type(part, total) for part in total.args):
        return "the operands of the sum are broadcast or scaled"
    weight = args_of(norm)[1]
    if isinstance(weight, fx.Node) and weight.op != "get_attr" and total < weight:
        return "its weight is worked out after the sum"
    return None


def fuse(cx: PassContext, total: fx.Node, norm: fx.Node, order: dict[fx.Node, int]) -> None:
    residual, x = sorted(args_of(total), key=lambda part: order.get(part, 0))
    weight, options = args_of(norm)[1], norm.kwargs
    if isinstance(weight, fx.Node) and weight.op == "get_attr" and total < weight:
        total.prepend(weight)
    normed: list[fx.Node] = []

    def build() -> fx.Node:
        pair = cx.call(torch.ops.optpipe.add_rms_norm.default, x, residual, weight, **options)
        normed.append(cx.call(operator.getitem, pair, 0))
        return cx.call(operator.getitem, pair, 1)

    if cx.replace(total, build) is not None:
        norm.replace_all_uses_with(normed[0])
        cx.gm.graph.erase_node(norm)
