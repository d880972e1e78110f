"""``gated_act``: the gated activation of a feed-forward layer.

y = act(gate) · up
"""

from __future__ import annotations

import torch

from .activations import activation
from .op import accumulator, define


def _fake(gate: torch.Tensor, up: torch.Tensor, *, kind: str) -> torch.Tensor:
    return torch.empty_like(gate, memory_format=torch.contiguous_format)


@define("gated_act(Tensor gate, Tensor up, *, str kind) -> Tensor", fake=_fake)
def gated_act(gate: torch.Tensor, up: torch.Tensor, *, kind: str) -> torch.Tensor:
    """Activate one projection and multiply by the other.

    Args:
        gate: [..., I].
        up: [..., I].
        kind: silu, gelu, gelu_tanh, relu, relu2, sigmoid or tanh.

    Returns:
        [..., I], in ``gate``'s dtype.

    Source: Shazeer 2020, "GLU Variants Improve Transformer".
    """
    wide = accumulator(gate)
    return (activation(kind)(gate.to(wide)) * up.to(wide)).to(gate.dtype)
