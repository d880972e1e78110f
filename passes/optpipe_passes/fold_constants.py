"""``fold-constants``: what depends on nothing but constants is worked out once.

Before: %2 = aten.to(%inv_freq, f32); %3 = aten.full([8], 1.0); %4 = aten.mul(%2, %3)
After:  @constants.0
Guards: no input, symbolic size or checkpoint weight is involved; the result is at most 16 MiB
Source: Muchnick 1997, section 12.1
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from optpipe.dialect import body_of
from optpipe.graph.nodes import value
from optpipe.pipeline import Pass, Stage
from optpipe.pipeline.context import PassContext, has_effect

LIMIT_BYTES = 16 << 20


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Work out at compile time what depends on constants alone."""

    name: ClassVar[str] = "fold-constants"
    stage: ClassVar[Stage] = Stage.CLEAN
    always: ClassVar[bool] = True
    after: ClassVar[tuple[str, ...]] = ("clean",)

    def apply(self, graph: fx.Graph, cx: PassContext) -> None:
        known: dict[fx.Node, torch.Tensor] = {}
        for node in list(graph.nodes):
            if node.op == "get_attr" and node.target in cx.constants:
                known[node] = cx.weights[str(node.target)].load()
            elif is_constant(node, known):
                known[node] = evaluate(node, known)
        for node, tensor in known.items():
            if node.op == "call_function" and any(user not in known for user in node.users):
                cx.replace(node, functools.partial(cx.set_constant, fresh_name(cx), tensor))


def is_constant(node: fx.Node, known: dict[fx.Node, Any]) -> bool:
    """Whether a call can be worked out from ``known`` alone."""
    held = value(node)
    return (
        node.op == "call_function"
        and isinstance(held, torch.Tensor)
        and all(isinstance(size, int) for size in held.shape)
        and held.numel() * held.element_size() <= LIMIT_BYTES
        and not has_effect(node)
        and torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ())
        and all(operand in known for operand in node.all_input_nodes)
    )


def evaluate(node: fx.Node, known: dict[fx.Node, torch.Tensor]) -> torch.Tensor:
    """The value of a constant call."""
    args = fx.node.map_arg(node.args, known.__getitem__)
    kwargs = fx.node.map_arg(node.kwargs, known.__getitem__)
    with torch.no_grad():
        result: torch.Tensor = body_of(node.target)(*args, **kwargs)
    return result.contiguous()


def fresh_name(cx: PassContext) -> str:
    """A name for a constant that nothing has yet."""
    number = sum(name.startswith("constants.") for name in cx.constants)
    return f"constants.{number}"
