"""The attention that transformers calls while a model is traced: one ``optpipe::attention`` a call.

Every keyword a model passes is either carried, known to have no meaning here, or refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import TraceError

NAME = "optpipe"

# keywords that say nothing about the result of one causal sequence, whatever their value
MEANINGLESS = frozenset(
    {
        "position_ids",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "return_dict",
        "cache_position",
        "cu_seq_lens_q",
        "cu_seq_lens_k",
        "max_length_q",
        "max_length_k",
        "logits_to_keep",
        "num_items_in_batch",
        "layer_idx",
        "deterministic",
        "past_key_values",
        "sliding_window",  # the mask that the model built is the truth, as in its eager form
    }
)

# keywords whose meaning is known and is more than the dialect can say
UNDERSTOOD = {
    "indices": "it picks a few keys for each token with a learned index",
    "position_bias": "it adds a learned bias to its scores",
}


def attention_hook(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Emit the dialect's op for one attention call.

    Args:
        query: [1, H, T, D]; key and value: [1, H_kv, T, ·].
        attention_mask: the result of a captured mask function, or None for plain causal.
        scaling: factor on q·k; D^−½ when None.
        s_aux: [H], sinks.

    Returns:
        [1, T, H, Dv] and no weights.

    Raises:
        TraceError: a keyword carries a meaning that the dialect has no word for.
    """
    who = type(module).__name__
    for name, given in kwargs.items():
        if given is not None and name not in MEANINGLESS:
            reason = UNDERSTOOD.get(name, f"it passes '{name}' to its attention, which is not understood")
            raise TraceError(f"{who} cannot be traced: {reason}.")
    if dropout:
        raise TraceError(f"{who} drops attention weights at inference (dropout = {dropout})")
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    if attention_mask is None and not causal:
        raise TraceError(f"{who} attends in both directions, so it is not a causal decoder")
    if query.shape[0] != 1 or key.shape[2] != query.shape[2]:
        raise TraceError(f"{who} cannot be traced: it attends to something else than the tokens it is given.")
    scale = float(scaling) if scaling is not None else float(query.shape[-1]) ** -0.5
    out = torch.ops.optpipe.attention(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        attention_mask,
        s_aux,
        scale=scale,
        softcap=softcap,
    )
    return out.unsqueeze(0), None


def register() -> None:
    """Make ``attn_implementation="optpipe"`` known to transformers. Doing it twice is harmless."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, attention_hook)
