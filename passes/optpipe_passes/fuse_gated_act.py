"""``fuse-gated-act``: the activation of a gate and its product with the other half are one operation.

Before: %a = aten.silu(%gate); %y = aten.mul(%a, %up)
After:  %y = optpipe.gated_act(%gate, %up, kind="silu")
Guards: both halves have one shape; nothing else uses the activated gate
Source: Shazeer 2020, "GLU Variants Improve Transformer"
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from optpipe.graph import match
from optpipe.graph.nodes import args_of, argument, aten, is_call, is_tensor, same_type
from optpipe.pipeline import Pass, Stage
from optpipe.pipeline.context import PassContext

KINDS = {
    aten.silu.default: "silu",
    aten.relu.default: "relu",
    aten.sigmoid.default: "sigmoid",
    aten.tanh.default: "tanh",
}


@dataclass(frozen=True)
class FuseGatedAct(Pass):
    """Activate the gate and multiply in one read of both halves."""

    name: ClassVar[str] = "fuse-gated-act"
    stage: ClassVar[Stage] = Stage.FUSE
    always: ClassVar[bool] = True

    def apply(self, graph: fx.Graph, cx: PassContext) -> None:
        for node in cx.nodes():
            for act, up in match.operands(node, aten.mul.Tensor):
                found = activated(act)
                if found is None or found[0] is up or not is_tensor(up) or up.op == "get_attr":
                    continue
                gate, kind = found
                reason = why_not(act, gate, up)
                if reason is not None:
                    cx.missed(node, reason)
                    continue
                cx.replace(node, lambda: gated(cx, gate, up, kind))  # noqa: B023
                break


def gated(cx: PassContext, gate: fx.Node, up: fx.Node, kind: str) -> fx.Node:
    return cx.call(torch.ops.optpipe.gated_act.default, gate, up, kind=kind)


def activated(node: object) -> tuple[fx.Node, str] | None:
    """act(x) → (x, the activation's name)."""
    if not isinstance(node, fx.Node):
        return None
    if is_call(node, aten.gelu.default):
        tanh = argument(node, 1, "approximate", "none") == "tanh"
        return args_of(node)[0], "gelu_tanh" if tanh else "gelu"
    inner: Any = args_of(node)[0] if node.args else None
    if match.square(node) is not None and is_call(inner, aten.relu.default):
        return args_of(inner)[0], "relu2"
    if node.op == "call_function" and node.target in KINDS:
        return inner, KINDS[node.target]
    for x, gate in match.operands(node, aten.mul.Tensor):
        if is_call(gate, aten.sigmoid.default) and args_of(gate)[0] is x:
            return x, "silu"
    return None


def why_not(act: fx.Node, gate: fx.Node, up: fx.Node) -> str | None:
    if not same_type(gate, up):
        return "the gate and the other half differ in shape"
    if len(act.users) != 1:
        return "the activated gate has another user"
    return None
