"""``gather-logits``: only the rows whose logits are wanted reach the LM head.

Before: %y: f32[T, V] = aten.linear(%h, @lm_head.weight)
After:  %g: f32[R, K] = optpipe.gather_rows(%h, %logit_rows); %y: f32[R, V] = aten.linear(%g, @lm_head.weight)
Guards: between the head and the output there are only operations on each row by itself
Source: every serving engine; at a vocabulary of 49,152 the head is a fifth of a 135M model's work
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from optpipe.graph.nodes import args_of, aten, is_call, is_tensor, rank, shape
from optpipe.graph.propagate import new_symbol_tensor, propagate
from optpipe.pipeline import Pass, Stage
from optpipe.pipeline.context import PassContext

HEADS = (aten.linear.default, aten.matmul.default, aten.mm.default)


@dataclass(frozen=True)
class GatherLogits(Pass):
    """Compute logits only for the rows that are wanted."""

    name: ClassVar[str] = "gather-logits"
    stage: ClassVar[Stage] = Stage.FUSE
    always: ClassVar[bool] = True
    whole: ClassVar[bool] = True
    after: ClassVar[tuple[str, ...]] = ("fuse-add-rms-norm", "fuse-layer-norm")

    def apply(self, graph: fx.Graph, cx: PassContext) -> None:
        output = next(node for node in graph.nodes if node.op == "output")
        head, reason = find_head(args_of(output)[0])
        if head is None:
            cx.missed(output, reason)
            return
        if is_call(head.args[0], torch.ops.optpipe.gather_rows):
            return
        rows = cx.placeholder("logit_rows", new_symbol_tensor(cx.gm, "R", torch.int64))
        hidden: fx.Node = args_of(head)[0]
        with graph.inserting_before(head):
            picked = cx.call(torch.ops.optpipe.gather_rows.default, hidden, rows)
        picked.meta["path"] = head.meta.get("path", "")
        head.replace_input_with(hidden, picked)
        cx.applied(head, "gather_rows")
        propagate(cx.gm)


def find_head(node: fx.Node) -> tuple[fx.Node | None, str]:
    """Walk from the output over operations on single rows to the product with the vocabulary."""
    while True:
        if is_call(node, *HEADS) and rank(node) == 2 and is_tensor(args_of(node)[0]):
            return node, ""
        tensors = [operand for operand in node.all_input_nodes if is_tensor(operand) and rank(operand) == 2]
        rowwise = torch.Tag.pointwise in getattr(node.target, "tags", ()) or is_last_slice(node)
        if not rowwise or len(tensors) != 1:
            return None, f"'{node.target}' stands between the LM head and the output"
        node = tensors[0]


def is_last_slice(node: fx.Node) -> bool:
    return is_call(node, aten.slice.Tensor) and args_of(node)[1] in (-1, rank(node) - 1) and bool(shape(node))
