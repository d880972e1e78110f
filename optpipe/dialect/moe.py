"""``moe``: routed experts. The router stays in the graph as ordinary operations: models differ there.

    y[t] = Σ_s weight[t, s] · down[e] · act(gate_up[e] · x[t])                    e = expert[t, s]

The gate and up halves of ``gate_up`` lie one after the other, or interleaved channel by channel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .activations import activation
from .op import accumulator, define

ExpertLinear = Callable[[int, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Gating:
    """What happens between an expert's two projections.

    Attributes:
        kind: the activation's name.
        gated: the first projection has two halves, gate and up.
        interleaved: the halves alternate channel by channel.
        limit: gate is clamped to at most this, up to ± this; None for no clamp.
        alpha: factor inside a sigmoid-weighted gate, ``gate · sigmoid(alpha · gate)``; None for ``kind``.
        up_offset: added to up before the product.
    """

    kind: str
    gated: bool = True
    interleaved: bool = False
    limit: float | None = None
    alpha: float | None = None
    up_offset: float = 0.0

    def __call__(self, h: torch.Tensor) -> torch.Tensor:
        """The gated activation of the first projection's output [..., 2·I] (or [..., I])."""
        if not self.gated:
            return activation(self.kind)(h)
        gate, up = (h[..., 0::2], h[..., 1::2]) if self.interleaved else h.chunk(2, dim=-1)
        if self.limit is not None:
            gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        act = activation(self.kind)(gate) if self.alpha is None else gate * torch.sigmoid(self.alpha * gate)
        return act * (up + self.up_offset)


def route(
    x: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    count: int,
    gating: Gating,
    first: ExpertLinear,
    second: ExpertLinear,
) -> torch.Tensor:
    """Send every token to its experts, expert by expert, and add up in the order of the slots.

    Each (token, slot) result lands in its own row before the sum, so the order of the experts does not
    change a token's rounding. A graph that is being exported cannot choose rows: there every expert computes
    every token.
    """
    if torch.compiler.is_exporting():
        return _everywhere(x, experts, weights, count, gating, first, second)
    wide = accumulator(x)
    tokens, slots = experts.shape
    flat = experts.reshape(-1)
    results: torch.Tensor | None = None
    for expert in range(count):
        picked = (flat == expert).nonzero().squeeze(-1)
        if picked.numel() == 0:
            continue
        out = second(expert, gating(first(expert, x[picked // slots].to(wide))))
        if results is None:
            results = out.new_zeros((tokens * slots, out.shape[-1]))
        results[picked] = out
    if results is None:
        return torch.zeros_like(x)
    return (results.view(tokens, slots, -1) * weights.to(wide).unsqueeze(-1)).sum(1).to(x.dtype)


def _everywhere(
    x: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    count: int,
    gating: Gating,
    first: ExpertLinear,
    second: ExpertLinear,
) -> torch.Tensor:
    wide = accumulator(x)
    total = torch.zeros_like(x, dtype=wide)
    for expert in range(count):
        share = (weights.to(wide) * (experts == expert)).sum(-1, keepdim=True)
        total = total + share * second(expert, gating(first(expert, x.to(wide))))
    return total.to(x.dtype)


def _fake(
    x: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    *,
    kind: str,
    gated: bool = True,
    interleaved: bool = False,
    transposed: bool = False,
    limit: float | None = None,
    alpha: float | None = None,
    up_offset: float = 0.0,
) -> torch.Tensor:
    return x.new_empty((x.shape[0], down.shape[2] if transposed else down.shape[1]))


@define(
    "moe(Tensor x, Tensor experts, Tensor weights, Tensor gate_up, Tensor down, Tensor? gate_up_bias=None,"
    " Tensor? down_bias=None, *, str kind, bool gated=True, bool interleaved=False, bool transposed=False,"
    " float? limit=None, float? alpha=None, float up_offset=0.0) -> Tensor",
    fake=_fake,
)
def moe(
    x: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    *,
    kind: str,
    gated: bool = True,
    interleaved: bool = False,
    transposed: bool = False,
    limit: float | None = None,
    alpha: float | None = None,
    up_offset: float = 0.0,
) -> torch.Tensor:
    """Routed experts.

    Args:
        x: [T, K].
        experts: [T, S] int64, the experts of each token; ids outside [0, E) contribute nothing.
        weights: [T, S], what each expert's output is multiplied by.
        gate_up: [E, 2·I, K], or [E, K, 2·I] when transposed; I wide when not gated.
        down: [E, K, I], or [E, I, K] when transposed.
        gate_up_bias: [E, 2·I] or None.
        down_bias: [E, K] or None.
        kind, gated, interleaved, limit, alpha, up_offset: see ``Gating``.
        transposed: weights are stored input first.

    Returns:
        [T, K], in ``x``'s dtype.

    Source: Shazeer et al. 2017, "Outrageously Large Neural Networks"; the clamped gate is gpt-oss's.
    """
    wide = accumulator(x)

    def linear(weight: torch.Tensor, bias: torch.Tensor | None) -> ExpertLinear:
        def run(expert: int, rows: torch.Tensor) -> torch.Tensor:
            matrix = weight[expert].to(wide)
            out = rows @ (matrix if transposed else matrix.T)
            return out if bias is None else out + bias[expert].to(wide)

        return run

    gating = Gating(kind, gated, interleaved, limit, alpha, up_offset)
    return route(
        x, experts, weights, down.shape[0], gating, linear(gate_up, gate_up_bias), linear(down, down_bias)
    )
