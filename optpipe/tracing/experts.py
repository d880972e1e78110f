"""The experts that transformers calls while a model is traced: one ``optpipe::moe`` a layer.

What an expert does between its two projections is a method of its class. Which of the dialect's gatings
it is, is settled by trying them on random numbers before the trace; an expert that none of them
reproduces is traced as the batched matrix products that transformers has for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..dialect.activations import ACTIVATIONS
from ..dialect.moe import Gating

NAME = "optpipe"
LIMITS = ("limit", "swiglu_limit")
ALPHAS = ("alpha", "swiglu_alpha")


def _attributes(module: nn.Module, names: tuple[str, ...]) -> list[float | None]:
    found = [getattr(module, name) for name in names if isinstance(getattr(module, name, None), int | float)]
    return [None, *map(float, found)]


def _candidates(module: nn.Module, gated: bool) -> Iterator[Gating]:
    if not gated:
        yield from (Gating(kind, gated=False) for kind in ACTIVATIONS)
        return
    limits, alphas = _attributes(module, LIMITS), _attributes(module, ALPHAS)
    for kind, interleaved, limit, alpha, offset in itertools.product(
        ACTIVATIONS, (False, True), limits, alphas, (0.0, 1.0)
    ):
        yield Gating(kind, True, interleaved, limit, alpha, offset)


def gating_of(module: Any) -> Gating | None:
    """The gating that equals the module's own on numbers far past any clamp, or None."""
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(64, 16, generator=generator) * 12
    with torch.no_grad():
        truth = module._apply_gate(h) if module.has_gate else module.act_fn(h)
    for candidate in _candidates(module, module.has_gate):
        if truth.shape == (got := candidate(h)).shape and torch.allclose(got, truth, rtol=1e-5, atol=1e-6):
            return candidate
    return None


def gating_of_activation(activation: nn.Module) -> Gating | None:
    """The gating of a first projection with two halves whose gate goes through ``activation``."""
    x = torch.linspace(-12, 12, 97)
    with torch.no_grad():
        truth = activation(x)
    tried = ((kind, known(x)) for kind, known in ACTIVATIONS.items())
    kind = next((kind for kind, got in tried if torch.allclose(got, truth, rtol=1e-5, atol=1e-6)), None)
    return None if kind is None else Gating(kind)


def prepare(model: nn.Module) -> None:
    """Settle the gating of every expert module, before the trace, and select our implementation."""
    module: Any
    for module in model.modules():
        if hasattr(module, "is_concatenated") and hasattr(module, "_apply_gate"):
            module._optpipe_gating = None if module.has_post_expert_norm else gating_of(module)
            module.config._experts_implementation = NAME


def experts_hook(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Emit the dialect's op for one call of routed experts.

    Args:
        hidden_states: [T, K]; top_k_index: [T, S] int64; top_k_weights: [T, S].

    Returns:
        [T, K].
    """
    gating: Gating | None = module._optpipe_gating
    if gating is None:
        from transformers.integrations.moe import batched_mm_experts_forward

        batched: torch.Tensor = batched_mm_experts_forward(module, hidden_states, top_k_index, top_k_weights)
        return batched
    first = "gate_up_proj" if gating.gated else "up_proj"
    return emit(
        gating,
        hidden_states,
        top_k_index,
        top_k_weights,
        getattr(module, first),
        module.down_proj,
        getattr(module, f"{first}_bias") if module.has_bias else None,
        module.down_proj_bias if module.has_bias else None,
        transposed=module.is_transposed,
    )


def emit(gating: Gating, *operands: torch.Tensor | None, transposed: bool = False) -> torch.Tensor:
    """The dialect's op over its tensors, in its order."""
    out: torch.Tensor = torch.ops.optpipe.moe(
        *operands,
        kind=gating.kind,
        gated=gating.gated,
        interleaved=gating.interleaved,
        transposed=transposed,
        limit=gating.limit,
        alpha=gating.alpha,
        up_offset=gating.up_offset,
    )
    return out


def register() -> None:
    """Make the experts implementation "optpipe" known to transformers."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(NAME, experts_hook)
